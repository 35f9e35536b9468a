#!/bin/sh
# slurm.sh PROGRAM: examples/parallel.sh by GNU parallel, and examples/slurm by a Slurm of its own (munged, slurmctld and
# slurmd on loopback, all files in one folder), leave the bytes of whole runs. What is not installed is skipped.
set -eu
REFSAE=$(realpath "$1")
export REFSAE
examples=$(realpath examples)
PATH=$PATH:/usr/sbin
dir=$(mktemp -d)
started=
finish() {
    [ -z "$started" ] || scancel --full --user="$(id -un)" 2>/dev/null || true
    for pid in $started; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$dir"
}
trap finish EXIT
ln -s "$(realpath weights)" "$dir/weights"
cd "$dir"

vlm="--llm weights/gemma2 --vision weights/clip --images weights/images"
tuned="$vlm --adapter whole/train/adapter.safetensors"
head -n 7 weights/questions.jsonl >questions.jsonl
cat >commands <<END
train $vlm --data weights/train.json --batch 3 --accumulate 2 --steps 4 --tokens 64 --wait 60
eval $tuned --questions questions.jsonl --max-new-tokens 3
analyze $tuned --saes weights/saes/gemma2 --data weights/heldout.json --examples 6 --max-frequency 1 --loss-examples 2
sage --llm weights/gpt2 --saes weights/saes/gpt2 --task ioi --train 12 --test 7
END
mkdir whole
out="run {#}" # nobody is to expand it
while read -r command options; do
    "$REFSAE" "$command" $options --out "$out" </dev/null >said 2>&1
    mv "$out" "whole/$command"
done <commands

installed() {
    for name; do
        command -v "$name" >/dev/null || { echo "skipped: $name is not installed"; return 1; }
    done
}
compare() { # STARTER
    while read -r command options; do
        "$examples/$1" 3 "$out" "$command" $options </dev/null >said 2>&1 || { cat said slurm-*.out; exit 1; }
        while [ -n "$started" ] && squeue -h 2>/dev/null | grep -q .; do sleep 0.2; done
        rm -r "$out"/shard-*
        diff -r -x timing.csv "$out" "whole/$command" || { cat slurm-*.out; exit 1; }
        rm -r "$out"
        echo "$1 $command: same bytes"
    done <commands
}

if installed parallel; then
    compare parallel.sh
fi
if installed munged slurmctld slurmd sbatch; then
    me=$(id -un)
    head -c 1024 /dev/urandom >key
    chmod 600 key
    munged --force --foreground --key-file="$dir/key" --socket="$dir/munge" --pid-file="$dir/munged.pid" \
        --seed-file="$dir/seed" >/dev/null 2>&1 &
    started=$!
    cat >slurm.conf <<END
ClusterName=refsae
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=socket=$dir/munge
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=4
PartitionName=all Nodes=ALL Default=YES State=UP
END
    export SLURM_CONF="$dir/slurm.conf"
    mkdir state spool
    for i in $(seq 100); do [ -S munge ] || sleep 0.1; done
    slurmctld -D >/dev/null 2>&1 &
    started="$started $!"
    slurmd -D >/dev/null 2>&1 &
    started="$started $!"
    if timeout 60 sh -c 'until sinfo -h -o %T 2>&1 | grep -qx idle; do sleep 0.2; done'; then
        compare slurm/submit.sh
    else
        tail ./*.log || true
        echo "skipped: Slurm's daemons do not start on this machine"
    fi
fi
