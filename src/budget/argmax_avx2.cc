#define FRUGAL_ARGMAX argmax_avx2
#include "budget/argmax.inc.h"
