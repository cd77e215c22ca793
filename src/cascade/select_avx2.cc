#define FRUGAL_SELECT(name) select_##name##_avx2
#include "cascade/select.inc.h"
