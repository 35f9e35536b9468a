#!/bin/sh
# The house: includes go to lower floors only (so there is no circle), the five files of the
# specification hold no plumbing, and no function stands where nothing calls it.
#
#     sh tests/house.sh
set -eu
cd "$(dirname "$0")/.."
mkdir -p build

# From the ground up; what a room has beside FILE.c and FILE.h (private headers) stands in brackets.
floors='base
elementary linalg hooks shard
json zip unicode(unicode_tables.h)
tensor pixels
checkpoint kernels(kernelset.h) png jpeg tokenizer
image kernels_simd(simd.h)
vit llm sae
model_load sae_load
data task
adapter sage
run_mapping run_sage
figure
folder
report
dump info
selftest
bench vectors
main'
bad=0
complain() { echo "house: $*"; bad=1; }

# FLOOR ROOM FILE for every source file of the root.
rooms=$(echo "$floors" | awk '{
    for (i = 1; i <= NF; i++) {
        n = split($i, part, /[(),]/)
        print NR, part[1], part[1] ".c"; print NR, part[1], part[1] ".h"
        for (k = 2; k <= n; k++) if (part[k] != "") print NR, part[1], part[k]
    }}')

for file in *.c *.h; do
    echo "$rooms" | grep -q " $file\$" || complain "$file has no floor"
done
[ "$(ls ./*.c | wc -l)" -le 36 ] || complain "more than 36 rooms"

# An include of the project must lie on a lower floor, or be of the same room.
grep -Hn '^ *# *include *"' ./*.c ./*.h | sed 's|^\./||' | {
    up=0
    while IFS= read -r line; do
        file=${line%%:*}
        to=$(echo "$line" | sed 's/.*"\(.*\)".*/\1/')
        case $to in tasks.h | selftest_files.h | page_style.h | page_text.h | formats.h) continue ;; esac
        verdict=$(echo "$rooms" | awk -v from="$file" -v to="$to" '
            $3 == from { f = $1; fr = $2 }
            $3 == to { t = $1; tr = $2 }
            END { print (t != "" && (fr == tr || t < f)) ? "ok" : "up" }')
        [ $verdict = ok ] || { echo "house: $file includes $to, which is not on a lower floor"; up=1; }
    done
    exit $up
} || bad=1

# The floor that a file gives itself.
grep -Ho 'Floor [0-9]*' ./*.c ./*.h | sed 's|^\./||; s/:Floor / /' | while read -r file floor; do
    echo "$rooms" | grep -q "^$floor [a-z_]* $file\$" || echo "house: $file is not on floor $floor"
done >build/floors.txt
cat build/floors.txt
[ ! -s build/floors.txt ] || bad=1
! grep -n 'Floor$' ./*.c ./*.h || complain "a floor is broken across lines"

# The specification: formulas alone.
for file in llm.c vit.c sae.c adapter.c sage.c; do
    ! grep -n 'fopen\|file_map\|out_open\|json_\|progress_\|fprintf\|printf(' $file || complain "$file holds plumbing"
    [ "$(wc -l <$file)" -le 1650 ] || complain "$file is longer than 1,650 lines"
done

# One word for one thing: no type and no function within a file has a name that another file uses for
# its own (the two files of kernels, where each form of an operation has its name, apart).
for file in ./*.c ./*.h; do
    {
        sed -n 's/^} \([A-Z][A-Za-z0-9]*\);$/type \1/p' "$file"
        sed -n 's/^\(REFSAE_NORETURN \)*static [a-zA-Z_].*[ *]\([a-z][a-z_0-9]*\)(.*/function \2/p' "$file"
    } | sort -u | grep -v "^$" | sed "s|$| $file|"
done | grep -v kernels_simd | sort | awk '
    $1 " " $2 == last { print "house: " $1 " " $2 " in " file " and " $3 }
    { last = $1 " " $2; file = $3 }' >build/names.txt
cat build/names.txt
[ ! -s build/names.txt ] || bad=1

# What a header declares is called: by another file, the tests among them, or by a macro beside it.
for header in *.h; do
    room=${header%.h}
    awk '/^[a-zA-Z].*[ *][a-z][a-z0-9_]*\(/ && !/^(typedef|static|INLINE|#|extern)/ {
        sub(/\(.*/, ""); sub(/.*[ *]/, ""); print }' "$header" |
        while read -r name; do
            grep -lw "$name" ./*.c ./*.h tests/*.c | grep -v "^./$room\.[ch]\$" | grep -q . ||
                [ "$(grep -cw "$name" "$header")" -gt 1 ] || echo "house: $header: nothing calls $name"
        done
done >build/house.txt
cat build/house.txt
[ ! -s build/house.txt ] || bad=1

# Lines of at most 100 columns.
awk 'length($0) > 100 { print "house: " FILENAME ":" FNR ": " length($0) " columns" }' ./*.c ./*.h >build/wide.txt
cat build/wide.txt
[ ! -s build/wide.txt ] || bad=1

# The README counts what there is.
sh tests/supported.sh count | while IFS= read -r line; do
    grep -qF "$line" README.md || echo "house: README.md does not say: $line"
done >build/counts.txt
cat build/counts.txt
[ ! -s build/counts.txt ] || bad=1

[ $bad = 0 ] && echo "house: in order"
exit $bad
