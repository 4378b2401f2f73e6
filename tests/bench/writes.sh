#!/bin/bash
# The benchmark behind `make bench-writes`: single-record writes through chromux with its journal in
# front of two real Chroma servers, against the same load straight at a third that is alone. All of it,
# PostgreSQL (with fsync) and the load included, is on this machine. Direct and through chromux take
# turns, each turn with a collection of its own; a turn through chromux begins when both servers have
# what came before. Prints medians and says of each goal whether it was met. Exit code 1 when a
# measurement is not to be trusted (errors, records missing), 2 when it could not be made.
#
# usage: writes.sh [quick]
# environment, with defaults: ROUNDS=5 SECONDS=6 WRITERS="1 32" LAG=20 MISSED=10000 CATCHUPS=3
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
WRITERS=${WRITERS:-1 32}
LAG=${LAG:-$(pick 5 20)}
MISSED=${MISSED:-$(pick 2000 10000)}
CATCHUPS=${CATCHUPS:-$(pick 1 3)}
BUILD=${BUILD:-build}
CHROMUX=${CHROMUX:-$BUILD/chromux}
. "$here/lib.sh"

prepare_load
: >"$out/writes.tsv"
look_at_load

at_exit() { "$top/scripts/pg.sh" drop "$run/pg" || true; }
database=$("$top/scripts/pg.sh" start "$run/pg") || give_up "PostgreSQL does not start"
for name in direct primary replica; do start_chroma $name; done
for name in direct primary replica; do await_chroma $name; done
start_journal "$database"
turn=0

# settle NAME RECORDS: both servers hold all that was acknowledged, and no more. Sets `drained` to the
# microseconds until the last of them did.
settle() {
    local server began=$(date +%s%6N)
    for server in primary replica; do
        "$out/load" until "${port[$server]}" "$(id_of "${port[$server]}" "$1")" "$2" 120 >/dev/null ||
            distrust "$server has not the $2 records of $1"
    done
    drained=$(($(date +%s%6N) - began))
}

# adds WHERE WRITERS seconds|records N: row "add where writers requests us p50 p99 drain_us".
adds() {
    local id line name=turn$((++turn))
    id=$(create "${port[$1]}" "$name")
    line=$("$out/load" add "${port[$1]}" "$id" "$2" "$3" "$4") || give_up "load failed against $1"
    set -- "$1" "$2" $line
    [ "$7" = 0 ] || distrust "$1, $2 writers: $7 errors"
    drained=0
    [ "$1" = direct ] || settle "$name" "$3"
    printf 'add\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" "$5" "$6" "$drained" >>"$out/writes.tsv"
}

for round in $(seq "$ROUNDS"); do
    say "round $round of $ROUNDS"
    for writers in $WRITERS; do
        adds direct "$writers" seconds "$seconds"
        adds chromux "$writers" seconds "$seconds"
    done
done

if [ "$LAG" -gt 0 ]; then
    say "lag of the replica at 50 writes a second"
    name=turn$((++turn))
    id=$(create "${port[chromux]}" $name)
    line=$("$out/load" lag "${port[chromux]}" "$id" 50 "$LAG" "${port[replica]}" "$(id_of "${port[replica]}" $name)") ||
        give_up "the lag could not be measured"
    set -- $line
    [ "$4" = 0 ] || distrust "lag: $4 errors"
    printf 'lag\t%s\t%s\t%s\n' "$1" "$2" "$3" >>"$out/writes.tsv"
fi

# The replica is killed, MISSED records are written, it is started: from then until it has them all.
for round in $(seq "$CATCHUPS"); do
    [ "$MISSED" -gt 0 ] || break
    say "catching up with $MISSED missed writes, $round of $CATCHUPS"
    adds direct 1 seconds "$seconds"
    name=turn$((++turn))
    id=$(create "${port[chromux]}" $name)
    there=$(id_of "${port[replica]}" $name)
    kill -KILL "${pid[replica]}"
    wait "${pid[replica]}" 2>/dev/null || true
    line=$("$out/load" add "${port[chromux]}" "$id" 32 records "$MISSED") || give_up "load failed"
    set -- $line
    [ "$5" = 0 ] || distrust "with the replica away: $5 errors"
    began=$(date +%s%6N)
    start_chroma replica
    await_chroma replica
    "$out/load" until "${port[replica]}" "$there" "$1" 300 >/dev/null || distrust "the replica does not catch up"
    printf 'catchup\t%s\t%s\n' "$1" $(($(date +%s%6N) - began)) >>"$out/writes.tsv"
    settle $name "$1"
done

echo "$(machine) $("$(scripts/pg.sh bin)/postgres" --version)." \
    "$ROUNDS rounds of $seconds s, medians; load before: $load."
echo
luajit "$here/writes.lua" "$out/writes.tsv"
finish
