#!/bin/bash
# The benchmark behind `make bench-sync`: how fast a wiped server is made equal again, against a plain script that
# copies by get and add, on this machine with real servers and PostgreSQL.
#
# 1. The plain script fills an empty server from the primary; chromux rebuilds the wiped replica. In turns.
# 2. One worker against two, with CPU quotas that leave the workers as what limits.
# 3. A rebuild under 50 writes and 50 reads a second: no error, how long lanes were held, equal at the end.
# 4. A verification of equal servers: CPU of each server against one full read of it, memory of the worker.
#
# Prints medians and says of each goal whether it was met. Exit code 1 when a measurement is not to be trusted (errors,
# records that differ), 2 when it could not be made; the quotas take cgroup v1 and root.
#
# usage: sync.sh [quick]
# environment, with defaults: ROUNDS=3 COLLECTIONS=20 RECORDS=5000 (of each) WORKER_QUOTA=2000 (µs of 100,000)
#   BUILD=build CHROMUX=$BUILD/chromux
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cd "$top"

quick=${1:-}
pick() { [ -n "$quick" ] && echo "$1" || echo "$2"; }
ROUNDS=${ROUNDS:-$(pick 1 3)}
COLLECTIONS=${COLLECTIONS:-20}
RECORDS=${RECORDS:-$(pick 500 5000)}
WORKER_QUOTA=${WORKER_QUOTA:-2000}
BUILD=${BUILD:-build}
CHROMUX=${CHROMUX:-$BUILD/chromux}
. "$here/lib.sh"

prepare_load
: >"$out/sync.tsv"
look_at_load
all=$((COLLECTIONS * RECORDS))
client() { "$CHROMUX" script "$here/sync.lua" "$@"; }

group=/sys/fs/cgroup/cpu/chromux-bench-$$
at_exit() {
    local w
    for w in 1 2; do rmdir "$group-worker$w" 2>/dev/null || true; done
    "$top/scripts/pg.sh" drop "$run/pg" || true
}
database=$("$top/scripts/pg.sh" start "$run/pg") || give_up "PostgreSQL does not start"
for w in 1 2; do
    mkdir "$group-worker$w" 2>/dev/null && [ -w "$group-worker$w/cpu.cfs_quota_us" ] ||
        give_up "no CPU quota can be set: that takes root and the cpu controller of cgroup v1"
done
for name in primary replica; do start_chroma $name; done
for name in primary replica; do await_chroma $name; done
start_journal "$database"
sql() { "$(scripts/pg.sh bin)/psql" -XAtq "$database" -c "$1"; }

# start_worker W: a sync worker in its own cgroup.
start_worker() {
    local name list=
    for name in primary replica; do list+="$name=http://127.0.0.1:${port[$name]},role=$name;"; done
    (
        cd "$run"
        echo "$BASHPID" >"$group-worker$1/cgroup.procs"
        exec env -u PRIMARY_URL -u REPLICA_URL DATABASE_URL="$database" CHROMA_INSTANCES="$list" SYNC_INTERVAL=86400 \
            POLICY_DIR="$top/policies" LOG_LEVEL=info "$CHROMUX" run --role worker
    ) >>"$run/worker$1.log" 2>&1 &
    pid["worker$1"]=$!
    started+=($!)
}
quota() { for w in 1 2; do echo "$1" >"$group-worker$w/cpu.cfs_quota_us"; done; }

# The replica loses its data directory and comes back empty.
wipe() {
    kill -KILL "${pid[replica]}"
    wait "${pid[replica]}" 2>/dev/null || true
    rm -rf "${run:?}/replica"
    start_chroma replica
    await_chroma replica
}

# Until every copy is ready again, at most `$1` seconds; sets `took` to the microseconds.
healed() {
    local began=$(date +%s%6N) until=$(($(date +%s) + $1))
    while :; do
        [ "$(sql "SELECT count(*) FROM journal_copies WHERE state <> 'ready' OR (physical = '' AND lane > 0)")" = 0 ] && break
        [ "$(date +%s)" -lt "$until" ] || give_up "the replica is not made equal within $1 s"
        sleep 0.1
    done
    took=$(($(date +%s%6N) - began))
}

# Until the journal knows that the replica lost what it had.
lost() {
    for _ in {1..600}; do
        [ "$(sql "SELECT count(*) FROM journal_copies WHERE state = 'rebuild'")" != 0 ] && return
        sleep 0.05
    done
    give_up "the loss of the replica's data is not noticed"
}

check_equal() {
    client equal "${port[primary]}" "${port[replica]}" >"$run/equal" || distrust "$1: records differ: $(cat "$run/equal")"
}

say "filling $all records"
client fill "${port[chromux]}" "$COLLECTIONS" "$RECORDS" >/dev/null || give_up "the records could not be written"

for round in $(seq "$ROUNDS"); do
    say "plain script, round $round of $ROUNDS"
    start_chroma plain
    await_chroma plain
    printf 'plain\t%s\n' "$(client plain "${port[primary]}" "${port[plain]}" | tr ' ' '\t')" >>"$out/sync.tsv"
    kill -KILL "${pid[plain]}"
    wait "${pid[plain]}" 2>/dev/null || true
    rm -rf "${run:?}/plain"
    say "chromux, round $round of $ROUNDS"
    wipe
    lost
    start_worker 1
    healed 600
    printf 'rebuild\t%s\t%s\n' "$all" "$took" >>"$out/sync.tsv"
    stop "${pid[worker1]}"
    check_equal "round $round"
done

quota "$WORKER_QUOTA"
for round in $(seq "$ROUNDS"); do
    for workers in 1 2; do
        say "$workers workers with a quota, round $round of $ROUNDS"
        wipe
        lost
        for w in $(seq $workers); do start_worker $w; done
        healed 1200
        printf 'workers%s\t%s\t%s\n' $workers "$all" "$took" >>"$out/sync.tsv"
        for w in $(seq $workers); do stop "${pid[worker$w]}"; done
    done
done
quota -1
check_equal "two workers"

say "rebuild under load"
start_worker 1
touch "$run/loading"
client load "${port[chromux]}" "$run/loading" >"$run/quiet" 2>"$run/load.log" &
loader=$!
sleep "$(pick 5 20)"
rm "$run/loading"
wait $loader
touch "$run/loading"
client load "${port[chromux]}" "$run/loading" >"$run/load" 2>>"$run/load.log" &
loader=$!
since=$(sql "SELECT now()")
wipe
lost
healed 1200
rm "$run/loading"
wait $loader
sleep 2
read -r requests errors p50 p99 longest <"$run/load"
read -r _ _ _ before _ <"$run/quiet"
[ "$errors" = 0 ] || distrust "$errors of $requests requests failed under a rebuild: $(tail -n 1 "$run/load.log")"
held=$(sql "SELECT COALESCE(max(hold_ms), -1) FROM sync_jobs WHERE created_at > '$since'")
printf 'load\t%s\t%s\t%s\t%s\t%s\t%s\n' "$requests" "$p50" "$p99" "$longest" "$before" "$held" >>"$out/sync.tsv"
check_equal "under load"

say "verification of equal servers"
cpu() { awk '{ print ($14 + $15) * 10000 }' "/proc/$(tree "${pid[$1]}" | tail -n 1)/stat"; }
for name in primary replica; do
    at=$(cpu $name)
    client read "${port[$name]}" >/dev/null
    printf 'read\t%s\t%s\n' $name $(($(cpu $name) - at)) >>"$out/sync.tsv"
done
at_primary=$(cpu primary) at_replica=$(cpu replica)
DATABASE_URL=$database "$CHROMUX" sync verify >"$run/verify.log" 2>&1 || distrust "verify: $(tail -n 3 "$run/verify.log")"
printf 'verify\tprimary\t%s\nverify\treplica\t%s\n' $(($(cpu primary) - at_primary)) $(($(cpu replica) - at_replica)) >>"$out/sync.tsv"
printf 'memory\t%s\n' "$(awk '/VmHWM/ { print $2 }' "/proc/${pid[worker1]}/status")" >>"$out/sync.tsv"

echo "$(machine) $all records of 384 dimensions in $COLLECTIONS collections; $ROUNDS rounds, medians; load before: $load."
echo
luajit "$here/sync_report.lua" "$out/sync.tsv"
finish
