#!/bin/sh
# coverage.sh BUILD: runs the tests of a build with Clang's -fcoverage-mapping and a short `make faults`,
# and prints for each file lines and branches. A branch is one outcome of one condition as it stands in
# the source: each operand of && and ||, each `if`, loop, ?: and case has two (GCC's counts hold those
# that a compiler makes). Code that is compiled more than once counts once, taken where it was.
#
# Branches that no input can take are named in tests/unreachable.txt: "FILE: the line: why", where the
# line ends at ": never " and then the reason. BUILD/missed.txt lists those that neither a test takes nor
# that file names. The bars: none of these in the readers; 95 of 100 taken elsewhere.
set -eu
cd "$(dirname "$0")/.."
build=$1
readers="json tensor checkpoint zip png jpeg image tokenizer base"
suffix=$(clang --version | sed -n 's/.*version \([0-9]*\)\..*/-\1/p')
tool() { if command -v "$1" >/dev/null; then echo "$1"; else echo "$1$suffix"; fi; }
merge=$(tool llvm-profdata)
export=$(tool llvm-cov)
rm -rf "$build/profiles"
export LLVM_PROFILE_FILE="$PWD/$build/profiles/%4m.profraw"
REFSAE=$build/refsae "$build/tests" --jobs 2 >"$build/tests.txt" 2>&1 || { grep -v '^\[----\]' "$build/tests.txt"; exit 1; }
sh tests/faults/run.sh "$build/refsae" "$build/faults.so" "${FAULTS:-2}" 0
"$merge" merge -sparse "$build"/profiles/*.profraw -o "$build/profile"
"$export" export "$build/tests" -object "$build/refsae" -instr-profile="$build/profile" -format=lcov \
    --ignore-filename-regex='tests/' >"$build/lcov.txt"

awk -v readers="$readers" -v missed="$build/missed.txt" '
    function name(path) { sub(/.*\//, "", path); return path }
    function trim(text) { gsub(/^ +| +$/, "", text); return text }
    FILENAME == "tests/unreachable.txt" {
        if (/^#/ || !NF) next
        cut = index($0, ": never ")
        marked[trim(substr($0, 1, cut - 1))] = 0
        next
    }
    /^SF:/ { file = name(substr($0, 4)); for (n = 0; (getline line < file) > 0;) source[file, ++n] = trim(line); close(file) }
    /^DA:/ { split(substr($0, 4), at, ","); lines[file]++; seen[file] += at[2] > 0 }
    /^BRDA:/ {
        split(substr($0, 6), at, ",")
        key = file SUBSEP at[1] SUBSEP at[2] SUBSEP at[3]
        taken[key] = taken[key] || (at[4] != "-" && at[4] > 0)
    }
    END {
        printf "" >missed
        for (key in taken) {
            split(key, at, SUBSEP)
            file = at[1]
            branches[file]++
            text = file ": " source[file, at[2]]
            if (taken[key]) yes[file]++
            else if (text in marked) { never[file]++; marked[text]++ }
            else { no[file]++; print file ":" at[2] ": " source[file, at[2]] >missed }
        }
        printf "%-16s %8s %8s %9s %8s %8s %7s\n", "file", "lines", "%", "branches", "taken", "never", "%"
        split(readers, list, " ")
        for (i in list) reader[list[i] ".c"] = 1
        for (file in branches) {
            share = 100 * yes[file] / (branches[file] - never[file])
            printf "%-16s %8d %8.1f %9d %8d %8d %7.1f%s\n", file, lines[file], 100 * seen[file] / lines[file],
                branches[file], yes[file], never[file], share,
                share < (file in reader ? 100 : 95) ? "  below the bar" : "" | "sort"
            all += branches[file]; took += yes[file]; out += never[file]
        }
        close("sort")
        printf "%-16s %8s %8s %9d %8d %8d %7.1f\n", "all", "", "", all, took, out, 100 * took / (all - out)
        for (text in marked) if (!marked[text]) { print "coverage: taken, or not there: " text; bad = 1 }
        exit bad
    }' tests/unreachable.txt "$build/lcov.txt"
sort -t: -k1,1 -k2,2n -o "$build/missed.txt" "$build/missed.txt"
