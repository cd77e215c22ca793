#define FRUGAL_PREDICT predict_avx2
#include "cascade/predict.inc.h"
