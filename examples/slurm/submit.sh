#!/bin/sh
# submit.sh N OUT COMMAND OPTIONS...: refsae COMMAND OPTIONS... --out OUT as a job array of N shards, and their merge behind
# it. Resources go by sbatch's variables: SBATCH_PARTITION, SBATCH_TIMELIMIT, SBATCH_MEM_PER_NODE ...
#
#     submit.sh 8 analysis analyze --llm gemma-2-2b-it --vision clip-vit-large-patch14 --adapter run/adapter.safetensors \
#         --saes gemma-scope-2b-pt-res --canonical --data llava_instruct.json --images DIR
#     submit.sh 8 ioi sage --llm gpt2 --saes gpt2-small-res-jb --task ioi
#     submit.sh 8 answers eval --llm gemma-2-2b-it ... --questions questions.jsonl --images DIR
#     submit.sh 8 run train --llm gemma-2-2b-it ... --data blip_laion_cc_sbu_558k.json --images DIR --wait 86400
#
# Shards of train wait for one another at each step, for --wait seconds: as many as the queue runs at once. The others are
# independent.
set -eu
n=$1 out=$2
shift 2
array=$(sbatch --parsable --array="1-$n" "$(dirname "$0")/shard.sh" "$n" "$@" --out "$out")
sbatch --dependency="afterok:$array" --kill-on-invalid-dep=yes --job-name=refsae-merge \
    --wrap "\"${REFSAE:-refsae}\" merge \"$out\""
