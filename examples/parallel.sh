#!/bin/sh
# parallel.sh N OUT COMMAND OPTIONS...: refsae COMMAND OPTIONS... --out OUT as N shards at once by GNU parallel, and
# their merge. On several machines that share the folders: PARALLEL="--sshlogin a,b --workdir ." (see parallel(1)).
set -eu
n=$1 out=$2
shift 2
refsae=${REFSAE:-refsae}
seq "$n" | parallel --quote --halt now,fail=1 --jobs "$n" "$refsae" "$@" --out "$out" --shard "{}/$n"
"$refsae" merge "$out"
