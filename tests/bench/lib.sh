# shellcheck shell=bash
# Shared by the benchmarks (sourced): processes that end with the script, ports, small requests. The
# caller sets `here` and `top`; $run is a folder of this run alone, $out holds what stays.

: "${here:?}" "${top:?}"
say() { echo "bench: $*" >&2; }
give_up() { say "$*"; exit 2; }

# Everything started is in `started` and is gone when the script is.
declare -A pid port
started=()
run=$(mktemp -d "${TMPDIR:-/tmp}/chromux-bench.XXXXXX")
chmod 755 "$run" # nginx's worker and PostgreSQL are other users

# The process and all its descendants.
tree() {
    local c kids
    echo "$1"
    kids=$(cat /proc/"$1"/task/*/children 2>/dev/null || true)
    for c in $kids; do tree "$c"; done
}

# Ends one of our processes: TERM, and after three seconds KILL for it and its descendants.
stop() {
    kill -TERM "$1" 2>/dev/null || return 0
    for _ in {1..60}; do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.05
    done
    kill -KILL $(tree "$1") 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}
at_exit() { :; } # for the caller to replace
clean_up() {
    local p
    trap '' INT TERM
    for p in "${started[@]}"; do stop "$p"; done
    at_exit
    rm -rf "$run"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A port nobody listens on, below the kernel's range for outgoing connections.
free_port() {
    local p
    while :; do
        p=$((20000 + RANDOM % 12000))
        [[ " ${port[*]:-} " == *" $p "* ]] && continue
        (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null || break
    done
    port[$1]=$p
}

# http_get PORT TARGET: head and body.
http_get() {
    local fd
    exec {fd}<>"/dev/tcp/127.0.0.1/$1" || return 1
    printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' "$2" >&"$fd"
    timeout 5 cat <&"$fd" || true
    exec {fd}>&-
}

machine() {
    echo "$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $(nproc) cores, Linux $(uname -r)."
}

# Says when the machine has other work.
look_at_load() {
    load=$(cut -d' ' -f1 /proc/loadavg)
    awk -v l="$load" 'BEGIN { exit !(l > 0.3) }' &&
        say "the machine is busy (load $load): expect CPU figures too high and rates too low"
    return 0
}

# ---- the journal's benchmarks: real servers, PostgreSQL, chromux ----------------------------------
default_database=/api/v2/tenants/default_tenant/databases/default_database

# await NAME PORT TARGET: until it answers 200, for 30 s.
await() {
    for _ in {1..600}; do
        curl -fs -m 2 -o "$run/answer" "http://127.0.0.1:$2$3" && return
        kill -0 "${pid[$1]}" 2>/dev/null || break
        sleep 0.05
    done
    tail -n 20 "$run/$1.log" >&2
    give_up "$1 does not answer"
}

# start_chroma NAME: a server with its data in $run/NAME; again on the same port and data.
start_chroma() {
    local name=$1
    [ -n "${port[$name]:-}" ] || free_port "$name"
    "$top/scripts/chroma.sh" start "${port[$name]}" "$run/$name" >>"$run/$name.log" 2>&1 &
    pid[$name]=$!
    started+=($!)
}
await_chroma() { await "$1" "${port[$1]}" /api/v2/heartbeat; }

# start_chromux NAME=VALUE...: settings; its port is ${port[chromux]}.
start_chromux() {
    [ -n "${port[chromux]:-}" ] || free_port chromux
    (cd "$run" && exec env -u PRIMARY_URL -u REPLICA_URL -u CHROMA_INSTANCES -u ADMIN_PORT -u DATABASE_URL \
        PORT="${port[chromux]}" LISTEN_ADDRESS=127.0.0.1 ACCESS_LOG="${ACCESS_LOG:-off}" LOG_LEVEL=info SLOW_START=0 \
        POLICY_DIR="$top/policies" DRAIN_TIMEOUT=1 "$@" "$CHROMUX" run --role balancer) >>"$run/chromux.log" 2>&1 &
    pid[chromux]=$!
    started+=($!)
    await chromux "${port[chromux]}" /health
}

# Until the journal takes writes.
await_journal() {
    for _ in {1..600}; do
        [[ $(http_get "${port[chromux]}" /status) =~ \"state\":\"on\" ]] && return
        sleep 0.05
    done
    tail -n 20 "$run/chromux.log" >&2
    give_up "the journal does not start"
}

# create PORT NAME: a collection; id_of PORT NAME: its id there. Prints the id.
create() {
    curl -fsS -m 30 -H 'Content-Type: application/json' -d "{\"name\":\"$2\"}" \
        "http://127.0.0.1:$1$default_database/collections" | sed 's/.*"id":"\([^"]*\)".*/\1/'
}
id_of() {
    local text
    for _ in {1..200}; do
        text=$(curl -fsS -m 30 "http://127.0.0.1:$1$default_database/collections/$2" 2>/dev/null) && break
        sleep 0.05
    done
    sed 's/.*"id":"\([^"]*\)".*/\1/' <<<"$text"
}

# Makes the load generator.
prepare_load() {
    [ -x "$CHROMUX" ] || give_up "$CHROMUX is not built"
    CHROMUX=$(readlink -f "$CHROMUX")
    mkdir -p "$BUILD/bench"
    out=$(cd "$BUILD/bench" && pwd)
    cc -O2 -g -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Wno-unused-parameter -o "$out/load" "$here/load.c" -lpthread
}

# start_journal DATABASE_URL: chromux in front of primary and replica.
start_journal() {
    local name list=
    for name in primary replica; do list+="$name=http://127.0.0.1:${port[$name]},role=$name;"; done
    start_chromux DATABASE_URL="$1" CHROMA_INSTANCES="$list"
    await_journal
}

untrusted=0
distrust() {
    say "$*"
    untrusted=1
}
finish() {
    if [ "$untrusted" != 0 ]; then
        say "not to be trusted: see above"
        tail -n 20 "$run/chromux.log" >&2
    fi
    exit "$untrusted"
}
