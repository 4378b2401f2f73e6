#!/bin/bash
# The benchmark behind `make bench-reads`: queries of a collection through chromux.
#
# 1. Two servers against one, each with a CPU quota of 0.4 core so that both fit beside the rest: 32
#    readers through chromux over both, and straight at one of them.
# 2. What chromux adds to a query: one reader straight at a server without a quota, and through chromux
#    in front of it, in turns of a second.
#
# Prints medians and says of each goal whether it was met. Exit code 1 when a measurement is not to be
# trusted (errors), 2 when it could not be made; the quota takes cgroup v1 and root.
#
# usage: reads.sh [quick]
# environment, with defaults: ROUNDS=5 SECONDS=6 TURNS=20 RECORDS=2000 READERS=32 QUOTA=40000 (µs of 100,000)
#   BUILD=build CHROMUX=$BUILD/chromux
seconds=$SECONDS # before bash begins to count in it
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cd "$top"

quick=${1:-}
pick() { [ -n "$quick" ] && echo "$1" || echo "$2"; }
ROUNDS=${ROUNDS:-$(pick 1 5)}
[ "$seconds" -gt 0 ] || seconds=$(pick 3 6)
TURNS=${TURNS:-$(pick 4 20)}
RECORDS=${RECORDS:-2000}
READERS=${READERS:-32}
QUOTA=${QUOTA:-40000}
BUILD=${BUILD:-build}
CHROMUX=${CHROMUX:-$BUILD/chromux}
. "$here/lib.sh"

prepare_load
: >"$out/reads.tsv"
look_at_load

group=/sys/fs/cgroup/cpu/chromux-bench-$$
at_exit() {
    local name
    for name in primary replica; do rmdir "$group-$name" 2>/dev/null || true; done
    "$top/scripts/pg.sh" drop "$run/pg" || true
}
database=$("$top/scripts/pg.sh" start "$run/pg") || give_up "PostgreSQL does not start"
for name in primary replica; do
    mkdir "$group-$name" 2>/dev/null && [ -w "$group-$name/cpu.cfs_quota_us" ] ||
        give_up "no CPU quota can be set: that takes root and the cpu controller of cgroup v1"
    start_chroma $name
    echo "${pid[$name]}" >"$group-$name/cgroup.procs"
done
for name in primary replica; do await_chroma $name; done
quota() { for name in primary replica; do echo "$1" >"$group-$name/cpu.cfs_quota_us"; done; }

start_journal "$database"
id=$(create "${port[chromux]}" passages)
straight=$(id_of "${port[primary]}" passages)
"$out/load" add "${port[chromux]}" "$id" 16 records "$RECORDS" >/dev/null || give_up "load failed"
for name in primary replica; do
    "$out/load" until "${port[$name]}" "$(id_of "${port[$name]}" passages)" "$RECORDS" 60 >/dev/null ||
        give_up "$name has not all records"
done

# queries LABEL PORT ID READERS SECONDS: row "LABEL requests us p50 p99".
queries() {
    local line label=$1
    line=$("$out/load" query "$2" "$3" "$4" seconds "$5") || give_up "load failed: $label"
    set -- $line
    [ "$5" = 0 ] || distrust "$label: $5 errors"
    printf '%s\t%s\t%s\t%s\t%s\n' "$label" "$1" "$2" "$3" "$4" >>"$out/reads.tsv"
}

quota "$QUOTA"
for name in primary replica; do # their indexes are read in
    "$out/load" query "${port[$name]}" "$(id_of "${port[$name]}" passages)" 4 records 50 >/dev/null
done
for round in $(seq "$ROUNDS"); do
    say "two servers, round $round of $ROUNDS"
    queries one "${port[primary]}" "$straight" "$READERS" "$seconds"
    queries two "${port[chromux]}" "$id" "$READERS" "$seconds"
done
quota -1

# One server alone behind chromux: the replica is taken out of use.
say "added latency, $TURNS turns"
stop "${pid[replica]}"
for _ in $(seq 100); do
    [[ $(curl -fsS -m 2 "http://127.0.0.1:${port[chromux]}/status") =~ \"down\" ]] && break
    sleep 0.1
done
for turn in $(seq "$TURNS"); do
    queries direct "${port[primary]}" "$straight" 1 1
    queries through "${port[chromux]}" "$id" 1 1
done

echo "$(machine) $READERS readers of $RECORDS records of 384 dimensions, quota 0.$((QUOTA / 10000)) core each;" \
    "$ROUNDS rounds of $seconds s, medians; load before: $load."
echo
luajit "$here/reads.lua" "$out/reads.tsv"
finish
