#!/bin/bash
# Runs the fuzz targets that `make fuzz` has built, one after the other: each libFuzzer target of
# tests/fuzz with its corpus (tests/fuzz/corpus/NAME) and its dictionary (NAME.dict, if there is one),
# and each tests/fuzz/*_fuzz.sh with FUZZ_SECONDS and CHROMUX (the program with sanitizers) in the
# environment. Stops at the first finding; the input that made it lies in $BUILD/fuzz. Inputs that
# reached something new are kept in $BUILD/fuzz/NAME;
#   build/clang/fuzz/NAME_fuzz -merge=1 tests/fuzz/corpus/NAME build/fuzz/NAME
# takes those that add to the corpus into it.
#
# environment: BUILD (build), FUZZ_SECONDS (600 divided by the number of targets)
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

BUILD=${BUILD:-build}
CHROMUX=$(realpath -m "$BUILD")/asan/chromux
export CHROMUX
found=$BUILD/fuzz
mkdir -p "$found"

targets=()
for t in tests/fuzz/*_fuzz.c tests/fuzz/*_fuzz.sh; do [ ! -e "$t" ] || targets+=("$t"); done
[ ${#targets[@]} -gt 0 ] || die "tests/fuzz holds no targets"
export FUZZ_SECONDS=${FUZZ_SECONDS:-$((600 / ${#targets[@]}))}

for t in "${targets[@]}"; do
    name=$(basename "${t%_fuzz.*}")
    log=$found/$name.log
    echo "fuzzing $name for $FUZZ_SECONDS s"
    case $t in
    *.c)
        corpus=tests/fuzz/corpus/$name
        mkdir -p "$found/$name"
        command=("$BUILD/clang/fuzz/${name}_fuzz" "-max_total_time=$FUZZ_SECONDS" -timeout=10
            -rss_limit_mb=2048 "-artifact_prefix=$found/$name-" "$found/$name")
        [ ! -d "$corpus" ] || command+=("$corpus")
        [ ! -e "tests/fuzz/$name.dict" ] || command+=("-dict=tests/fuzz/$name.dict")
        ;;
    *.sh) command=(bash "$t") ;;
    esac
    if ! "${command[@]}" </dev/null >"$log" 2>&1; then
        tail -n 40 "$log"
        die "fuzzing $name found something (above; all of it in $log)"
    fi
    tail -n 2 "$log"
done
echo "${#targets[@]} targets, $FUZZ_SECONDS s each, nothing found"
