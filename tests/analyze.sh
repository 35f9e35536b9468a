#!/bin/sh
# analyze.sh [FILE.c...]: what gcc -fanalyzer and clang-tidy (.clang-tidy) find in these files, by default
# all of the root. A finding that is no fault is named in tests/explained.txt: "FILE: the line: because
# why"; any other, and any explanation that explains nothing, ends with 1.
set -eu
cd "$(dirname "$0")/.."
command -v clang-tidy >/dev/null || { echo "analyze: no clang-tidy here"; exit 1; }
build=build
all=$#
[ $# -gt 0 ] || set -- $(ls ./*.c | sed 's|^\./||' | grep -v kernels_simd) # that file is made of macros
export flags="-std=c99 -D_POSIX_C_SOURCE=200809L -I$build -DKERNELS_SIMD"
printf '%s\n' "$@" | xargs -P "$(getconf _NPROCESSORS_ONLN)" -I FILE sh -c '
    gcc $flags -O1 -fanalyzer -c -o /dev/null FILE 2>&1 || echo "FILE:1:1: warning: gcc failed"
    clang-tidy -quiet FILE -- $flags 2>/dev/null || echo "FILE:1:1: warning: clang-tidy failed"' |
    sed -n "s|^$PWD/||; s|^\([a-z_]*\.[ch]\):\([0-9]*\):[0-9]*: warning: |\1 \2 |p" |
    LC_ALL=C sort -u >$build/findings.txt
awk -v all="$all" '
    function trim(text) { gsub(/^ +| +$/, "", text); return text }
    FILENAME == "tests/explained.txt" {
        if (/^#/) next
        cut = index($0, ": because ")
        if (cut > 0) explained[trim(substr($0, 1, cut - 1))] = 0
        next
    }
    {
        if (!($1 in read)) { read[$1] = 1; for (n = 0; (getline line < $1) > 0;) source[$1, ++n] = trim(line) }
        key = $1 ": " source[$1, $2]
        if (key in explained) { explained[key]++; fine++ }
        else { print key; print "    " $0; bad++ }
    }
    END {
        if (all == 0) for (key in explained) if (!explained[key]) { print "analyze: explains nothing: " key; bad++ }
        print "analyze: " fine + 0 " findings explained, " bad + 0 " not"
        exit bad > 0
    }' tests/explained.txt $build/findings.txt
