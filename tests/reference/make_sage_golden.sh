#!/bin/sh
# What the reference finds on the toy models: tests/golden/sage/CASE/{prompts.jsonl,expected.json,expected.csv}.
# From ./refsae come the prompts, the list of nodes drawn for `others` and that of dropped values, nothing
# else; the numbers are those of a float64 model. Run in the root of the repository, after make.
set -eu
golden() {
    case=$1 model=$2 saes=$3 task=$4
    shift 4
    out=tests/golden/sage/$case run=$(mktemp -d)
    mkdir -p "$out"
    ./refsae sage --quiet --llm "weights/$model" --saes "$saes" --task "$task" \
        --out "$run" --train 48 --test 24 "$@"
    cp "$run/prompts.jsonl" "$out"
    python3 tests/reference/sage_reference.py --double --llm "weights/$model" --saes "$saes" \
        --task "tasks/$task.json" --prompts "$out/prompts.jsonl" --sage "$run/sage.json" \
        --cross "$run/cross_sections.csv" --out "$out" "$@"
    rm -r "$run"
}
golden gpt2 gpt2 weights/saes/gpt2 ioi
golden years gpt2 weights/saes/gpt2 greater-than --nodes z
golden gpt_neox gpt_neox weights/saes/gpt_neox agreement --nodes q,k,v,z,attn_out,mlp_out \
    --projection weights,encoder
golden gemma2 gemma2 weights/saes/gemma2 induction
python3 tests/reference/make_native_saes.py tests/golden/sage/native
golden native gpt2 tests/golden/sage/native/saes ioi --cross-sections tests/golden/sage/native/cross_sections.json
