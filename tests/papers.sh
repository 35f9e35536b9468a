#!/bin/sh
# PAPERS.md against the code: every `file.c: function` that it names is defined there, in the
# specification and the kernels below a comment.
#
#     sh tests/papers.sh
set -eu
cd "$(dirname "$0")/.."
mkdir -p build
grep -o '`[a-z_0-9]*\.[ch]: [a-z_0-9]*`' PAPERS.md | tr -d '`' | LC_ALL=C sort -u | sed 's/: / /' |
    while read -r file function; do
        [ -f "$file" ] || { echo "papers: no file $file"; continue; }
        awk -v file="$file" -v name="$function" '
            $0 ~ "^[a-zA-Z].*[ *]" name "\\(" && !/^(return|typedef|extern)/ {
                found = 1; signature = 1; told = before ~ /\*\/[ ]*$/ }
            signature && /;[ ]*$/ && !/\{/ { found = 0; signature = 0 } # only declared here
            signature && /\{[ ]*$/ { signature = 0; if (told) good = 1; defined = 1 }
            NF { before = $0 }
            END { if (!defined) print "papers: " file " has no function " name
                  else if (!good && file ~ /^(llm|vit|sae|adapter|sage|kernels)\.c$/) print "papers: " file ": no comment above " name }' "$file"
    done >build/papers.txt
cat build/papers.txt
[ ! -s build/papers.txt ] || exit 1
echo "papers: $(grep -o '`[a-z_0-9]*\.[ch]: [a-z_0-9]*`' PAPERS.md | sort -u | wc -l) functions, all there"
