#!/bin/sh
# Builds the fuzzers with clang, libFuzzer and the address and undefined-behaviour sanitizers, and runs each:
#   scripts/fuzz.sh [SECONDS_EACH] [FUZZER...]          default: 60 seconds of every fuzzer
# What a fuzzer finds lies in build/fuzz/found; new inputs that reach new code are kept in build/fuzz/corpus.
# Needs clang (Debian: clang-14); make test does not.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-60}
[ $# -gt 0 ] && shift
cxx=${CXX:-clang++-14}
command -v "$cxx" >/dev/null || { echo "fuzz.sh: $cxx is missing: apt-get install clang-14, or set CXX" >&2; exit 4; }
[ $# -gt 0 ] || set -- gguf vocab carbon dictionary cache_file dnn_pack dnn_wire dnn_files cascade_body
cmake -S . -B build/fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER="$cxx" \
  -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g" -DFRUGAL_FUZZ=ON -DFRUGAL_SANITIZE=address,undefined,fuzzer-no-link
for name in "$@"; do
  cmake --build build/fuzz --target "${name}_fuzz"
done
mkdir -p build/fuzz/found
for name in "$@"; do
  mkdir -p "build/fuzz/corpus/$name"
  "build/fuzz/fuzz/${name}_fuzz" -max_total_time="$seconds" -max_len=16384 -rss_limit_mb=2048 -timeout=20 \
    -artifact_prefix="build/fuzz/found/$name-" "build/fuzz/corpus/$name" "fuzz/corpus/$name"
done
