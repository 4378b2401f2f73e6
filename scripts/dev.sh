#!/bin/bash
# What `make run` runs: a private PostgreSQL, two real Chroma servers and chromux in front of them, all
# on this machine and for this checkout alone; data in var/, logs in var/log. INT, TERM and HUP of the
# terminal stop everything. A server that dies is shown and started again after a while, so that its
# failover can be watched; when chromux itself ends, everything does.
#
# usage: dev.sh            dev.sh reload: that chromux reads policies and configuration again
# environment: PORT (8000), CHROMA_PORTS ("8001 8002"), CHROMUX (build/chromux), RESTART_AFTER (15 s).
#   Other settings of chromux are passed on to it, except those that name servers and database.
set -u
cd "$(dirname "$0")/.." || exit 1
. scripts/lib.sh

PORT=${PORT:-8000}
read -r primary_port replica_port rest <<<"${CHROMA_PORTS:-8001 8002}"
CHROMUX=${CHROMUX:-build/chromux}
RESTART_AFTER=${RESTART_AFTER:-15}
pid_file=var/chromux.pid

if [ "${1:-}" = reload ]; then
    pid=$(cat $pid_file 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = chromux ] ||
        die "chromux does not run here: start it with make run"
    kill -HUP "$pid" || die "process $pid belongs to another user: use theirs, or sudo"
    echo "chromux (process $pid) reads its policies and configuration again; a mistake in them shows in" \
        "var/log/chromux.log and under /status, and leaves the old ones at work"
    exit
fi
[ $# = 0 ] || die "usage: scripts/dev.sh [reload]"
[ -x "$CHROMUX" ] || die "$CHROMUX is not there: run make"
[ -n "${replica_port:-}" ] && [ -z "$rest" ] || die "CHROMA_PORTS wants two ports, not '${CHROMA_PORTS:-}'"

# What the environment says of other servers and databases is not for this run. chromux refuses
# CHROMUX_* names that it doesn't know.
export CACHE_FOLDER=$CACHE
unset SETUP_CACHE CHROMA_INSTANCES PRIMARY_URL REPLICA_URL DATABASE_URL

mkdir -p var/log var/primary var/replica || die "cannot create var/: is the checkout yours?"
exec 7>var/run.lock
flock -n 7 || die "make run is at work in this checkout already"

# Ports. Node, which the servers need anyway, asks the kernel; a look at who listens would be a guess.
busy=$(node -e '
    const ports = process.argv.slice(1);
    const next = () => {
        const port = ports.shift();
        if (port === undefined) return;
        if (!/^[0-9]+$/.test(port) || +port < 1 || +port > 65535) {
            console.log(`${port} is no port number`);
            return next();
        }
        const server = require("net").createServer();
        server.on("error", e => { console.log(`port ${port}: ${e.code == "EADDRINUSE" ? "in use" : e.message}`); next(); });
        server.listen({port: +port, host: "127.0.0.1"}, () => server.close(next));
    };
    next();' "$PORT" "$primary_port" "$replica_port") || die "node is missing: run scripts/setup.sh"
[ -z "$busy" ] || die "$busy
Stop what listens there (ss -ltnp shows it), or choose others: make run PORT=8010 CHROMA_PORTS='8011 8012'"

# ---- processes -----------------------------------------------------------------------------------
# pid[NAME] of what runs, name_of[PID] the other way; a restart is a child too, that only sleeps.
declare -A pid=() name_of=()

# Their own session: Ctrl-C reaches only us, who stop them in order. They die with us, whatever kills us.
spawn() { # spawn NAME SIGNAL COMMAND...
    local name=$1 signal=$2
    shift 2
    [ ! -s "var/log/$name.log" ] || [ -n "${seen[$name]:-}" ] || mv "var/log/$name.log" "var/log/$name.log.1"
    seen[$name]=1
    setsid setpriv --pdeathsig "$signal" "$@" </dev/null >>"var/log/$name.log" 2>&1 7>&- &
    pid[$name]=$!
    name_of[$!]=$name
}
declare -A seen=()

begin() { # begin NAME
    case $1 in
    postgres) spawn postgres INT scripts/pg.sh run var/pg ;;
    primary) spawn primary KILL scripts/chroma.sh start "$primary_port" var/primary ;;
    replica) spawn replica KILL scripts/chroma.sh start "$replica_port" var/replica ;;
    chromux)
        spawn chromux TERM env "PORT=$PORT" "PRIMARY_URL=http://127.0.0.1:$primary_port" \
            "REPLICA_URL=http://127.0.0.1:$replica_port" "DATABASE_URL=$database" "$CHROMUX" run
        echo "${pid[chromux]}" >$pid_file
        ;;
    esac
}

answers() { # answers NAME
    case $1 in
    postgres) scripts/pg.sh ready var/pg ;;
    primary) curl -fs -m 2 -o var/answer "http://127.0.0.1:$primary_port/api/v2/heartbeat" ;;
    replica) curl -fs -m 2 -o var/answer "http://127.0.0.1:$replica_port/api/v2/heartbeat" ;;
    chromux) # and its journal takes writes
        curl -fs -m 2 -o var/answer "http://127.0.0.1:$PORT/status" && grep -q '"state":"on"' var/answer
        ;;
    esac 7>&-
}

alive() { [ -n "${pid[$1]:-}" ] && kill -0 "${pid[$1]}" 2>/dev/null; }

last_lines() {
    say "its last lines (var/log/$1.log):"
    tail -n 15 "var/log/$1.log" | sed 's/^/    /' >&2
}

await() { # await NAME: until it answers
    local end=$((SECONDS + 60))
    until answers "$1"; do
        if ! alive "$1"; then
            say "chromux: $1 ended instead of answering"
        elif [ $SECONDS -ge $end ]; then
            say "chromux: $1 did not answer within 60 s"
        else
            sleep 0.1
            continue
        fi
        last_lines "$1"
        stop_all
        exit 1
    done
}

# end_all SECONDS SIGNAL NAME...: the signal to each, KILL to those that are there after the time.
end_all() {
    local deadline=$((SECONDS + $1)) signal=$2 name
    shift 2
    for name; do alive "$name" && kill "-$signal" "${pid[$name]}" 2>/dev/null; done
    for name; do
        while alive "$name"; do
            if [ $SECONDS -ge $deadline ]; then
                kill -KILL "${pid[$name]}" 2>/dev/null
                deadline=$((SECONDS + 5))
            fi
            sleep 0.05
        done
    done
}

# chromux first, so that it drains into servers that still run. The newest Chroma ignores TERM.
stop_all() {
    trap 'for p in "${pid[@]}"; do kill -KILL "$p" 2>/dev/null; done' INT TERM HUP
    local p
    for p in "${!name_of[@]}"; do
        case ${name_of[$p]} in again:*) kill "$p" 2>/dev/null ;; esac
    done
    end_all 15 TERM chromux
    end_all 3 TERM primary replica
    end_all 20 INT postgres
    rm -f $pid_file var/answer
}
leave() {
    echo
    echo "stopping"
    stop_all
    exit "$1"
}
trap 'leave 130' INT
trap 'leave 143' TERM
trap 'leave 129' HUP

# ---- start ---------------------------------------------------------------------------------------
database=$(scripts/pg.sh url var/pg 7>&-) || exit 1
for name in postgres primary replica; do begin $name; done
for name in postgres primary replica; do await $name; done
begin chromux
await chromux

cat <<END
chromux answers on http://127.0.0.1:$PORT, in front of Chroma on $primary_port and $replica_port. Ctrl-C stops everything. Try:
  curl http://127.0.0.1:$PORT/status
  python3 -c 'import chromadb; print(chromadb.HttpClient(host="127.0.0.1", port=$PORT).list_collections())'
  edit policies/route.lua, then: make reload
END

while :; do
    gone=
    wait -n -p gone "${!name_of[@]}"
    status=$?
    [ -n "$gone" ] || continue # a signal, its trap was run
    name=${name_of[$gone]}
    unset "name_of[$gone]"
    case $name in
    chromux)
        say "chromux ended (exit code $status)"
        last_lines chromux
        stop_all
        exit 1
        ;;
    again:*)
        say "starting ${name#again:} again"
        begin "${name#again:}"
        ;;
    *)
        unset "pid[$name]"
        say "$name ended (exit code $status); it is started again in $RESTART_AFTER s"
        last_lines "$name"
        sleep "$RESTART_AFTER" 7>&- &
        name_of[$!]=again:$name
        ;;
    esac
done
