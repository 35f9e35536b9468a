#!/bin/sh
# run.sh: the proofs of this folder by CBMC 6: of each function, for every input of so many bytes, that no
# access is out of bounds, no number overflows, no assertion fails and no loop goes on.
set -eu
cd "$(dirname "$0")/../.."
cbmc=${CBMC:-cbmc}
command -v "$cbmc" >/dev/null || { echo "proofs: no cbmc here, skipped"; exit 0; }
bad=0
while read -r file function bytes unwind; do
    if "$cbmc" -I. -D_POSIX_C_SOURCE=200809L --drop-unused-functions --signed-overflow-check --slice-formula \
        --sat-solver cadical --function "$function" \
        --unwind "$unwind" -DBYTES="$bytes" "tests/proofs/$file.c" >build/proof.txt 2>&1; then
        echo "proved: $file.c: $function, $bytes bytes"
    else
        echo "not proved: $file.c: $function, $bytes bytes"
        grep FAILURE build/proof.txt || tail -n 3 build/proof.txt
        bad=1
    fi
done <<'LIST'
safetensors places 0 6
zip directory 21 30
zip directory 22 30
zip directory 64 70
zip directory 98 104
zip member 45 30
zip member 60 30
npz npz 12 16
npz npz 18 16
json escape 1 14
json escape 12 14
json number 6 9
LIST
exit $bad
