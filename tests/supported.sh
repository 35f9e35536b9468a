#!/bin/sh
# What is supported: the goldens that the tests hold refsae to, by name, and who made them; or, for the README,
# how many.
#
#     sh tests/supported.sh [count]
set -eu
form=${1:-names}
cd "$(dirname "$0")/golden"

# The names on standard input, as one cell.
cell() { LC_ALL=C sort | if [ "$form" = count ]; then wc -l; else tr '\n' ' '; fi | sed 's/^ *//; s/ $//; s/ /, /g'; }
# A library's version in the metadata of a golden: version FILE LIBRARY
version() { head -c 2000 "$1" | grep -ao "\"$2\":\"[^\"]*\"" | head -1 | sed 's/":"/ /; s/"//g'; }
# A library's version in the heading of a script: made SCRIPT LIBRARY
made() { head -30 "../reference/$1" | grep -o "$2 [0-9][0-9.]*[0-9]" | head -1; }
row() { printf '| %s | %s | %s |\n' "$1" "$2" "$(cell)"; }

saes() { (cd "sae/$1" && find . -name 'expected*.safetensors' | sed 's|/expected[^/]*$||; s|^\./||' | sort -u); }
saelens=$(version sae/saelens/topk/expected.safetensors sae-lens)

echo '| what | equal to | cases |'
echo '|---|---|---|'
for f in models/*.safetensors; do basename "$f" .safetensors; done |
    row 'models: hook points and gradients' "$(version models/gpt2_odd.safetensors transformers)"
saes saelens | grep -v '^old_' | row 'SAEs of SAELens from 6.0' "$saelens"
saes saelens | grep '^old_' | row 'SAEs of SAELens before 6.0' "$saelens"
(cd sae && find gemma-scope* -name '*.npz' | sed 's|gemma-scope-2b-pt-||; s|/params.npz||') |
    row 'GemmaScope' "$saelens"
saes sparsify | row 'EleutherAI sparsify' "$(made make_sae_golden.py eai-sparsify)"
saes dictionary | sed 's|.*/\(.*/.*\)/\(.*\)$|\1/\2|' |
    row 'dictionary_learning' "$(made make_dictionary_golden.py dictionary-learning)"
(cd pth && ls | grep '\.pth*$') | row 'torch.save' "$(made make_pth_golden.py torch)"
(cd tensor && ls | grep -e npz -e safetensors -e shards) | row 'safetensors, npz' "$(made make_tensor_golden.py safetensors), numpy"
(cd tokenizer && ls | grep json) | sed 's/.json//' | row 'tokenizers' "$(cat tokenizer/VERSION)"
for kind in jpg png 'p[gp]m'; do
    (cd image && ls | grep "\.$kind$") | sed 's/\.jpg$//; s/\.png$//' |
        row "$(echo "$kind" | sed 's/jpg/JPEG/; s/png/PNG/; s/p\[gp\]m/PPM, PGM (P6, P5)/')" "$(made make_image_golden.py Pillow)"
done
sed 's/ .*//' image/settings.txt | sort -u | row 'preprocessor_config.json' "$(made make_image_golden.py transformers)"
find training -name expected.json | sed 's|training/||; s|/expected.json||' |
    row 'adapter training' "$(made make_training_golden.py torch)"
(cd sage && ls) | row 'SAGE' 'tests/reference/sage_reference.py'
