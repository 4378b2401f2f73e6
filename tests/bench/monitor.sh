#!/bin/bash
# The benchmark behind `make bench-monitor`: what the monitor costs while it samples ten Chroma servers each second,
# against the goals of 0.5 % of a core and 10 MB of private memory above that of the core libraries alone.
#
# Real servers with a collection of data each, a real PostgreSQL, probes as always. The libraries' share is that of
# chromux itself, running a program that only waits. Exit code 1 when a goal is missed or samples are, 2 when it could
# not be measured.
#
# usage: monitor.sh [quick]
# environment, with defaults: SECONDS_OF=60 SERVERS=10 BUILD=build CHROMUX=$BUILD/chromux
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cd "$top"

SECONDS_OF=${SECONDS_OF:-$([ -n "${1:-}" ] && echo 15 || echo 60)}
SERVERS=${SERVERS:-10}
BUILD=${BUILD:-build}
CHROMUX=${CHROMUX:-$BUILD/chromux}
. "$here/lib.sh"

[ -x "$CHROMUX" ] || give_up "$CHROMUX is not built"
CHROMUX=$(readlink -f "$CHROMUX")
look_at_load
at_exit() { "$top/scripts/pg.sh" drop "$run/pg" || true; }
database=$("$top/scripts/pg.sh" start "$run/pg") || give_up "PostgreSQL does not start"
sql() { "$(scripts/pg.sh bin)/psql" -XAtq "$database" -c "$1"; }

list=
for ((i = 1; i <= SERVERS; i++)); do
    start_chroma "server$i"
    list+="server$i=http://127.0.0.1:${port[server$i]},role=$([ $i = 1 ] && echo primary || echo replica);"
done
for ((i = 1; i <= SERVERS; i++)); do
    await_chroma "server$i"
    create "${port[server$i]}" bench >/dev/null
done

env -u PRIMARY_URL -u REPLICA_URL -u CHROMA_INSTANCES -u DATABASE_URL DATABASE_URL="$database" CHROMA_INSTANCES="$list" \
    POLICY_DIR="$top/policies" MONITOR_INTERVAL=1 MONITOR_WINDOW=60 \
    "$CHROMUX" run --role monitor >>"$run/monitor.log" 2>&1 &
monitor=$!
started+=($monitor)
for _ in {1..600}; do
    [ "$(sql "SELECT count(DISTINCT instance) FROM performance_metrics" 2>/dev/null || echo 0)" = $((SERVERS + 1)) ] && break
    kill -0 $monitor 2>/dev/null || { tail -n 20 "$run/monitor.log" >&2; give_up "the monitor ended"; }
    sleep 0.1
done
[ "$(sql "SELECT count(DISTINCT instance) FROM performance_metrics")" = $((SERVERS + 1)) ] || {
    tail -n 20 "$run/monitor.log" >&2
    give_up "not every server is sampled"
}

echo 'sleep(600)' >"$run/wait.lua"
"$CHROMUX" script "$run/wait.lua" &
alone=$!
started+=($alone)

private() { awk '/^Private_(Clean|Dirty):/ { kb += $2 } END { print kb }' "/proc/$1/smaps_rollup"; }
spent() { cut -d' ' -f1 "/proc/$1/schedstat"; } # nanoseconds

sleep 5
before=$(spent $monitor) began=$(date +%s%N)
rows=$(sql "SELECT count(*) FROM performance_metrics")
sleep "$SECONDS_OF"
took=$(($(date +%s%N) - began)) used=$(($(spent $monitor) - before))
rows=$(($(sql "SELECT count(*) FROM performance_metrics") - rows))
all=$(private $monitor) libraries=$(private $alone)

echo "$(machine) $SERVERS servers sampled each second for $SECONDS_OF s; load before: $load."
awk -v used="$used" -v took="$took" -v all="$all" -v lib="$libraries" -v rows="$rows" -v want=$((SECONDS_OF * (SERVERS + 1))) '
    BEGIN {
        cpu = 100 * used / took
        printf "CPU              %.2f %% of a core (goal: 0.5)%s\n", cpu, (cpu > 0.5 ? "  MISSED" : "")
        printf "private memory   %.1f MB, the libraries alone %.1f: %.1f MB above (goal: 10)%s\n", all / 1024, lib / 1024,
            (all - lib) / 1024, (all - lib > 10240 ? "  MISSED" : "")
        printf "rows             %d of %d%s\n", rows, want, (rows < want * 0.95 ? "  MISSED" : "")
        exit cpu > 0.5 || all - lib > 10240 || rows < want * 0.95
    }'
