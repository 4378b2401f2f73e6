#!/bin/sh
# What can be said about the sources without running them. One line per check: ok, failed or skipped
# and its name, below it what was found. Exits 1 when one failed.
set -u
cd "$(dirname "$0")/.." || exit 1
. scripts/lib.sh

failed=0
check() { # check NAME COMMAND...
    name=$1
    shift
    if found=$("$@" 2>&1); then
        echo "ok $name"
    else
        echo "failed $name"
        printf '%s\n' "$found" | head -n 40
        failed=1
    fi
}
# Files that are in git, or are new and not ignored.
files() { git ls-files --cached --others --exclude-standard -- "$@" | while read -r f; do [ -e "$f" ] && echo "$f"; done; }

# Other versions of clang-format lay some lines out differently.
format=$(command -v clang-format-14 || command -v clang-format)
case $("$format" --version 2>/dev/null) in
*'version 14.'*)
    # shellcheck disable=SC2046
    check format "$format" --dry-run -Werror $(files '*.c' '*.h')
    ;;
*) echo "skipped format: clang-format 14 is not installed (scripts/setup.sh test)" ;;
esac

if command -v luacheck >/dev/null; then
    # shellcheck disable=SC2046
    check luacheck luacheck -q --no-color $(files '*.lua')
else
    echo "skipped luacheck: not installed (scripts/setup.sh test)"
fi

check order scripts/order.sh

if command -v shellcheck >/dev/null; then
    # shellcheck disable=SC2046
    check shellcheck shellcheck -S warning -e SC2034,SC2046,SC2155,SC2206 -x -P SCRIPTDIR $(files '*.sh' .ci/run)
else
    echo "skipped shellcheck: not installed (apt-get install shellcheck)"
fi

exit "$failed"
