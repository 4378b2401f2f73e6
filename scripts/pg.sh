#!/bin/sh
# A private PostgreSQL cluster: owned by nobody but us, reached only through its Unix socket, with no
# effect on a cluster that the machine may have.
#
#   pg.sh start DIR   creates the cluster if need be, starts it, prints its DATABASE_URL
#   pg.sh run DIR     the same in the foreground: this process becomes the server, and stops with its
#                     parent; prints nothing
#   pg.sh url DIR     prints the DATABASE_URL
#   pg.sh ready DIR   exits 0 once the server answers
#   pg.sh stop DIR    stops it; the data stays
#   pg.sh drop DIR    stops it and removes the data
#   pg.sh bin         prints the folder of the server's programs
#
# PG_FSYNC=off makes a cluster for tests, that need not survive a power cut.
#
# PostgreSQL refuses to run as root. Root's clusters run as `postgres`, or `nobody` where that user
# doesn't exist. DIR may lie where that user can't go (/root): the cluster then lies in
# /var/tmp/chromux-HASH, HASH being of DIR's path. The socket's whole path has to fit into 107 bytes:
# under a deep DIR it lies in XDG_RUNTIME_DIR or /tmp.
set -eu
. "$(dirname "$0")/lib.sh"

usage() { die "usage: scripts/pg.sh start|run|url|ready|stop|drop DIR, or bin"; }
bin=$(pg_bin) || die "no PostgreSQL server found: run scripts/setup.sh"
if [ "$*" = bin ]; then
    echo "$bin"
    exit
fi
[ $# = 2 ] || usage
action=$1
dir=$(mkdir -p "$2" && cd "$2" && pwd -P) || die "cannot create the folder $2"
name=chromux-$(printf %s "$dir" | sha256sum | cut -c1-12)

# What the caller's environment says about some other database is not for us.
unset PGHOST PGHOSTADDR PGPORT PGDATABASE PGUSER PGPASSWORD PGSERVICE PGOPTIONS PGDATA PGSSLMODE

# as CMD...: replaces this process by CMD, run by the cluster's owner.
if [ "$(id -u)" = 0 ]; then
    owner=nobody
    if id postgres >/dev/null 2>&1; then owner=postgres; fi
    as() { exec setpriv --reuid "$owner" --regid "$(id -g "$owner")" --clear-groups "$@"; }
else
    owner=$(id -un)
    as() { exec "$@"; }
fi
reaches() { (as test -x "$1"); }

reaches "$bin/postgres" || die "user $owner cannot reach $bin: put SETUP_CACHE where it can"
home=$dir
if ! reaches "$dir"; then
    home=/var/tmp/$name
    (umask 022 && mkdir -p "$home")
fi
{ [ ! -L "$home" ] && [ -O "$home" ]; } || die "$home belongs to somebody else: remove it"
sock=$home/socket
if [ "$(printf %s "$sock/.s.PGSQL.5432" | wc -c)" -gt 107 ]; then
    sock=${XDG_RUNTIME_DIR:-/tmp}/$name
    if [ "$(id -u)" = 0 ]; then sock=/tmp/$name; fi
fi
data=$home/data
url="postgresql://chromux@/chromux?host=$(printf %s "$sock" | sed 's/%/%25/g; s/ /%20/g')&port=5432"

own() { # own FOLDER: exists, belongs to the cluster's owner, closed to others
    [ -d "$1" ] || (umask 077 && mkdir "$1")
    if [ "$(id -u)" = 0 ]; then chown "$owner:" "$1"; fi
    { [ ! -L "$1" ] && [ "$(stat -c %U "$1")" = "$owner" ]; } ||
        die "$1 belongs to $(stat -c %U "$1"), not to $owner: was it made by another user? Remove it, or run as that one"
}

# Half a cluster is never taken for a whole one: it is made beside its place and then renamed.
create() {
    rm -rf "$data.new"
    own "$data.new"
    (as "$bin/initdb" -D "$data.new" -U chromux -A trust -E UTF8 --locale=C.UTF-8 --no-instructions \
        </dev/null >"$home/initdb.log" 2>&1) || die "initdb failed: $(tail -n 5 "$home/initdb.log")"
    echo "include = 'chromux.conf'" >>"$data.new/postgresql.conf"
    : >"$data.new/chromux.conf"
    echo 'create database chromux' |
        (as "$bin/postgres" --single -j -D "$data.new" postgres) >>"$home/initdb.log" 2>&1 ||
        die "cannot create the database: $(tail -n 5 "$home/initdb.log")"
    mv "$data.new" "$data"
}

prepare() {
    own "$sock"
    [ -e "$data/PG_VERSION" ] || create
    own "$data"
    have=$("$bin/postgres" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
    [ "$(cat "$data/PG_VERSION")" = "$have" ] ||
        die "the data in $data is of PostgreSQL $(cat "$data/PG_VERSION"), the server found is $have: install the former, or remove the data"
    cat >"$data/chromux.conf" <<END
# Written by scripts/pg.sh at each start.
listen_addresses = ''
unix_socket_directories = '$(printf %s "$sock" | sed "s/'/''/g")'
unix_socket_permissions = 0700
fsync = ${PG_FSYNC:-on}
jit = off
END
    chmod 644 "$data/chromux.conf"
}

cd /
up() { [ -e "$data/postmaster.pid" ] && (as "$bin/pg_ctl" -D "$data" status) >/dev/null 2>&1; }
down() {
    up || return 0
    (as "$bin/pg_ctl" -D "$data" -m fast -t 20 stop) >/dev/null 2>&1 ||
        (as "$bin/pg_ctl" -D "$data" -m immediate -t 10 stop) >/dev/null 2>&1 ||
        die "the PostgreSQL server of $data does not stop"
}
exec 9>"$home/lock"
flock 9

case $action in
start)
    if ! up; then
        prepare
        : >"$home/server.log"
        if [ "$(id -u)" = 0 ]; then chown "$owner:" "$home/server.log"; fi
        (as "$bin/pg_ctl" -D "$data" -l "$home/server.log" -t 60 start) </dev/null >/dev/null 2>&1 9>&- ||
            die "PostgreSQL does not start: $(tail -n 5 "$home/server.log")"
    fi
    echo "$url"
    ;;
run)
    down # what a killed run left behind
    prepare
    # Here, for a change of user clears the signal.
    as setpriv --pdeathsig INT "$bin/postgres" -D "$data" </dev/null 9>&-
    ;;
url) echo "$url" ;;
ready) [ "$("$bin/psql" -XAtqc 'select 1' "$url" 2>/dev/null)" = 1 ] ;;
stop) down ;;
drop)
    down
    rm -rf "$data" "$data.new" "$sock" "$home/server.log" "$home/initdb.log" "$home/lock"
    rmdir "$home" 2>/dev/null || true
    ;;
*) usage ;;
esac
