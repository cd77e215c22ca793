#!/bin/sh
# Prints the load model's constants (src/meter/power_model.cc) fitted on every sweep of a data folder:
#     scripts/fit_power_model.sh [DATA]
set -eu
cd "$(dirname "$0")/.."
exec ./frugal bench meter --fit --data "${1:-../shared/data}"
