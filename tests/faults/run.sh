#!/bin/sh
# run.sh PROGRAM LIBRARY [BOUND [KILLS]]: each command on selftest's world, again and again, while the
# n-th allocation or system call of each kind fails (faults.c), for n = 1 .. BOUND and BOUND more, evenly
# spread (0: every n); training and analysis are killed and interrupted at these n, and killed at KILLS
# random moments; the disk is full or read-only, or takes no output. A run that fails ends
#   - with 2 or 3 and one sentence,
#   - with no file that is not whole, and nothing that is not freed,
#   - so that the same command then makes what an undisturbed one makes.
# One that does not fail has made that too: there the failure could not matter.
#
# Closed streams, limits on files and descriptors, two runs into one folder and folders that cannot be
# searched are in tests/test_program.c.
set -eu
golden=$(realpath "$(dirname "$0")/../golden")
program=$(realpath "$1")
library=$(realpath "$2")
bound=${3:-5}
kills=${4:-3}
cd "$(dirname "$library")"
rm -rf faults
mkdir -p faults/temporary
cd faults
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
bad=0 runs=0 harmless=0

complain() {
    bad=$((bad + 1))
    echo "faults: $*: exit $code"
    head -n 3 stderr
    head -n 3 differences
}

# attempt FAULT ARGUMENTS: `code`, files stdout, stderr and log.
attempt() {
    runs=$((runs + 1)) code=0
    fault=$1
    shift
    : >differences
    { FAULT=$fault FAULT_LOG=log LD_PRELOAD=$library "$program" "$@" --quiet --json --threads 1 <text >stdout 2>stderr || code=$?; } 2>/dev/null
}

# Times are never the same.
as_good() { cmp stdout good.stdout >differences 2>&1 && diff -rq -x timing.csv out good >>differences 2>&1; }
whole() {
    ! diff -rq -x timing.csv $stages out good 2>&1 | grep -v '^Only in good' >differences &&
        [ -z "$(find out -name '*.tmp')" ]
}
one_sentence() {
    case $(cat stderr) in "refsae: "*) [ "$(wc -l <stderr)" = 1 ] ;; *) false ;; esac
}
freed() { [ "$(sed -n 's/^live //p' log)" -le "$live" ]; }

# Once more, without a fault, into what is there.
later() {
    what=$1
    shift
    [ "$(ls -A out)" ] || return 0
    attempt none "$@"
    [ $code = 0 ] && as_good || complain "$what, then undisturbed: $*"
}

# numbers COUNT: the n to try.
numbers() {
    awk -v count="$1" -v bound="$bound" 'BEGIN {
        step = bound > 0 && count > 2 * bound ? (count - bound) / bound : 1
        for (n = 1; n <= count; n += n <= bound || bound == 0 ? 1 : step) printf "%d\n", n }'
}

# Failures that may be without effect: libc does without a buffer; nothing abandoned is found; a folder
# is there already; what was read is closed; some file systems cannot sync a folder.
may_pass=" alloc open read map close list look link mkdir seek settle "

check() {
    kind=${1%%:*}
    if [ $code = 0 ]; then
        harmless=$((harmless + 1))
        as_good || complain "$@"
        case $may_pass in *" $kind "*) ;; *) complain "no failure: $*" ;; esac
    else
        { [ $code = 2 ] || [ $code = 3 ]; } && one_sentence && whole && freed || complain "$@"
    fi
}

clean() { rm -rf out && mkdir out; }

# every ARGUMENTS: all that is above, for one command.
every() {
    clean
    attempt none "$@"
    [ $code = 0 ] || { complain "undisturbed: $*"; return; }
    rm -rf good
    cp -r out good
    cp stdout good.stdout
    cp log counts
    live=$(sed -n 's/^live //p' counts)
    while read -r kind count; do
        case $kind in live | kill | interrupt) continue ;; esac
        for n in $(numbers "$count"); do
            for onwards in "" +; do
                clean
                attempt "$kind:$n$onwards" "$@"
                check "$kind:$n$onwards" "$@"
                later "$kind:$n$onwards" "$@"
            done
        done
    done <counts
    # Output that nobody takes.
    if [ -s good.stdout ]; then
        code=0
        clean
        "$program" "$@" --quiet --json --threads 1 <text >/dev/full 2>stderr || code=$?
        [ $code = 3 ] && one_sentence || complain "/dev/full: $*"
    fi
    disks "$@"
}

# A disk of 4 KiB, and one that is read-only.
disks() {
    [ "$(ls -A good)" ] || return 0
    for disk in size=4k ro; do
        clean
        mount -t tmpfs -o $disk none out 2>/dev/null || { skipped=" (no disks: that takes root)"; return 0; }
        code=0
        "$program" "$@" --quiet --json --threads 1 <text >stdout 2>stderr || code=$?
        if [ $code = 0 ]; then # it fits
            [ $disk = size=4k ] && as_good
        else
            { [ $code = 2 ] || [ $code = 3 ]; } && one_sentence && whole
        fi || complain "disk $disk: $*"
        umount out
    done
}

# all ARGUMENTS: the same at every n, for what is soon done.
all() {
    some=$bound bound=0
    every "$@"
    bound=$some
}

# ended ARGUMENTS: killed and interrupted at calls, killed at moments; then once more.
ended() {
    for kind in kill interrupt; do
        for n in $(numbers "$(sed -n "s/^$kind //p" counts)"); do
            clean
            attempt $kind:$n "$@"
            [ $kind = kill ] || whole || complain "$kind:$n $*"
            case $code in 137 | 130) ;; *) complain "$kind:$n $*" ;; esac
            later $kind:$n "$@"
        done
    done
    for n in $(seq "$kills"); do
        clean
        "$program" "$@" --quiet --json --threads 1 <text >stdout 2>stderr &
        sleep "$(awk -v seed="$$$n" 'BEGIN { srand(seed); print 0.1 * rand() }')"
        kill -9 $! 2>/dev/null || :
        wait $! 2>/dev/null || :
        later "killed at a moment" "$@"
        runs=$((runs + 1))
    done
}

stages= # what is there in one form after another
echo '"So A B"' >text
TMPDIR=$PWD/temporary FAULT=keep LD_PRELOAD=$library "$program" selftest >stdout
mv temporary/* world
: >differences
seen="--llm world/gemma2 --vision world/clip --images world/images"
tuned="--adapter world/train/adapter.safetensors"

every tokenize world/gpt2
every hooks --llm world/gpt2
every info world/clip
every info world/images/c.jpg
all info world/questions.jsonl
every info world/saes_gpt2
every info "$golden/pth/projector_module.pth"
every info "$golden/sae/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_59"
every generate --llm world/gpt2 --prompt A --max-new-tokens 1
every dump --llm world/gpt2 --ids 5,9 --hooks logits --grad 2,3 --out out/x
all dump --image world/images/d.png --hooks image.rgb --out out/x
every diff world/gpt2.st world/gpt2.st
every report --out out/x world/train world/eval world/analyze world/sage
mkdir world/noted
printf '{"runs": {"a": {"inputs": [{"path": "text", "sha256": "%.64s"}], "outputs": []}}}' "$(sha256sum text)" \
    >world/noted/manifest.json
all verify world/noted
stages="-x checkpoint.safetensors -x train.csv"
train="train $seen --data world/data.json --out out/x --steps 2 --save-every 1 --batch 1 --accumulate 1 --tokens 60 --resume"
every $train
ended $train
stages=
every eval $seen $tuned --questions world/questions.jsonl --max-new-tokens 1 --out out/x
analyze="analyze $seen $tuned --saes world/saes_gemma2 --data world/data.json --out out/x --examples 1
    --loss-examples 1 --layers 0 --max-frequency 1"
every $analyze
ended $analyze
every sage --llm world/gpt2 --saes world/saes_gpt2 --task world/task.json --train 4 --test 2 --max-nodes 1 \
    --nodes z --out out/x

echo "faults: $runs runs${skipped:-}, in $harmless the failure was without effect, $bad complaints"
[ $bad = 0 ]
