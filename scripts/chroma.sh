#!/bin/sh
# Real Chroma servers, from the native module inside Chroma's own npm packages. They are pinned, kept
# outside the checkout (lib.sh: CACHE) and checked: what is not whole is fetched again.
#
#   chroma.sh start PORT DIR    becomes a server on 127.0.0.1:PORT with its data in DIR
#   chroma.sh newest PORT DIR   the same with the newest server
#   chroma.sh fetch             fetches what `start` needs; fetch-newest: what `newest` needs
#   chroma.sh path              prints the path of the module, fetched if need be
#   chroma.sh js                prints a folder for NODE_PATH that holds the JavaScript client
#
# TEST_CHROMA=newest makes `start` mean `newest`.
#
# `npm install chromadb` is no way to get a server on Debian 12: it brings a module that needs glibc
# 2.39. 1.0.5 (Chroma 1.0.20) is the last one that needs no more than 2.34. Newer ones run with
# Debian 13's libc, laid beside the system's. The process that start and newest become is the server
# itself, so its pid can be signalled; newest (Chroma 1.5.9) does not end at SIGTERM, only at SIGKILL.
set -eu
. "$(dirname "$0")/lib.sh"
top=$(cd "$(dirname "$0")/.." && pwd)

package=chromadb-js-bindings-linux-x64-gnu
file=chromadb-js-bindings.linux-x64-gnu.node
# Of each version: dist.integrity of its package, and the size of the module in it.
pinned() {
    case $1 in
    1.0.5)
        sum=bIigJ+gyNZz8p3wr/zcJZTlKL7p2TVEyT7EfW9lWpdvkajPke8Q+b87aDJaPs6NuGxLcXxPHMRpS3zHWplZbdw==
        size=436910440 download=110
        ;;
    1.3.4)
        sum=HmTUe7PEIaBngCQ70Yyle81z2wYyg9OMgJYyRUNBYCBp4ED6zTmdaOro41Vs/c/h2UyQeBXFIKNmHDeD2Nr2fw==
        size=52902336 download=16
        ;;
    *) die "no pinned Chroma module $1" ;;
    esac
}

usage() { die "usage: scripts/chroma.sh start|newest PORT DIR, or fetch|fetch-newest|path|js"; }

lock() {
    mkdir -p "$CACHE" || die "cannot create $CACHE: set SETUP_CACHE to a folder that can be written"
    exec 9>"$CACHE/lock"
    flock -n 9 || { say "another set-up is at work; waiting for it" && flock 9; }
}
unlock() { exec 9>&-; }

# Whole: unpacked to the end from a package with the pinned sum (which `whole` then says), full size.
whole() {
    [ "$(cat "$CACHE/chroma/$1/whole" 2>/dev/null)" = "$sum" ] &&
        [ "$(stat -c %s "$CACHE/chroma/$1/$file" 2>/dev/null)" = "$size" ]
}

# Sets `module` to the path of a version's module.
need_module() {
    module=$CACHE/chroma/$1/$file
    pinned "$1"
    whole "$1" && return
    [ "$(uname -m)" = x86_64 ] || die "the pinned Chroma server is for x86-64, this machine is $(uname -m)"
    command -v npm >/dev/null || die "npm is missing: run scripts/setup.sh"
    lock
    if ! whole "$1"; then
        say "fetching Chroma's server module $1 ($download MB) into $CACHE"
        rm -rf "$CACHE/chroma/$1" "$CACHE/chroma/$1.new"
        mkdir -p "$CACHE/chroma/$1.new"
        (
            cd "$CACHE/chroma/$1.new"
            npm pack --loglevel=error --fetch-retry-mintimeout=1000 --fetch-retry-maxtimeout=5000 --cache ./npm "$package@$1" >npm.log 2>&1 || {
                tail -n 5 npm.log >&2
                die "npm could not fetch $package@$1: is there a network, and space in $CACHE?"
            }
            got=$(openssl dgst -sha512 -binary "$package-$1.tgz" | base64 -w0)
            [ "$got" = "$sum" ] ||
                die "what npm fetched for $package@$1 is not the pinned file (sha512 $got): try again"
            tar -xzf "$package-$1.tgz" --strip-components=1 "package/$file" ||
                die "cannot unpack $package@$1: is there space in $CACHE?"
            rm -rf npm npm.log "$package-$1.tgz"
            echo "$sum" >whole
        ) || exit 1
        mv "$CACHE/chroma/$1.new" "$CACHE/chroma/$1"
        whole "$1" || die "$module has not the size that was pinned"
    fi
    unlock
}

# Debian 13's libc and what belongs to it, unpacked: apt with lists and state of its own, so that the
# system's stay as they are. Sets `libc`.
need_libc() {
    libc=$CACHE/trixie-libc
    [ -e "$libc/whole" ] && return
    lock
    if [ ! -e "$libc/whole" ]; then
        say "fetching Debian 13's libc into $CACHE"
        rm -rf "$libc" "$libc.new"
        mkdir -p "$libc.new/apt/lists/partial" "$libc.new/apt/cache/archives/partial" "$libc.new/debs"
        (
            cd "$libc.new/debs"
            keys=/usr/share/keyrings/debian-archive-keyring.gpg
            echo "deb [signed-by=$keys] ${DEBIAN_MIRROR:-http://deb.debian.org/debian} trixie main" \
                >../apt/sources.list
            : >../apt/status
            private() {
                apt-get -qq -o "Dir::State=$libc.new/apt" -o "Dir::State::status=$libc.new/apt/status" \
                    -o "Dir::Cache=$libc.new/apt/cache" -o "Dir::Etc::sourceparts=-" \
                    -o "Dir::Etc::sourcelist=$libc.new/apt/sources.list" -o APT::Sandbox::User= "$@"
            }
            { private update && private download libc6 libgcc-s1 libstdc++6; } >../apt.log 2>&1 || {
                tail -n 5 ../apt.log >&2
                die "apt could not fetch Debian 13's libc: is there a network?"
            }
            for deb in *.deb; do dpkg-deb -x "$deb" ..; done
            rm -rf ../apt ../apt.log ../debs
            touch ../whole
        ) || exit 1
        mv "$libc.new" "$libc"
    fi
    unlock
}

check_place() { # check_place PORT DIR
    case $1 in '' | *[!0-9]*) usage ;; esac
    mkdir -p "$2" || die "cannot create $2"
    command -v node >/dev/null || die "node is missing: run scripts/setup.sh"
}
run='require(process.argv[1]).cli(["chroma", "run", ...process.argv.slice(2)])'

start() {
    need_module 1.0.5
    exec node -e "$run" "$module" --path "$2" --host 127.0.0.1 --port "$1"
}
newest() {
    need_module 1.3.4
    need_libc
    lib=$libc/usr/lib/x86_64-linux-gnu
    exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib" "$(readlink -f "$(command -v node)")" \
        -e "$run" "$module" --path "$2" --host 127.0.0.1 --port "$1"
}

# The client as tests/js/package-lock.json pins it, without the server modules it would bring.
need_js() {
    js=$CACHE/js-$(cat "$top/tests/js/package.json" "$top/tests/js/package-lock.json" | sha256sum | cut -c1-12)
    [ -e "$js/whole" ] && return
    lock
    if [ ! -e "$js/whole" ]; then
        command -v npm >/dev/null || die "npm is missing: run scripts/setup.sh test"
        rm -rf "$js" "$js.new"
        mkdir -p "$js.new"
        cp "$top/tests/js/package.json" "$top/tests/js/package-lock.json" "$js.new"
        (cd "$js.new" && npm ci --omit=optional --ignore-scripts --no-audit --no-fund --loglevel=error \
            >npm.log 2>&1) || {
            tail -n 5 "$js.new/npm.log" >&2
            die "npm could not fetch Chroma's JavaScript client: is there a network?"
        }
        touch "$js.new/whole"
        mv "$js.new" "$js"
    fi
    unlock
}

case ${1:-} in
start | newest)
    [ $# = 3 ] || usage
    check_place "$2" "$3"
    if [ "$1" = newest ] || [ "${TEST_CHROMA:-}" = newest ]; then newest "$2" "$3"; else start "$2" "$3"; fi
    ;;
fetch) need_module 1.0.5 ;;
fetch-newest) need_module 1.3.4 && need_libc ;;
path)
    need_module 1.0.5
    echo "$module"
    ;;
js)
    need_js
    echo "$js/node_modules"
    ;;
*) usage ;;
esac
