#!/bin/sh
# parallel.sh N OUT COMMAND OPTIONS...: refsae COMMAND OPTIONS... --out OUT as N shards at once by GNU parallel, and
# their merge. On several machines that share the folders: PARALLEL="--sshlogin a,b --workdir ." (see parallel(1)).
set -eu
[ $# -ge 3 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
n=$1 out=$2
shift 2
refsae=${REFSAE:-refsae}
line=
for word in "$refsae" "$@" --out "$out"; do # as lines to run: in arguments, parallel replaces {} and its kin
    line="$line '$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
done
for i in $(seq "$n"); do printf '%s\0' "$line --shard $i/$n"; done | parallel --null --halt now,fail=1 --jobs "$n"
"$refsae" merge "$out"
