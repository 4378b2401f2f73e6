#!/bin/bash
# The benchmark behind `make bench-sync`: how fast a wiped server is made equal again, against a plain script that
# copies by get and add, on this machine with real servers and PostgreSQL.
#
# rate    The plain script fills an empty server from the primary; chromux rebuilds the wiped replica; records that are
#         ready to be sent are added by nobody in particular, which is what the server can take. In turns.
# quota   With CPU quotas that leave who copies as what limits: the script, one worker, two workers.
# load    50 writes and 50 reads a second: on both servers, under a verification, on the primary alone, and under a rebuild of the replica: no
#         error, how long lanes were held, equal at the end.
# verify  A verification of equal servers: CPU of each server against one full read of it, memory of the worker.
#
# Prints medians and says of each goal whether it was met. Exit code 1 when a measurement is not to be trusted (errors,
# records that differ), 2 when it could not be made; the quotas take cgroup v1 and root.
#
# usage: sync.sh [quick]
# environment, with defaults: PARTS="rate quota load verify" ROUNDS=1 COLLECTIONS=20 RECORDS=5000 (of each)
#   WORKER_QUOTA=2000 (µs of 100,000) QUIET=20 (seconds of load before the rebuild) LOADED=120 (most
#   seconds of it during the rebuild) ACCESS_LOG=off BUILD=build CHROMUX=$BUILD/chromux
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cd "$top"

quick=${1:-}
pick() { [ -n "$quick" ] && echo "$1" || echo "$2"; }
PARTS=${PARTS:-rate quota load verify}
ROUNDS=${ROUNDS:-1}
COLLECTIONS=${COLLECTIONS:-20}
RECORDS=${RECORDS:-$(pick 500 5000)}
WORKER_QUOTA=${WORKER_QUOTA:-2000}
QUIET=${QUIET:-20}
LOADED=${LOADED:-120}
BUILD=${BUILD:-build}
CHROMUX=${CHROMUX:-$BUILD/chromux}
. "$here/lib.sh"

prepare_load
: >"$out/sync.tsv"
look_at_load
all=$((COLLECTIONS * RECORDS))
client() { "$CHROMUX" script "$here/sync.lua" "$@"; }

part() { [[ " $PARTS " == *" $1 "* ]]; }

group=/sys/fs/cgroup/cpu/chromux-bench-$$
at_exit() {
    local w
    for w in 1 2; do rmdir "$group-worker$w" 2>/dev/null || true; done
    "$top/scripts/pg.sh" drop "$run/pg" || true
}
database=$("$top/scripts/pg.sh" start "$run/pg") || give_up "PostgreSQL does not start"
for w in 1 2; do
    mkdir "$group-worker$w" 2>/dev/null && [ -w "$group-worker$w/cpu.cfs_quota_us" ] || ! part quota ||
        give_up "no CPU quota can be set: that takes root and the cpu controller of cgroup v1"
done
free_port plain
for name in primary replica; do start_chroma $name; done
for name in primary replica; do await_chroma $name; done
start_journal "$database"
sql() { "$(scripts/pg.sh bin)/psql" -XAtq "$database" -c "$1"; }

# within W COMMAND...: in the cgroup of worker W.
within() {
    ! part quota || echo "$BASHPID" >"$group-worker$1/cgroup.procs"
    "${@:2}"
}

# start_worker W: a sync worker in its own cgroup.
start_worker() {
    local name list=
    for name in primary replica; do list+="$name=http://127.0.0.1:${port[$name]},role=$name;"; done
    (
        cd "$run"
        ! part quota || echo "$BASHPID" >"$group-worker$1/cgroup.procs"
        exec env -u PRIMARY_URL -u REPLICA_URL DATABASE_URL="$database" CHROMA_INSTANCES="$list" SYNC_INTERVAL=86400 \
            POLICY_DIR="$top/policies" LOG_LEVEL=info "$CHROMUX" run --role worker
    ) >>"$run/worker$1.log" 2>&1 &
    pid["worker$1"]=$!
    started+=($!)
}
worker_runs() { [ -n "${pid[worker1]:-}" ] && kill -0 "${pid[worker1]}" 2>/dev/null; }
quota() { for w in 1 2; do echo "$1" >"$group-worker$w/cpu.cfs_quota_us"; done; }

# The replica loses its data directory and comes back empty.
kill_replica() {
    kill -KILL "${pid[replica]}" 2>/dev/null || true
    wait "${pid[replica]}" 2>/dev/null || true
}
wipe() {
    kill_replica
    rm -rf "${run:?}/replica"
    start_chroma replica
    await_chroma replica
}

seconds() { awk -v us="$1" 'BEGIN { printf "%.2f", us / 1e6 }'; }

# Until every copy is ready again, at most `$1` seconds; sets `took` to the microseconds. 1: they are not.
healed_within() {
    local began=$(date +%s%6N) until=$(($(date +%s) + $1))
    while :; do
        [ "$(sql "SELECT count(*) FROM journal_copies WHERE state <> 'ready' OR (physical = '' AND lane > 0)")" = 0 ] && break
        [ "$(date +%s)" -lt "$until" ] || break
        sleep 0.1
    done
    took=$(($(date +%s%6N) - began))
    [ "$(date +%s)" -lt "$until" ]
}
healed() { healed_within "$1" || give_up "the replica is not made equal within $1 s"; }

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

# Starts an empty server "plain", does what is said with it, and writes "LABEL records seconds".
on_an_empty_server() {
    start_chroma plain
    await_chroma plain
    printf '%s\t%s\n' "$1" "$("${@:2}" | tr ' ' '\t')" >>"$out/sync.tsv"
    kill -KILL "${pid[plain]}"
    wait "${pid[plain]}" 2>/dev/null || true
    rm -rf "${run:?}/plain"
}
sync_cli() { DATABASE_URL=$database "$CHROMUX" sync "$@" >/dev/null || give_up "chromux sync $1 failed"; }

say "filling $all records"
client fill "${port[chromux]}" "$COLLECTIONS" "$RECORDS" >/dev/null || give_up "the records could not be written"

measure_rate() {
    local n=$((all < 20000 ? all : 20000))
    for round in $(seq "$ROUNDS"); do
        say "plain script, round $round of $ROUNDS"
        on_an_empty_server plain client plain "${port[primary]}" "${port[plain]}"
        say "chromux, round $round of $ROUNDS"
        wipe
        lost
        start_worker 1
        healed 600
        printf 'rebuild\t%s\t%s\n' "$all" "$(seconds "$took")" >>"$out/sync.tsv"
        stop "${pid[worker1]}"
        say "what the server can take, round $round of $ROUNDS"
        on_an_empty_server floor1 client floor "${port[primary]}" "${port[plain]}" $n 1
        on_an_empty_server floor4 client floor "${port[primary]}" "${port[plain]}" $n 4
    done
    check_equal "the rebuild"
}

# Records that are to be copied under a quota before the rest is done without one.
quota_of() { echo $((all < $1 ? all : $1)); }

# workers_with_quota W: the rate while W workers copy, each with the quota.
workers_with_quota() {
    local w n since
    n=$(quota_of $(($1 * 20000)))
    wipe
    lost
    sync_cli pause --who bench --why quota
    for w in $(seq "$1"); do start_worker "$w"; done
    for _ in {1..600}; do
        [ "$(sql "SELECT count(*) FROM sync_workers WHERE lease_until > now()")" = "$1" ] && break
        sleep 0.05
    done
    quota "$WORKER_QUOTA"
    since=$(sql "SELECT now()")
    sync_cli resume
    for _ in {1..6000}; do
        [ "$(sql "SELECT COALESCE(sum(records), 0) >= $n FROM sync_tasks WHERE completed_at > '$since'")" = t ] && break
        sleep 0.1
    done
    sql "SELECT 'workers$1', sum(records), extract(epoch FROM max(completed_at) - min(started_at))::numeric(12, 2)
        FROM sync_tasks WHERE completed_at > '$since'" | tr '|' '\t' >>"$out/sync.tsv"
    quota -1
    healed 600
    for w in $(seq "$1"); do stop "${pid[worker$w]}"; done
}

measure_quota() {
    for round in $(seq "$ROUNDS"); do
        say "the script with a quota, round $round of $ROUNDS"
        quota "$WORKER_QUOTA"
        on_an_empty_server plain_quota within 1 client plain "${port[primary]}" "${port[plain]}" 30
        quota -1
        for workers in 1 2; do
            say "$workers workers with a quota, round $round of $ROUNDS"
            workers_with_quota $workers
        done
    done
}

# load_while COMMAND...: the load until that ends; what its client prints is in $run/load.
load_while() {
    touch "$run/loading"
    client load "${port[chromux]}" "$run/loading" >"$run/load" 2>>"$run/load.log" &
    local loader=$!
    "$@"
    rm "$run/loading"
    wait $loader
}
rebuild_replica() {
    wipe
    lost
    healed_within "$LOADED" || say "the rest is copied without load"
    copied=$(sql "SELECT COALESCE(sum(records), 0) FROM sync_tasks WHERE kind = 'copy' AND completed_at > '$since'")
}

verify_for() { DATABASE_URL=$database timeout "$1" "$CHROMUX" sync verify >"$run/verify.log" 2>&1 || [ $? = 124 ]; }

measure_load() {
    local since copied requests errors p50 p99 longest reads writes before before_reads before_writes alone verifying
    say "load without sync"
    ! worker_runs || stop "${pid[worker1]}"
    load_while sleep 10 # until what was just written is where it stays
    load_while sleep "$QUIET"
    read -r _ _ _ before _ before_reads before_writes <"$run/load"
    say "verification under load"
    start_worker 1
    load_while verify_for "$QUIET"
    read -r _ _ _ verifying _ <"$run/load"
    verify_for 600 || give_up "verification does not end"
    say "rebuild under load"
    kill_replica
    sleep 5 # until it is out of everybody's way
    load_while sleep "$QUIET"
    read -r _ _ _ alone _ <"$run/load"
    since=$(sql "SELECT now()")
    load_while rebuild_replica
    sleep 2
    read -r requests errors p50 p99 longest reads writes <"$run/load"
    [ "$errors" = 0 ] ||
        distrust "$errors of $requests requests failed under a rebuild: $(tail -n 1 "$run/load.log")"
    held=$(sql "SELECT COALESCE(max(hold_ms), -1) FROM sync_jobs WHERE created_at > '$since'")
    printf '%s\t' load "$requests" "$p50" "$p99" "$longest" "$before" "$held" "$reads" "$writes" "$before_reads" \
        "$before_writes" "$alone" "$verifying" >>"$out/sync.tsv"
    echo $((copied * 1000000 / took)) >>"$out/sync.tsv"
    healed 600
    check_equal "under load"
}

cpu() { awk '{ print ($14 + $15) * 10000 }' "/proc/$(tree "${pid[$1]}" | tail -n 1)/stat"; }
measure_verify() {
    local name at at_primary at_replica
    say "verification of equal servers"
    worker_runs || start_worker 1
    for name in primary replica; do
        at=$(cpu $name)
        client read "${port[$name]}" >/dev/null
        printf 'read\t%s\t%s\n' $name $(($(cpu $name) - at)) >>"$out/sync.tsv"
    done
    at_primary=$(cpu primary) at_replica=$(cpu replica)
    DATABASE_URL=$database "$CHROMUX" sync verify >"$run/verify.log" 2>&1 ||
        distrust "verify: $(tail -n 3 "$run/verify.log")"
    printf 'verify\tprimary\t%s\nverify\treplica\t%s\n' $(($(cpu primary) - at_primary)) \
        $(($(cpu replica) - at_replica)) >>"$out/sync.tsv"
    printf 'memory\t%s\n' "$(awk '/VmHWM/ { print $2 }' "/proc/${pid[worker1]}/status")" >>"$out/sync.tsv"
}

for name in rate quota load verify; do
    ! part $name || measure_$name
done

echo "$(machine) $all records of 384 dimensions in $COLLECTIONS collections; $ROUNDS rounds, medians; load before: $load."
echo
luajit "$here/sync_report.lua" "$out/sync.tsv"
finish
