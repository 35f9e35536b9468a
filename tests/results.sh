#!/bin/sh
# The README's table of results, from what `make demo` leaves.
#
#     sh tests/results.sh [FOLDER]
set -eu
cd "${1:-demo}"

exact() { sed -n 's/.*"exact_match": \(.*\),/\1/p' "$1" | awk '{ printf "%.1f %%", 100 * $1 }'; }

echo '| | figure |'
echo '|---|---|'
echo "| questions about pictures, answered exactly | $(exact scores.json) |"
echo "| control: the same with image tokens of other pictures | $(exact permuted/scores.json) |"
echo
echo '| SAGE | cross-section | sufficiency: best dictionary, SAE, random | necessity: the same |'
echo '|---|---|---|---|'
for folder in sage-*; do
    awk -F, -v folder="$folder" '
        $3 == "" && ($6 == "sufficiency" || $6 == "necessity") {
            figure[$1, $2, $6] = $7 == "" ? "–" : sprintf("%.2f", $7)
            sub(/^-0.00$/, "0.00", figure[$1, $2, $6])
            if (!seen[$1]++) order[++n] = $1
        }
        function three(c, f) {
            return figure[c, "weighted", f] ", " figure[c, "sae", f] ", " figure[c, "random", f]
        }
        END {
            for (i = 1; i <= n; i++)
                printf "| %s | %s | %s | %s |\n", folder, order[i], three(order[i], "sufficiency"),
                    three(order[i], "necessity")
        }' "$folder/sage.csv"
done
