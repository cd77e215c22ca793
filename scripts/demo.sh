#!/bin/sh
# The main job on real input. Grows with the product.
set -eu
cd "$(dirname "$0")/.."
./frugal doctor
