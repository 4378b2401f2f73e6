#!/bin/bash
# The benchmark behind `make bench`: chromux, nginx, HAProxy and a bare relay in turn, each pinned
# to core 1, with the origin and wrk on core 0. Prints a Markdown table and says of each goal
# whether it was met. Exit code 1 when a measurement is not to be trusted (errors, policy calls that
# do not match the requests, closed idle connections), 2 when it could not be made; a missed goal is
# a result.
#
# CPU is what /proc/PID/stat says of all processes of a proxy; memory is what smaps_rollup calls
# private and dirty. The raw numbers stay in $BUILD/bench/results.tsv and memory.tsv.
#
# usage: run.sh [quick]     quick: one round of one second each, 500 idle connections
# environment, with defaults: ROUNDS=5 SECONDS=2 CONNS="1 64 512" SIZES="44 16384 1048576"
#   PROXIES="relay nginx haproxy chromux" IDLE=5000 BUILD=build CHROMUX=$BUILD/chromux
seconds=$SECONDS # before bash begins to count in it
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cd "$top"

quick=${1:-}
ROUNDS=${ROUNDS:-$([ -n "$quick" ] && echo 1 || echo 5)}
[ "$seconds" -gt 0 ] || seconds=$([ -n "$quick" ] && echo 1 || echo 2)
IDLE=${IDLE:-$([ -n "$quick" ] && echo 500 || echo 5000)}
CONNS=${CONNS:-1 64 512}
SIZES=${SIZES:-44 16384 1048576}
PROXIES=${PROXIES:-relay nginx haproxy chromux}
BUILD=${BUILD:-build}
CHROMUX=${CHROMUX:-$BUILD/chromux}
collection=6f1c1c7e-3b0a-4b5e-9d53-0d4a1f6f0b11
count=/api/v2/tenants/default_tenant/databases/default_database/collections/$collection/count

. "$here/lib.sh"

fill() {
    sed -e "s|@PORT@|${port[$1]}|; s|@RUN@|$run|" \
        -e "s|@ORIGIN_A@|${port[origin_a]}|; s|@ORIGIN_B@|${port[origin_b]}|" "$here/$2" >"$run/$2"
}

# start NAME: a fresh process of that proxy on core 1, answering.
start() {
    local name=$1 err=$run/$1.err origins
    free_port "$name"
    case $name in
    relay)
        taskset -c 1 "$out/relay" "${port[relay]}" "${port[origin_a]}" "${port[origin_b]}" \
            2>"$err" &
        ;;
    nginx)
        fill nginx nginx.conf
        taskset -c 1 nginx -p "$run" -c "$run/nginx.conf" 2>"$err" &
        ;;
    haproxy)
        fill haproxy haproxy.cfg
        taskset -c 1 haproxy -db -f "$run/haproxy.cfg" >/dev/null 2>"$err" &
        ;;
    chromux)
        origins="a=http://127.0.0.1:${port[origin_a]};b=http://127.0.0.1:${port[origin_b]}"
        (cd "$run" && exec env -u DATABASE_URL -u PRIMARY_URL -u REPLICA_URL -u ADMIN_PORT \
            PORT="${port[chromux]}" LISTEN_ADDRESS=127.0.0.1 ACCESS_LOG=off LOG_LEVEL=warn \
            CHROMA_INSTANCES="$origins" UNREPLICATED_READS=any \
            LOAD_BALANCE_STRATEGY=round_robin POLICY_DIR="$top/policies" \
            MAX_CLIENTS=9000 MAXCONN=1024 UPSTREAM_MAX_IDLE=512 \
            DRAIN_TIMEOUT=1 taskset -c 1 "$CHROMUX" run) >"$err" 2>&1 &
        ;;
    esac
    pid[$name]=$!
    started+=($!)
    for _ in {1..100}; do
        if ! kill -0 "${pid[$name]}" 2>/dev/null; then
            cat "$err" >&2
            give_up "$name ended at its start"
        fi
        [[ $(http_get "${port[$name]}" /api/v2/heartbeat 2>/dev/null) == HTTP/1.1\ 200* ]] && return
        sleep 0.05
    done
    cat "$err" >&2
    give_up "$name did not answer within five seconds"
}

# ---- what is measured ---------------------------------------------------------------------------
# Clock ticks used by a process and its descendants, those already reaped included.
cpu_ticks() {
    local p sum=0 stat
    for p in $(tree "$1"); do
        read -r stat <"/proc/$p/stat" || continue
        set -- ${stat##*) }
        sum=$((sum + ${12} + ${13} + ${14} + ${15}))
    done
    echo "$sum"
}

# Clock ticks in which core 1 did anything for anybody: what the proxy did not use, others took.
core_ticks() { awk '$1 == "cpu1" { print $2 + $3 + $4 + $7 + $8 + $9 }' /proc/stat; }

# Dirty private pages only: clean ones are the program's own file, which the kernel may drop at any
# time.
private_kb() {
    local p
    for p in $(tree "$1"); do cat "/proc/$p/smaps_rollup"; done |
        awk '/^Private_Dirty:/ { kb += $2 } END { print kb + 0 }'
}

# The first two equal readings (within 16 kB), or the last one after five seconds.
settled_kb() {
    local was=-100 now i
    for i in {1..20}; do
        now=$(private_kb "$1")
        [ $((now > was ? now - was : was - now)) -le 16 ] && break
        was=$now
        sleep 0.25
    done
    echo "$now"
}

# Calls of route() in Lua. A tripped or failing policy would be answered for in C: then "none".
policy_calls() {
    http_get "${port[chromux]}" /metrics |
        awk '/^chromux_policy_calls_total{.*policy="route"/ { calls = $2; found = 1 }
             /^chromux_policy_fallbacks_total{.*policy="route"/ && $2 > 0 { found = 0; exit }
             END { if (found) printf "%.0f\n", calls; else print "none" }'
}

target() { [ "$1" = 44 ] && echo /api/v2/heartbeat || echo "$count?bytes=$1"; }

untrusted=0
# measure ROUND NAME CONNS SIZE: one row of results.tsv.
measure() {
    local name=$2 conns=$3 size=$4 line before after core called=- calls
    local url="http://127.0.0.1:${port[$2]}$(target "$4")"
    [ "$name" = chromux ] && calls=$(policy_calls)
    core=$(core_ticks)
    before=$(cpu_ticks "${pid[$name]}")
    line=$(timeout $((seconds + 20)) taskset -c 0 wrk -t1 -c"$conns" -d"${seconds}s" --latency \
        --timeout 10s -s "$here/wrk.lua" "$url" | grep '^BENCH') ||
        give_up "wrk failed against $name"
    after=$(cpu_ticks "${pid[$name]}")
    core=$(($(core_ticks) - core))
    set -- "$1" $line # round BENCH requests microseconds p50 p99 errors
    if [ "$name" = chromux ]; then
        [ "$calls" != none ] || give_up "chromux shows no chromux_policy_calls_total for route"
        called=$(($(policy_calls) - calls))
        # What wrk had under way at its end was routed and is not among its requests.
        if [ "$called" -lt "$3" ] || [ "$called" -gt $(($3 + conns)) ]; then
            say "chromux, $conns connections, $size B: $called policy calls for $3 requests"
            untrusted=1
        fi
    fi
    if [ "$7" != 0 ] || [ "$3" = 0 ]; then
        say "$name, $conns connections, $size B: $3 requests, $7 errors"
        untrusted=1
    fi
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$name" "$conns" "$size" "$3" \
        "$4" $((after - before)) "$5" "$6" $((core - after + before)) "$7" "$called" \
        >>"$out/results.tsv"
}

# memory NAME: a fresh process, a few requests to warm it, then IDLE connections that each made one.
memory() {
    local name=$1 before after idler
    start "$name"
    "$out/idle" "${port[$name]}" 50 /api/v2/heartbeat </dev/null >/dev/null ||
        give_up "$name: warming up failed"
    before=$(settled_kb "${pid[$name]}")
    rm -f "$run/hold" && mkfifo "$run/hold"
    "$out/idle" "${port[$name]}" "$IDLE" /api/v2/heartbeat <"$run/hold" >"$run/idle.out" &
    idler=$!
    started+=($idler)
    exec 8>"$run/hold"
    for _ in {1..1200}; do
        grep -q ready "$run/idle.out" && break
        kill -0 "$idler" 2>/dev/null || give_up "$name: $IDLE idle connections could not be opened"
        sleep 0.05
    done
    after=$(settled_kb "${pid[$name]}")
    exec 8>&-
    if ! wait "$idler"; then
        say "$name: only '$(tail -n1 "$run/idle.out")' of $IDLE idle connections"
        untrusted=1
    fi
    printf '%s\t%s\t%s\t%s\n' "$name" "$IDLE" "$before" "$after" >>"$out/memory.tsv"
    stop "${pid[$name]}"
}

# ---- set-up -------------------------------------------------------------------------------------
for tool in wrk nginx haproxy luajit taskset cc; do
    command -v "$tool" >/dev/null || give_up "$tool is missing:" \
        "apt-get install --no-install-recommends wrk nginx-light haproxy luajit util-linux gcc"
done
[ "$(nproc)" -ge 2 ] ||
    give_up "two cores are needed: one for the proxy, one for wrk and the origin"
ulimit -n "$(ulimit -Hn)"
[ "$(ulimit -n)" -ge 12000 ] || give_up "12,000 descriptors are needed, the limit is $(ulimit -Hn)"
if [ ! -x "$CHROMUX" ]; then
    say "$CHROMUX is not built: measuring the others without it"
    PROXIES=${PROXIES//chromux/}
fi
CHROMUX=$(readlink -f "$CHROMUX" || true)

mkdir -p "$BUILD/bench"
out=$(cd "$BUILD/bench" && pwd)
for p in relay origin idle; do
    cc -O2 -g -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -o "$out/$p" "$here/$p.c"
done
: >"$out/results.tsv"
: >"$out/memory.tsv"

free_port origin_a
free_port origin_b
taskset -c 0 "$out/origin" "${port[origin_a]}" "${port[origin_b]}" &
started+=($!)
for _ in {1..100}; do
    [[ $(http_get "${port[origin_b]}" / 2>/dev/null) == *heartbeat* ]] && break
    sleep 0.05
done

look_at_load

for name in $PROXIES; do
    start "$name"
    for size in $SIZES; do
        for _ in {1..50}; do # a balancer may first have to see that its servers hold data
            got=$(http_get "${port[$name]}" "$(target "$size")" | sed '1,/^\r$/d' | wc -c)
            [ "$got" = "$size" ] && break
            sleep 0.1
        done
        [ "$got" = "$size" ] || give_up "$name answered $got bytes instead of $size"
    done
    timeout 20 taskset -c 0 wrk -t1 -c64 -d1s "http://127.0.0.1:${port[$name]}/api/v2/heartbeat" \
        >/dev/null
done
for round in $(seq "$ROUNDS"); do
    say "round $round of $ROUNDS"
    for size in $SIZES; do
        for conns in $CONNS; do
            for name in $PROXIES; do measure "$round" "$name" "$conns" "$size"; done
        done
    done
done
for name in $PROXIES; do stop "${pid[$name]}"; done
if [ "$IDLE" -gt 0 ]; then
    say "memory of $IDLE idle connections"
    for name in $PROXIES; do memory "$name"; done
fi

echo "$(machine)" \
    "$(haproxy -v | awk 'NR == 1 { print "HAProxy", $3 }')," \
    "$(nginx -v 2>&1 | sed 's|.*/|nginx |')," \
    "$(wrk --version 2>&1 | awk 'NR == 1 { print "wrk", $2 }')," \
    "TCP congestion control $(cat /proc/sys/net/ipv4/tcp_congestion_control)." \
    "$ROUNDS rounds of $seconds s, medians; load before: $load."
echo
luajit "$here/report.lua" "$out/results.tsv" "$out/memory.tsv" "$(getconf CLK_TCK)"
if [ "$untrusted" != 0 ]; then
    say "not to be trusted: see above"
    [ -s "$run/chromux.err" ] && tail -n 20 "$run/chromux.err" >&2
fi
exit "$untrusted"
