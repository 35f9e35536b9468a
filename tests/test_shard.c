/* Behaviour: a run shared out by --shard and brought together by merge leaves the whole run's
 * bytes; shards that do not belong together are refused. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scratch.h"

#define VLM "--llm weights/gemma2 --vision weights/clip --images weights/images"
#define TRAIN                                                                                      \
    "train " VLM " --data weights/train.json --batch 3 --accumulate 2 --steps 7 --tokens 64"
#define EVAL "eval " VLM " --adapter adapter --questions questions.jsonl --max-new-tokens 3"

static Arena *arena;

/* In a folder with the weights, an adapter, seven questions of which one has no picture, and as
 * many conversations. */
static void setup(void) {
    char here[1024];
    const char *name = getenv("REFSAE");
    arena = arena_new();
    folder_new();
    cr_assert_not_null(getcwd(here, sizeof here));
    cr_assert_eq(setenv("REFSAE", path_join(arena, here, name != NULL ? name : "refsae"), 1), 0);
    cr_assert_eq(symlink(path_join(arena, here, "weights"), in(folder, "weights")), 0);
    cr_assert_eq(chdir(folder), 0);
    cr_assert_eq(system("set -e; head -n 7 weights/questions.jsonl | "
                        "sed '3s/held_[0-9]*/nowhere/' >questions.jsonl\n"
                        "sed -n '2,8s/,$//p' weights/heldout.json >short.json\n"
                        "echo '{\"IO\": {\"nodes\": [{\"node\": \"blocks.1.attn.hook_z\", "
                        "\"head\": 0, \"position\": \"END\"}]}}' >readers.json\n"
                        "$REFSAE " TRAIN
                        " --quiet --out made && mv made/adapter.safetensors adapter"),
                 0);
}

static void teardown(void) {
    cr_assert_eq(chdir("/"), 0);
    folder_remove();
    arena_free(arena);
}

TestSuite(shard, .init = setup, .fini = teardown, .timeout = 900);

/* Runs a script of sh; its exit code. */
static int shell(const char *format, const char *command) {
    char *script = arena_format(arena, format, command);
    return system(arena_format(arena, "exec >stdout 2>stderr\n%s", script)) >> 8;
}

static bool says(const char *text) {
    return strstr(read_text(arena, "stderr"), text) != NULL;
}

static void same_bytes(const char *command) {
    cr_assert_eq(
        shell("set -e\ncommand='%s'\n"
              "$REFSAE $command --out run >found\n"
              "mv run whole\n"
              "for n in 1 2 3 5; do\n"
              "    for i in $(seq $n); do $REFSAE $command --out run --shard $i/$n & done\n"
              "    wait\n"
              "    $REFSAE merge run >merged\n"
              "    cmp found merged\n"
              "    rm -r run/shard-*\n"
              "    diff -r -x timing.csv run whole\n"
              "    rm -r run\n"
              "done\n",
              command),
        0, "%s%s", read_text(arena, "stdout"), read_text(arena, "stderr"));
}

Test(shard, train) {
    same_bytes(TRAIN);
}

Test(shard, train_by_epochs) {
    same_bytes("train " VLM " --data short.json --batch 4 --accumulate 1 --epochs 2 --tokens 64");
}

Test(shard, eval) {
    same_bytes(EVAL);
}

Test(shard, eval_with_permuted_images) {
    same_bytes(EVAL " --permute-images --temperature 0.7");
}

Test(shard, analyze) {
    same_bytes("analyze " VLM " --adapter adapter --saes weights/saes/gemma2 --data short.json "
               "--descriptions weights/descriptions --max-frequency 0.4 --max-density 0.5 "
               "--loss-examples 3 --write-questions run/judge.jsonl");
}

Test(shard, sage) {
    same_bytes("sage --llm weights/gpt2 --saes weights/saes/gpt2 --task ioi --train 12 --test 7");
}

Test(shard, sage_of_given_cross_sections) {
    same_bytes("sage --llm weights/gpt2 --saes weights/saes/gpt2 --task ioi --train 12 --test 6 "
               "--cross-sections readers.json");
}

/* A worker that dies is told; those that are started again end as if none had died. */
Test(shard, train_killed_and_started_again) {
    const char *form =
        "set -e\ncommand='%s'\n"
        "$REFSAE $command --out run\nmv run whole\n"
        "$REFSAE $command --out run --shard 2/2 --quiet &\n"
        "other=$!\n"
        "$REFSAE $command --out run --shard 1/2 --wait 1 --quiet 2>told &\n"
        "while [ ! -e run/shard-2-of-2/checkpoint.safetensors ]; do sleep 0.01; done\n"
        "kill -9 $other\n"
        "if wait $!; then exit 3; fi\n"
        "grep 'step-.*: shard 2 of 2 left no such file within 1 s' told\n"
        "$REFSAE $command --out run --shard 1/2 &\n"
        "$REFSAE $command --out run --shard 2/2 &\n"
        "wait\n"
        "$REFSAE merge run\nrm -r run/shard-*\n"
        "diff -r -x timing.csv run whole\n";
    cr_assert_eq(shell(form, "train " VLM " --data weights/train.json --batch 4 --accumulate 1 "
                             "--steps 60 --tokens 64"),
                 0, "%s%s", read_text(arena, "stdout"), read_text(arena, "stderr"));
}

Test(shard, what_does_not_belong_together_is_refused) {
    static const struct {
        const char *script, *sentence;
    } cases[] = {
        {"", "run/shard-2-of-2/journal: shard 2 of 2 left no such file: if it runs no more"},
        {"$REFSAE $command --max-new-tokens 4 --out run --shard 2/2",
         "run/shard-2-of-2/journal: was made with '--max-new-tokens 4', this run has "
         "'--max-new-tokens 3'"},
        {"$REFSAE $command --out run --shard 2/3", "run: holds shards of 2 and of 3"},
        {"mv run/shard-1-of-2 run/shard-1-of-2.bak", "run: holds no shard-1-of-N"},
        {"rm -r run/shard-*", "run: holds no shard-1-of-N, as --shard 1/N --out run leaves it"},
        {"$REFSAE $command --out run --shard 2/2; truncate -s -1 run/shard-2-of-2/journal",
         "run/shard-2-of-2/journal: is damaged"},
        {"$REFSAE $command --out run --shard 2/2; echo >>run/shard-2-of-2/journal",
         "run/shard-2-of-2/journal: is damaged"},
        {"mv run/shard-1-of-2 run/shard-2-of-2; $REFSAE $command --out run --shard 1/2",
         "run/shard-2-of-2/journal: is not of shard 2 of 2"},
        {"cp -r run/shard-1-of-2 run/shard-2-of-2; echo refsae-0 >run/shard-2-of-2/journal",
         "run/shard-2-of-2/journal: not a journal of this program"},
        {"mkdir run/shard-2-of-2; echo >run/shard-2-of-2/journal",
         "run/shard-2-of-2/journal: ends early: not what this run would have left"},
        {"echo >>questions.jsonl; $REFSAE $command --out run --shard 2/2",
         "run/shard-1-of-2/journal: was made with '--questions questions.jsonl of SHA-256 "},
    };
    cr_assert_eq(shell("%s", "$REFSAE " EVAL " --out first --shard 1/2"), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_assert_eq(shell("rm -rf run; cp -r first run; command='" EVAL "'; %s\n$REFSAE merge run",
                           cases[i].script),
                     2, "%zu", i);
        cr_assert(says(cases[i].sentence), "%s", read_text(arena, "stderr"));
        cr_assert(access("run/scores.json", F_OK) != 0);
    }
}

Test(shard, options_are_checked) {
    static const char *const parts[] = {"0/2", "3/2", "1", "1/2x", "x", "1/0"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        cr_assert_eq(shell("$REFSAE " EVAL " --out run --shard %s", parts[i]), 2);
        cr_assert(says("expected I/N"), "%s", read_text(arena, "stderr"));
    }
    cr_assert_eq(shell("%s", "$REFSAE " TRAIN " --out run --shard 1/2 --wait -1"), 2);
    cr_assert(says("--wait -1: expected at least 0"));
    cr_assert_eq(shell("%s", "$REFSAE " EVAL " --out run --shard 1/1; $REFSAE merge run --seed 7"),
                 2);
    cr_assert(says("was made with '--seed 475', this run has '--seed 7'"));
    /* workers whose settings differ find each other out */
    cr_assert_eq(shell("%s",
                       "$REFSAE " TRAIN " --out run --shard 1/2 --lr 1e-3 --wait 60 &\n"
                       "$REFSAE " TRAIN " --out run --shard 2/2 --lr 2e-3 --wait 60; wait $!"),
                 2);
    cr_assert(says("step-1: was made with '--lr "), "%s", read_text(arena, "stderr"));
}
