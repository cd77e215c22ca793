#!/bin/sh
# The full local loop: bootstrap, format, then build and test under each preset named (default: release asan tsan).
#   scripts/check.sh            everything
#   scripts/check.sh release    what `make test` runs
set -eu
cd "$(dirname "$0")/.."
jobs=${JOBS:-$(nproc)}
[ $# -gt 0 ] || set -- release asan tsan
python3 scripts/bootstrap.py --tests
python3 -B tests/rules/format.py
for preset in "$@"; do
  echo "== $preset"
  cmake --preset "$preset" >/dev/null
  cmake --build --preset "$preset" -j "$jobs"
  ctest --preset "$preset" -j "$jobs"
done
echo "== all of: $*: passed"
