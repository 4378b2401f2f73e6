#!/bin/bash
# Runs what `make` has built and adds the counts of all runners up. The last line is
# "N passed, N failed, N skipped"; the exit code is 0 only if nothing failed, every runner ended well
# and each said how many tests it ran.
#
# usage: test.sh unit|spec|sim|integration|chaos|asan|check...
#   sim runs the journal's engine under simulated time and faults, chaos real servers under real ones.
#   asan is unit, spec and integration again: the unit tests, and the program that runs the specs and
#   that the integration tests drive, with sanitizers.
# Runners run side by side, those that measure something one by one behind them (`alone`).
# environment: BUILD (build), RUNNERS (3) side by side, which mostly wait, TEST_TIMEOUT (600 s for one
#   runner), ONLY (a pattern for names of runners, such as 'integration/proxy*'), TEST_SLOW (what the
#   deadlines of integration tests are multiplied by: 1 alone, 2 side by side, 4 with sanitizers).
#   Logs are in $BUILD/log.
set -u
cd "$(dirname "$0")/.." || exit 1
. scripts/lib.sh

BUILD=${BUILD:-build}
RUNNERS=${RUNNERS:-3}
TEST_TIMEOUT=${TEST_TIMEOUT:-600}
logs=$BUILD/log
mkdir -p "$logs"

# Tests say themselves how chromux is configured; it refuses CHROMUX_* names that it doesn't know.
for name in $(compgen -e); do
    case $name in
    CHROMUX_* | PORT | ADMIN_PORT | LISTEN_ADDRESS | PRIMARY_URL | REPLICA_URL | CHROMA_* | POLICY_DIR | ACCESS_LOG | \
        LOG_* | LOAD_BALANCE_STRATEGY | DATABASE_URL | SLACK_WEBHOOK_URL | PG?*) unset "$name" ;;
    esac
done
export CACHE_FOLDER=$CACHE
export PATH=$PATH:$CACHE/bin
export LC_ALL=C.UTF-8
export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
PG_FSYNC=off
export PG_FSYNC

passed=0 failed=0 skipped=0

# sum LOG PATTERN: adds the numbers that stand in the parts of LOG that match PATTERN.
sum() { grep -aoE "$2" "$1" | grep -oE '[0-9]+' | awk '{ n += $1 } END { print n + 0 }'; }

# count KIND LOG: "passed failed skipped", or nothing when the runner printed no count.
count() {
    local run ok skip
    case $1 in
    cmocka) # a test whose set-up or teardown fails is in none of cmocka's counts but the first
        grep -aq '\[  PASSED  \] [0-9]* test' "$2" || return 0
        run=$(sum "$2" '\[==========\] Running [0-9]+ test')
        ok=$(sum "$2" '\[  PASSED  \] [0-9]+ test')
        skip=$(sum "$2" '\[  SKIPPED \] [0-9]+ test')
        echo "$ok $((run - ok - skip)) $skip"
        ;;
    rounds)
        sed -nE 's/^([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p' "$2"
        ;;
    busted | bare)
        grep -aqE '^[0-9]+ success' "$2" || return 0
        skip=$(sum "$2" '/ [0-9]+ pending')
        [ "$1" = busted ] || skip=0 # what needs chromux is spec/chromux's
        echo "$(sum "$2" '^[0-9]+ success')" \
            "$(($(sum "$2" '/ [0-9]+ failure') + $(sum "$2" '/ [0-9]+ error')))" "$skip"
        ;;
    check)
        echo "$(grep -c '^ok ' "$2") $(grep -c '^failed ' "$2") $(grep -c '^skipped ' "$2")"
        ;;
    esac
}

# What failed or was skipped, and why: "FAILED <test>: <why>", "skipped <test>: <why>".
mishaps() { # mishaps KIND LOG
    case $1 in
    cmocka)
        awk '
        /^\[ RUN      \] / { name = $4; said = error = line = last = ""; next }
        /^\[       OK \] / { name = "" }
        name == "" { next }
        /^\[  SKIPPED \] / { print "skipped " name ": " last; name = ""; next }
        /^\[  (FAILED |ERROR  ) \] / && $NF == name {
            print "FAILED " name ": " (said ? said : line " " error)
            name = ""
        }
        /^tests\/|^chromux (reported|ended)|Sanitizer: |runtime error: / { if (!said) said = $0 }
        /^ERROR: / { if (!error) error = substr($0, 8) }
        /^\[  ERROR   \] --- / { sub(/^\[  ERROR   \] --- /, ""); if (!error && !/^\[/) error = $0 }
        /^\[   LINE   \] --- / { if (!line) line = substr($0, 18) }
        !/^ *[0-9.]+ s( waited at .*)?$/ && /./ { last = $0 }
        END { if (name) print "FAILED " name ": " (said ? said : "did not end") }' "$2"
        ;;
    busted | bare)
        awk -v kind="$1" '
        /^(Failure|Error) -> / { getline name; getline said; print "FAILED " name ": " said }
        /^Pending -> / && kind == "busted" { getline name; print "skipped " name ": pending" }
        /^seed [0-9]+: / || /^MISSED / { print "FAILED " $0 }' "$2"
        ;;
    rounds)
        awk '
        /VIOLATIONS$/ { seed = $1 " " $2; getline said; sub(/^ +/, "", said); print "FAILED " seed " " said }
        /^never met / { print "FAILED " $0 }' "$2"
        ;;
    check)
        awk '
        /^failed / { name = $2; getline said; print "FAILED " name ": " said }
        /^skipped / { print }' "$2"
        ;;
    esac
}

# one NAME KIND COMMAND...: runs it (in the background) and leaves its report and counts beside its log.
one() {
    local name=$1 kind=$2 log=$logs/${1//\//-}.log status p f s start=$EPOCHREALTIME note='' took
    shift 2
    case $name in
    asan/*) export CHROMUX=$program_asan TEST_ASAN=1 TEST_SLOW=${TEST_SLOW:-4} ;;
    *) export CHROMUX=$program TEST_SLOW=${TEST_SLOW:-$(alone "$name" && echo 1 || echo 2)} ;;
    esac
    timeout -k 10 "$TEST_TIMEOUT" "$@" </dev/null >"$log" 2>&1
    status=$?
    took=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    read -r p f s < <(count "$kind" "$log")
    if [ -z "${p:-}" ]; then
        p=0 f=1 s=0 note=' (printed no count)'
    elif [ "$((p + f + s))" = 0 ]; then
        f=1 note=' (ran no tests)'
    elif [ "$status" != 0 ] && [ "$f" = 0 ]; then
        f=1
    fi
    [ "$status" = 0 ] || note="$note (exit code $status)"
    [ "$status" != 124 ] && [ "$status" != 137 ] || note="$note (stopped after $TEST_TIMEOUT s)"
    mishaps "$kind" "$log" | cut -c 1-400 | sed "s|^\([a-zA-Z]*\) |\1 $name: |" >"$log.mishaps"
    if [ "$f" != 0 ] && ! grep -q '^FAILED' "$log.mishaps"; then
        echo "FAILED $name:$note $(tail -n 1 "$log" | cut -c 1-400)" >>"$log.mishaps"
    fi
    {
        if [ "$f" = 0 ]; then
            printf '%-34s %4d passed' "$name" "$p"
            [ "$s" = 0 ] || printf ', %d skipped' "$s"
            printf '  %7s s\n' "$took"
        else
            printf '%-34s %4d passed, %d FAILED, %d skipped%s\n' "$name" "$p" "$f" "$s" "$note"
            sed -n 's/^FAILED /    /p' "$log.mishaps"
            tail -n 40 "$log" | cut -c 1-400 | sed 's/^/    | /'
            printf '    (all of it: %s)\n' "$log"
        fi
    } >"$log.report"
    echo "$p $f $s" >"$log.count"
}

# These have the machine for themselves, each for what it measures.
alone() { # alone NAME
    case $1 in
    integration/failover | integration/journal_failover | integration/balancers) ;; # how long clients wait
    integration/health | integration/retry | integration/limits | integration/names) ;; # how soon they are answered
    integration/peer | integration/bulk) ;;                 # time-outs, paces, memory
    integration/crowd | asan/integration/crowd) ;;          # processor time
    *) return 1 ;;
    esac
}

# Runs the jobs listed in `queue` (one per line: NAME KIND COMMAND...) that the pattern ONLY names.
queue=() started=()
run_queue() {
    local job by_themselves=() name p f s
    for job in "${queue[@]}"; do
        name=${job%% *}
        # shellcheck disable=SC2053 # ONLY is a pattern
        if [ -n "${ONLY:-}" ] && [[ $name != $ONLY ]]; then
            continue
        elif alone "$name"; then
            by_themselves+=("$job")
        else
            start "$RUNNERS" $job
        fi
    done
    for job in "${by_themselves[@]}"; do start 1 $job; done
    wait
    for name in "${started[@]}"; do
        read -r p f s <"$logs/${name//\//-}.log.count" || { p=0 f=1 s=0; }
        passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    done
}

start() { # start LANES NAME KIND COMMAND...: when fewer than that many run
    local log=$logs/${2//\//-}.log
    while [ "$(jobs -rp | wc -l)" -ge "$1" ]; do wait -n; done
    started+=("$2")
    rm -f "$log".{report,count,mishaps}
    (
        one "${@:2}"
        cat "$log.report"
    ) &
}

# Once more at the end, where one looks: which tests failed or were skipped, and why.
say_mishaps() {
    local name
    for name in "${started[@]}"; do
        cat "$logs/${name//\//-}.log.mishaps" 2>/dev/null || echo "FAILED $name: no report"
    done | sort -s -k 1,1 -r
}

stop() {
    trap '' INT TERM
    # shellcheck disable=SC2046
    kill $(jobs -p) 2>/dev/null
    wait
    exit 130
}
trap stop INT TERM

sources() { # sources FOLDER: names of its tests
    local f
    for f in tests/"$1"/*_test.c; do [ ! -e "$f" ] || basename "$f" .c; done
}
unit() { # unit PREFIX FOLDER
    for t in $(sources unit); do queue+=("$1unit/${t%_test} cmocka $2/unit/$t"); done
}
integration() { # integration PREFIX PROGRAM
    [ -x "$2" ] || die "$2 is not built"
    for t in $(sources integration); do queue+=("$1integration/${t%_test} cmocka $BUILD/integration/$t"); done
}
program=$(realpath -m "$BUILD")/chromux program_asan=$(realpath -m "$BUILD")/asan/chromux

for set in "$@"; do
    case $set in
    unit) unit '' "$BUILD" ;;
    spec) # by busted, with stand-ins, and by chromux itself, in a real policy VM
        queue+=("spec/busted bare env LUA_PATH=lua/?.lua;; busted --lua=luajit -o plainTerminal tests/spec")
        queue+=("spec/chromux busted $BUILD/chromux test")
        ;;
    sim) # seeds are counted as tests
        queue+=("sim/seeds busted $BUILD/chromux script tests/sim/run.lua 0 ${SIM_SEEDS:-200}")
        queue+=("sim/mutants busted $BUILD/chromux script tests/sim/mutants.lua")
        ;;
    integration) integration '' "$program" ;;
    chaos)
        rounds="rounds $BUILD/chromux script tests/chaos/run.lua --chromux $BUILD/faults/chromux --seed"
        queue+=("chaos $rounds 1 --rounds ${CHAOS_ROUNDS:-10}")
        queue+=("chaos-sync $rounds 1 --kind sync --rounds ${CHAOS_SYNC_ROUNDS:-3}")
        ;;
    asan)
        unit asan/ "$BUILD/asan"
        queue+=("asan/spec busted $BUILD/asan/chromux test")
        integration asan/ "$program_asan"
        ;;
    check) queue+=("check check scripts/check.sh") ;;
    *) die "usage: scripts/test.sh unit|spec|sim|integration|chaos|asan|check..." ;;
    esac
done

run_queue
[ "$((passed + failed))" -gt 0 ] || die "no tests were run"
say_mishaps
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
