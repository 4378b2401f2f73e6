#!/bin/sh
# The include order of core/: a file includes only headers to its left in ORDER of the Makefile, or its
# own. So the modules form layers, and there is no cycle.
set -eu
cd "$(dirname "$0")/.."
order=${*:-$(make -s --no-print-directory print-ORDER)}

# shellcheck disable=SC2086
printf '%s\n' $order | awk '
    NR == FNR { place[$1] = NR; next }
    FNR == 1 {
        name = FILENAME
        gsub(/^core\/|\.[ch]$/, "", name)
        if (!(name in place)) {
            printf "%s: not in ORDER of the Makefile\n", FILENAME
            bad = 1
        }
    }
    /^[ \t]*#[ \t]*include[ \t]*"/ {
        split($0, part, "\"")
        header = part[2]
        sub(/\.h$/, "", header)
        if (!(header in place)) {
            printf "%s:%d: includes \"%s\", which is no module of ORDER\n", FILENAME, FNR, part[2]
            bad = 1
        } else if ((name in place) && place[header] > place[name]) {
            printf "%s:%d: includes \"%s\", which is to the right of %s in ORDER\n", FILENAME, FNR, part[2], name
            bad = 1
        }
    }
    END { exit bad }' - core/*.c core/*.h
