# shellcheck shell=sh
# Shared by the scripts of this folder (sourced by sh and bash): how they speak, and where what was
# fetched is kept. CACHE outlives `make clean` and is shared by all checkouts of one user.

say() { printf '%s\n' "$*" >&2; }
die() {
    say "chromux: $*"
    exit 1
}

# Written by test.sh and dev.sh for what they start: chromux refuses CHROMUX_* names it doesn't know.
CACHE=${CACHE_FOLDER:-${SETUP_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/chromux}}

# PostgreSQL refuses to run as root, and root's home is closed to everybody else: root's private
# copy of the server lies where its unprivileged user gets to.
if [ "$(id -u)" = 0 ] && [ -z "${SETUP_CACHE:-}" ]; then
    PG_HOME=/var/cache/chromux/postgresql
else
    PG_HOME=$CACHE/postgresql
fi

# The folder of initdb, postgres and psql: the machine's newest PostgreSQL, else our private copy.
pg_bin() {
    for base in /usr "$PG_HOME/usr"; do
        for dir in $(printf '%s\n' "$base"/lib/postgresql/*/bin | sort -rV); do
            if [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ] && [ -x "$dir/psql" ]; then
                echo "$dir"
                return 0
            fi
        done
    done
    return 1
}
