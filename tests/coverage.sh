#!/bin/sh
# coverage.sh BUILD: runs the tests of a build with Clang's -fcoverage-mapping and a short `make faults`,
# and prints for each file lines and branches. A branch is one outcome of one condition as it stands in
# the source: each operand of && and ||, each `if`, loop, ?: and case has two (GCC's counts hold those
# that a compiler makes). Code that is compiled more than once counts once, taken where it was; conditions
# within macros do not count.
#
# What no input can take is named in tests/unreachable.txt: "FILE: CONDITION is true: never why", or "is
# false". BUILD/missed.txt lists, by line, what neither a test takes nor that file names. The bars: nothing
# of the readers; 95 of 100 taken elsewhere.
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
"$export" export "$build/tests" -object "$build/refsae" -instr-profile="$build/profile" --skip-functions \
    --skip-expansions --ignore-filename-regex='tests/' | tr '[' '\n' >"$build/branches.txt"

awk -F '[],]' -v readers="$readers" -v missed="$build/missed.txt" '
    function trim(text) { gsub(/^ +| +$/, "", text); return text }
    function number(text) { return text ~ /^[0-9]+$/ }
    function named(text, from) {
        match(text, "\"" from "\":[{\"]?[^,\"}]*")
        text = substr(text, RSTART, RLENGTH)
        sub(/.*[:\/"]/, "", text)
        return text
    }
    FILENAME == "tests/unreachable.txt" {
        if (!/^#/) marked[substr($0, 1, index($0, ": never") - 1)] = 0
        next
    }
    # Line and column of where a condition begins and ends; how often it was true, and false.
    number($1) && number($9) { place[++n] = $1 " " $2 " " $3 " " $4; yes[n] = $5; no[n] = $6 }
    /"filename"/ {
        file = named($0, "filename")
        for (; n > 0; n--) {
            taken[file, place[n], "true"] += yes[n] > 0
            taken[file, place[n], "false"] += no[n] > 0
        }
    }
    /"summary"/ {
        match($0, /"lines":{"count":[0-9]+,"covered":[0-9]+/)
        split(substr($0, RSTART, RLENGTH), count, /[:,]/)
        lines[file] = count[3]
        seen[file] = count[5]
    }
    END {
        for (file in lines) for (n = 0; (getline line < file) > 0;) source[file, ++n] = line
        printf "" >missed
        for (key in taken) {
            split(key, part, SUBSEP)
            file = part[1]
            split(part[2], at, " ")
            text = substr(source[file, at[1]], at[2], at[1] == at[3] ? at[4] - at[2] : 999)
            text = trim(text) " is " part[3]
            branches[file]++
            if (taken[key]) took[file]++
            else if (file ": " text in marked) { never[file]++; marked[file ": " text]++ }
            else print file ":" at[1] ": " text >missed
        }
        printf "%-16s %8s %8s %9s %8s %8s %7s\n", "file", "lines", "%", "branches", "taken", "never", "%"
        split(readers, list, " ")
        for (i in list) reader[list[i] ".c"] = 1
        for (file in branches) {
            share = 100 * took[file] / (branches[file] - never[file])
            printf "%-16s %8d %8.1f %9d %8d %8d %7.1f%s\n", file, lines[file], 100 * seen[file] / lines[file],
                branches[file], took[file], never[file], share,
                share < (file in reader ? 100 : 95) ? "  below the bar" : "" | "sort"
            all += branches[file]; all_took += took[file]; out += never[file]
        }
        close("sort")
        printf "%-16s %8s %8s %9d %8d %8d %7.1f\n", "all", "", "", all, all_took, out, 100 * all_took / (all - out)
        for (text in marked) if (!marked[text]) { print "coverage: taken, or not there: " text; bad = 1 }
        exit bad
    }' tests/unreachable.txt "$build/branches.txt"
sort -t: -k1,1 -k2,2n -o "$build/missed.txt" "$build/missed.txt"
