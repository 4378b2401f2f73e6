#!/bin/sh
# Writes a C file that holds the given files (paths from the top folder, all under lua/) as bytes, under
# their names without "lua/": the table script_files of core/script.h.
set -eu
echo '#include "script.h"'
i=0
for f in "$@"; do
    printf '__asm__(".section .rodata\\nembed_%d: .incbin \\"%s\\"\\nembed_%d_end: .byte 0\\n.previous");\n' \
        "$i" "$f" "$i"
    printf 'extern const char embed_%d[], embed_%d_end[];\n' "$i" "$i"
    i=$((i + 1))
done
echo 'const struct script_file script_files[] = {'
i=0
for f in "$@"; do
    printf '    {"%s", embed_%d, embed_%d_end},\n' "${f#lua/}" "$i" "$i"
    i=$((i + 1))
done
echo '    {0, 0, 0},'
echo '};'
echo "const unsigned script_file_count = $i;"
