#!/bin/sh
# Installs what is missing: with apt, as root or through sudo; what would start a service of its own
# on this machine (PostgreSQL, Prometheus, nginx, HAProxy) is unpacked into a private folder instead.
# Says nothing and needs no network when nothing is missing.
#
# usage: setup.sh [run|test|fuzz|bench]     run: what `make run` needs (default); the others add to it
#        setup.sh bin                       prints the folder of programs that were unpacked
set -eu
. "$(dirname "$0")/lib.sh"
here=$(cd "$(dirname "$0")" && pwd)
goal=${1:-run}

packages="build-essential ca-certificates curl pkg-config openssl tzdata util-linux procps
    libluajit-5.1-dev libev-dev libcurl4-openssl-dev libpq-dev libc-ares-dev lua-cjson"
case $goal in
run) ;;
test) packages="$packages luajit libcmocka-dev lua-busted lua-check clang-format-14 node-llhttp" ;;
fuzz) packages="$packages clang-14 libclang-rt-14-dev llvm-14 node-llhttp" ;;
bench) packages="$packages luajit wrk" ;;
bin)
    echo "$CACHE/bin"
    exit
    ;;
*) die "usage: scripts/setup.sh [run|test|fuzz|bench]" ;;
esac

# ---- apt -----------------------------------------------------------------------------------------
as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

# The lists are fetched once, and only when something is to be installed.
fresh=
apt_update() {
    [ -z "$fresh" ] || return 0
    as_root apt-get update -qq >&2 || die "apt-get update failed (above): is there a network, and is /etc/apt right?"
    fresh=yes
}

missing() { # missing PACKAGE...: those that are not installed
    for p in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || echo "$p"
    done
}

install() { # install PACKAGE...
    list=$(missing "$@" | tr '\n' ' ')
    [ -n "$list" ] || return 0
    command -v apt-get >/dev/null ||
        die "this set-up is for Debian. Install by other means what is called there: $list"
    if [ "$(id -u)" != 0 ] && ! { command -v sudo >/dev/null && sudo -v 2>/dev/null; }; then
        die "packages are missing, and I may not install them (not root, no sudo). As root: apt-get install --no-install-recommends $list"
    fi
    say "installing with apt: $list"
    apt_update
    # shellcheck disable=SC2086 # a list of words
    as_root apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 \
        -o Dpkg::Use-Pty=0 $list </dev/null >"$log" 2>&1 || {
        tail -n 15 "$log" >&2
        die "apt-get could not install the packages (above): is there a network, and is /etc/apt right?"
    }
}

# unpack FOLDER PACKAGE...: the packages' files under FOLDER, and the libraries they need installed.
# Nothing of theirs runs: no user, no cluster, no service.
unpack() {
    to=$1
    shift
    command -v apt-get >/dev/null || die "install by other means what Debian calls: $*"
    say "unpacking into $to: $*"
    mkdir -p "$to" || die "cannot create $to"
    rm -rf "$to/.debs"
    mkdir "$to/.debs"
    fetch="cd '$to/.debs' && apt-get download -qq -o APT::Sandbox::User= $*"
    sh -c "$fetch" >"$log" 2>&1 || { apt_update && sh -c "$fetch" >"$log" 2>&1; } || {
        tail -n 5 "$log" >&2
        die "apt-get could not download $*: is there a network, and is /etc/apt right?"
    }
    for deb in "$to"/.debs/*.deb; do
        # The first of alternatives, libraries only. LLVM is left out: PostgreSQL's JIT is off.
        # shellcheck disable=SC2046
        install $(dpkg-deb -f "$deb" Pre-Depends Depends | sed 's/^[A-Za-z-]*: //; s/ *([^)]*)//g' |
            tr ',' '\n' | sed 's/|.*//; s/ //g' | grep '^lib' | grep -v '^libllvm\|^libjs-')
        dpkg-deb -x "$deb" "$to" || die "cannot unpack $deb: is there space?"
    done
    rm -rf "$to/.debs"
}

# unpack_program NAME PACKAGE PATH: NAME as a link in $CACHE/bin (test.sh and bench put that into PATH)
unpack_program() {
    command -v "$1" >/dev/null && return
    [ -x "/usr/sbin/$1" ] && return
    [ -x "$CACHE/bin/$1" ] && return
    unpack "$CACHE/$2" "$2"
    mkdir -p "$CACHE/bin"
    ln -sf "$CACHE/$2/$3" "$CACHE/bin/$1"
}

mkdir -p "$CACHE" || die "cannot create $CACHE: set SETUP_CACHE to a folder that can be written"
exec 8>"$CACHE/setup.lock"
flock 8
log=$CACHE/setup.log

# shellcheck disable=SC2086
install $packages

# ---- PostgreSQL's server, unless the machine has one ---------------------------------------------
if ! pg_bin >/dev/null; then
    install tzdata
    version=$(apt-cache depends postgresql 2>/dev/null | sed -n 's/^ *Depends: postgresql-\([0-9]*\)$/\1/p' | head -n 1)
    if [ -z "$version" ]; then
        apt_update
        version=$(apt-cache depends postgresql | sed -n 's/^ *Depends: postgresql-\([0-9]*\)$/\1/p' | head -n 1)
    fi
    [ -n "$version" ] || die "apt knows no PostgreSQL server: is /etc/apt right?"
    rm -rf "$PG_HOME"
    unpack "$PG_HOME" "postgresql-$version" "postgresql-client-$version"
    pg_bin >/dev/null || die "the unpacked PostgreSQL in $PG_HOME is not whole"
fi

# ---- node and the Chroma servers -----------------------------------------------------------------
node_version() { node -p 'process.versions.node.split(".")[0]' 2>/dev/null || echo 0; }
if [ "$(node_version)" -lt 18 ]; then install nodejs; fi
[ "$(node_version)" -ge 18 ] || die "node 18 or later is needed; the one in PATH is $(node --version 2>/dev/null || echo missing)"
command -v npm >/dev/null || install npm
exec 8>&-
"$here/chroma.sh" fetch

case $goal in
test)
    unpack_program promtool prometheus usr/bin/promtool
    "$here/chroma.sh" js >/dev/null
    ;;
bench)
    unpack_program haproxy haproxy usr/sbin/haproxy
    unpack_program nginx nginx usr/sbin/nginx
    ;;
esac
