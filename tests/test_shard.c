/* Behaviour: a run shared out by --shard and brought together by merge leaves the whole run's
 * bytes; shards that do not belong together are refused. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scratch.h"
#include "shard.h"

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

/* The journal with more in it, and a SHA-256 of all that. */
static void lengthen(const char *path, const void *more, size_t size) {
    FileMap map = file_map(arena, path);
    const size_t kept = map.size - 64;
    unsigned char *all = arena_alloc(arena, kept + size, 1);
    char hex[65];
    Sha256 sha;
    memcpy(all, map.data, kept);
    memcpy(all + kept, more, size);
    sha256_start(&sha);
    sha256_add(&sha, all, kept + size);
    sha256_end(&sha, hex);
    OutFile *out = out_open(path);
    fwrite(all, 1, kept + size, out->stream);
    fwrite(hex, 1, 64, out->stream);
    out_commit(out);
}

Test(shard, journals_that_no_run_left_are_refused) {
    static const struct {
        size_t size, given;
    } blocks[] = {{SIZE_MAX, 8}, {9, 16}, {0, 3}};
    cr_assert_eq(shell("%s", "$REFSAE " EVAL " --out first --shard 1/1"), 0);
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        uint64_t block[2] = {blocks[i].size, 0};
        cr_assert_eq(shell("%s", "rm -rf run; cp -r first run"), 0);
        lengthen("run/shard-1-of-1/journal", block, blocks[i].given);
        cr_assert_eq(shell("%s", "$REFSAE merge run"), 2, "%zu", i);
        cr_assert(says("journal: ends early: not what this run would have left"), "%zu", i);
    }
    const char *train = "rm -rf run; command='" TRAIN " --steps 1 --out run --shard'\n"
                        "$REFSAE $command 1/2 & $REFSAE $command 2/2; wait $!";
    cr_assert_eq(shell("%s", train), 0);
    lengthen("run/shard-2-of-2/step-1", "x", 1);
    cr_assert_eq(
        shell("%s", "rm -r run/shard-1-of-2; $REFSAE " TRAIN " --steps 1 --out run --shard 1/2"),
        2);
    cr_assert(says("run/shard-2-of-2/step-1: goes on where this run ends"));
}

Test(shard, shards_that_left_other_files_are_refused) {
    static const char *const changes[] = {"printf x >>",
                                          "printf x | dd conv=notrunc status=none of="};
    cr_assert_eq(shell("%s", "$REFSAE " TRAIN " --steps 1 --out first --shard 1/2 &\n"
                             "$REFSAE " TRAIN " --steps 1 --out first --shard 2/2 && wait $!"),
                 0);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        cr_assert_eq(shell("rm -rf run; cp -r first run\n"
                           "%srun/shard-2-of-2/checkpoint.safetensors && $REFSAE merge run",
                           changes[i]),
                     2, "%zu", i);
        cr_assert(says("run/shard-2-of-2/checkpoint.safetensors: is not the same as "
                       "run/shard-1-of-2/checkpoint.safetensors"),
                  "%s", read_text(arena, "stderr"));
        cr_assert(access("run/checkpoint.safetensors", F_OK) != 0);
    }
}

Test(shard, first_lines_that_differ) {
    static const struct {
        const char *a, *b, *left, *right;
    } cases[] = {{"", "", NULL, NULL},
                 {"1\n2\n", "1\n2\n", NULL, NULL},
                 {"1\n2", "1\n2\n", NULL, NULL},
                 {"1\n2\n", "1\n3\n", "2", "3"},
                 {"1\n23\n", "1\n2\n", "23", "2"},
                 {"1\n", "1\n2\n3\n", "", "2"},
                 {"1\n2\n", "", "1", ""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *a = cases[i].a, *b = cases[i].b;
        int n, m;
        cr_assert_eq(lines_differ(&a, &b, &n, &m), cases[i].left != NULL, "%zu", i);
        if (cases[i].left != NULL) {
            cr_assert_str_eq(arena_copy(arena, a, (size_t)n), cases[i].left);
            cr_assert_str_eq(arena_copy(arena, b, (size_t)m), cases[i].right);
        }
    }
}

static const char *digest_of(const char *path) {
    char hex[65];
    path_digest(path, hex);
    return arena_copy(arena, hex, 64);
}

/* What settings name a folder by: not by what is no file, nor by the beginning of a long one. */
Test(shard, digest_of_a_folder) {
    cr_assert_eq(shell("%s", "mkdir -p a/b; head -c 9000 /dev/zero >a/b/long; echo 1 >a/short"), 0);
    const char *before = digest_of("a");
    cr_assert_eq(symlink("a", "link"), 0);
    cr_assert_str_eq(digest_of("link"), before);
    cr_assert_eq(shell("%s", "printf x | dd of=a/b/long conv=notrunc status=none"), 0);
    cr_assert_str_eq(digest_of("a"), before, "only the end of what is long is read");
    static const char *const changes[] = {
        "printf x | dd of=a/b/long conv=notrunc seek=8999 bs=1 status=none",
        "echo 2 >a/short",
        "printf x >>a/b/long",
        "mkfifo a/pipe",
        "ln -s nowhere a/broken",
        "ln -s .. a/b/up",
        "ln -s ../questions.jsonl a/file",
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        cr_assert_eq(shell("%s", changes[i]), 0);
        const char *after = digest_of("a");
        cr_assert(strcmp(after, before) != 0, "%s", changes[i]);
        before = after;
    }
    cr_assert_eq(shell("%s", "echo >>questions.jsonl"), 0);
    cr_assert(strcmp(digest_of("a"), before) != 0, "through a link to a file");
    cr_assert_str_eq(digest_of("a/short"),
                     "53c234e5e8472b6ac51c1ae1cab3fe06fad053beb8ebfd8977b010655bfdd3c3");
}

/* "No such file" alone is nothing there: else shards would be told to have other inputs. */
Test(shard, digest_of_what_cannot_be_read_is_an_error) {
    static const struct {
        const char *target, *says;
    } links[] = {{"loop", "a/loop: cannot look at this path: "},
#ifdef __linux__ /* a regular file of which no byte can be read */
                 {"/proc/self/mem", "a/loop: cannot read: "},
#endif
                 {"nowhere", ""}};
    char hex[65];
    Error error;
    cr_assert_eq(mkdir("a", 0700), 0);
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        cr_assert_eq(symlink(links[i].target, "a/loop"), 0);
        ATTEMPT(&error, path_digest("a", hex));
        cr_assert_eq(strncmp(error.text, links[i].says, strlen(links[i].says)), 0, "%s",
                     error.text);
        cr_assert_eq(error.status == STATUS_OK, links[i].says[0] == '\0');
        cr_assert_eq(unlink("a/loop"), 0);
    }
}
