/* The language models against Hugging Face at every hook point, forward and gradient; that results
 * do not depend on batches, caches, pieces or threads; and what is refused. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../adapter.h"
#include "../checkpoint.h"
#include "../json.h"
#include "../model_load.h"

/* float32 against float32 in another order of operations: the goldens lie within 2e-6 to 1e-5 of
 * their own float64, relative to each tensor's largest value. */
static const double TOLERANCE = 2e-5;

/* ---- a model with a run ---- */

typedef struct World {
    Arena *arena; /* holds everything; each plan has an arena within it */
    Llm llm;
    Compute compute;
    LlmPlan plan;
    Arena *memory;
    LlmRun *run;
} World;

static World world_open(const char *directory, int threads) {
    World w = {.arena = arena_new()};
    compute_open(&w.compute, w.arena, threads);
    llm_open(&w.llm, w.arena, directory);
    return w;
}

static void world_layout(Arena *arena, void *user) {
    World *w = user;
    w->run = llm_run_layout(&w->llm, &w->compute, &w->plan, arena);
}

static void world_plan(World *w, LlmPlan plan) {
    arena_free(w->memory);
    w->plan = plan;
    arena_measure(world_layout, w);
    cr_assert_null(w->run);
    w->memory = arena_plan(world_layout, w);
    cr_assert_not_null(w->run);
}

static void world_close(World *w) {
    arena_free(w->memory);
    arena_free(w->arena);
}

static LlmPlan plan_for(size_t rows, bool backward) {
    return (LlmPlan){.max_rows = rows,
                     .max_sequence = rows,
                     .max_sequences = 4,
                     .max_logits = rows,
                     .backward = backward};
}

/* How a call that may fail ends; in functions of their own, so that the jump meets no local. */
static Error try_forward(LlmRun *run, const LlmBatch *batch, size_t first, size_t last,
                         const Hooks *hooks) {
    Error error;
    ATTEMPT(&error, llm_forward(run, batch, first, last, NULL, hooks));
    return error;
}

static Error try_logits(LlmRun *run, size_t row, float *logits) {
    Error error;
    ATTEMPT(&error, llm_logits(run, &row, 1, true, logits, NULL));
    return error;
}

static Error try_backward(LlmRun *run, size_t first) {
    Error error;
    ATTEMPT(&error, llm_backward(run, first, NULL));
    return error;
}

/* logits[T, V] of one sequence through all layers. */
static float *logits_of(World *w, const int32_t *ids, size_t n, const Hooks *hooks) {
    size_t start[2] = {0, n}, rows[64];
    float *logits = malloc(n * w->llm.config.d_vocab * sizeof *logits);
    LlmBatch batch = {1, start, ids, NULL, NULL, NULL};
    for (size_t i = 0; i < n; i++) {
        rows[i] = i;
    }
    llm_forward(w->run, &batch, 0, w->llm.config.n_layers, NULL, hooks);
    llm_logits(w->run, rows, n, true, logits, hooks);
    return logits;
}

/* ---- goldens ---- */

typedef struct Golden {
    Arena *arena;
    TensorStore store;
    int32_t ids[64];
    size_t n, grad[2], grads;
    size_t seen;
    double worst;
    char where[HOOK_NAME_MAX];
} Golden;

static size_t numbers(const char *text, long *out, size_t room) {
    size_t n = 0;
    for (char *end; n < room && *text != '\0'; text = *end == ',' ? end + 1 : end) {
        out[n++] = strtol(text, &end, 10);
    }
    return n;
}

static void golden_open(Golden *golden, const char *path) {
    uint64_t length;
    long ids[64], grad[2];
    memset(golden, 0, sizeof *golden);
    golden->arena = arena_new();
    Arena *arena = arena_new();
    tensors_open(&golden->store, golden->arena, path);
    FileMap map = file_map(arena, path);
    memcpy(&length, map.data, sizeof length);
    const Json *header = json_parse(arena, (const char *)map.data + 8, (size_t)length, path);
    const Json *about = json_get(header, "__metadata__");
    golden->n = numbers(json_get(about, "ids")->text, ids, 64);
    golden->grads = numbers(json_get(about, "grad")->text, grad, 2);
    for (size_t i = 0; i < golden->n; i++) {
        golden->ids[i] = (int32_t)ids[i];
    }
    for (size_t i = 0; i < golden->grads; i++) {
        golden->grad[i] = (size_t)grad[i];
    }
    arena_free(arena);
}

static bool want_all(void *user, HookKind kind, int layer, bool gradient) {
    (void)user, (void)kind, (void)layer, (void)gradient;
    return true;
}

static void compare(void *user, const HookPoint *point, float *data) {
    Golden *golden = user;
    char name[HOOK_NAME_MAX];
    hook_name(name, point->kind, point->layer, point->vision, point->gradient);
    const Tensor *tensor = tensors_find(&golden->store, name);
    if (tensor == NULL) {
        cr_assert_fail("no golden %s", name);
        return;
    }
    cr_assert_eq(tensor->rank, point->rank, "%s", name);
    for (int i = 0; i < point->rank; i++) {
        cr_assert_eq(tensor->shape[i], point->shape[i], "%s: dimension %d", name, i);
    }
    double top = 0, worst = 0;
    for (size_t i = 0; i < tensor->count; i++) {
        float expected = weight_at((Weight){tensor->data, tensor->dtype}, i);
        if (isfinite(expected)) {
            double distance = fabs((double)expected - (double)data[i]);
            top = fmax(top, fabs((double)expected));
            cr_assert(isfinite(data[i]), "%s[%zu]", name, i);
            worst = fmax(worst, distance);
        } else {
            cr_assert_eq(expected, data[i], "%s[%zu]: %g", name, i, (double)data[i]);
        }
    }
    double relative = top > 0 ? worst / top : worst;
    cr_expect(relative <= TOLERANCE, "%s: %g of its largest value", name, relative);
    if (relative > golden->worst) {
        golden->worst = relative;
        memcpy(golden->where, name, sizeof name);
    }
    golden->seen++;
}

static void check_golden(const char *model, const char *path) {
    Golden golden;
    golden_open(&golden, path);
    World w = world_open(model, 2);
    world_plan(&w, plan_for(golden.n, true));
    Hooks hooks = {compare, want_all, &golden};
    float *logits = logits_of(&w, golden.ids, golden.n, &hooks);

    size_t v = w.llm.config.d_vocab, rows[64];
    for (size_t i = 0; i < golden.n; i++) {
        rows[i] = i;
    }
    float *dlogits = calloc(golden.n * v, sizeof *dlogits);
    dlogits[(golden.n - 1) * v + golden.grad[0]] = 1;
    if (golden.grads > 1) {
        dlogits[(golden.n - 1) * v + golden.grad[1]] = -1;
    }
    llm_backward_start(w.run);
    llm_logits_backward(w.run, rows, golden.n, true, logits, dlogits, &hooks);
    llm_backward(w.run, 0, &hooks);
    cr_expect_eq(golden.seen, golden.store.count, "%zu points of %zu", golden.seen,
                 golden.store.count);
    fprintf(stderr, "%s: %zu tensors within %.2g (%s)\n", model, golden.seen, golden.worst,
            golden.where);
    free(logits);
    free(dlogits);
    world_close(&w);
    arena_free(golden.arena);
}

#define ODD(name) "tests/golden/models/" name, "tests/golden/models/" name ".safetensors"

Test(llm, gemma2_odd) {
    check_golden(ODD("gemma2_odd"));
}
Test(llm, gemma2_plain) {
    check_golden(ODD("gemma2_plain"));
}
Test(llm, gpt2_odd) {
    check_golden(ODD("gpt2_odd"));
}
Test(llm, gpt2_untied) {
    check_golden(ODD("gpt2_untied"));
}
Test(llm, neox_seq) {
    check_golden(ODD("neox_seq"));
}
Test(llm, neox_par) {
    check_golden(ODD("neox_par"));
}
Test(llm, neox_nobias) {
    check_golden(ODD("neox_nobias"));
}
Test(llm, toy_gemma2) {
    check_golden("weights/gemma2", "tests/golden/models/toy_gemma2.safetensors");
}
Test(llm, toy_gpt2) {
    check_golden("weights/gpt2", "tests/golden/models/toy_gpt2.safetensors");
}
Test(llm, toy_gpt_neox) {
    check_golden("weights/gpt_neox", "tests/golden/models/toy_gpt_neox.safetensors");
}

/* ---- the same bits, however it is computed ---- */

static const char *const models[] = {
    "tests/golden/models/gemma2_odd", "tests/golden/models/gemma2_plain",
    "tests/golden/models/gpt2_odd",   "tests/golden/models/gpt2_untied",
    "tests/golden/models/neox_seq",   "tests/golden/models/neox_par",
    "tests/golden/models/neox_nobias"};
enum {
    MODELS = sizeof models / sizeof models[0]
};

static void some_ids(const World *w, uint64_t seed, int32_t *ids, size_t n) {
    Random random = random_start(seed, RANDOM_TEST);
    for (size_t i = 0; i < n; i++) {
        ids[i] = (int32_t)random_below(&random, w->llm.config.d_vocab);
    }
}

/* A record of every point in order, gradients too. */
typedef struct Tape {
    float *data;
    size_t length, room;
    size_t first_row, rows, of; /* keep these rows of `of` only (points by token) */
    size_t sequence;            /* and this sequence of those that come by sequence */
    bool costly;                /* attn_scores, pattern and result too */
    const void *user;           /* of who records */
} Tape;

static bool want_taped(void *user, HookKind kind, int layer, bool gradient) {
    const Tape *tape = user;
    (void)layer, (void)gradient;
    bool costly = kind == HOOK_ATTN_SCORES || kind == HOOK_PATTERN || kind == HOOK_RESULT;
    return tape->costly || !costly;
}

static void record(void *user, const HookPoint *point, float *data) {
    Tape *tape = user;
    size_t row = point->shape[1] * (point->rank > 2 ? point->shape[2] : 1);
    size_t first = tape->first_row, rows = tape->rows;
    if (point->kind == HOOK_ATTN_SCORES || point->kind == HOOK_PATTERN) {
        if (point->sequence != tape->sequence) {
            return;
        }
        first = 0;
        rows = point->shape[0];
    } else {
        cr_assert_eq(point->shape[0], tape->of);
    }
    while (tape->length + rows * row > tape->room) {
        tape->room = tape->room * 2 + 4096;
        tape->data = realloc(tape->data, tape->room * sizeof *tape->data);
    }
    memcpy(tape->data + tape->length, data + first * row, rows * row * sizeof *data);
    tape->length += rows * row;
}

static Tape tape_all(size_t rows, bool costly) {
    return (Tape){.rows = rows, .of = rows, .costly = costly};
}

/* Forward and backward of a batch, everything on the tape. */
static void tape_pass(World *w, const LlmBatch *batch, Tape *tape) {
    Hooks hooks = {record, want_taped, tape};
    size_t n = batch->start[batch->n_sequences], v = w->llm.config.d_vocab,
           *rows = calloc(n, sizeof *rows);
    float *logits = calloc(n * v, sizeof *logits), *dlogits = calloc(n * v, sizeof *dlogits);
    for (size_t i = 0; i < n; i++) {
        rows[i] = i;
    }
    llm_forward(w->run, batch, 0, w->llm.config.n_layers, NULL, &hooks);
    llm_logits(w->run, rows, n, true, logits, &hooks);
    for (size_t s = 0; s < batch->n_sequences; s++) {
        dlogits[(batch->start[s + 1] - 1) * v + 1] = 1;
        dlogits[(batch->start[s + 1] - 1) * v + 2] = -1;
    }
    llm_backward_start(w->run);
    llm_logits_backward(w->run, rows, n, true, logits, dlogits, &hooks);
    llm_backward(w->run, 0, &hooks);
    free(rows);
    free(logits);
    free(dlogits);
}

static void expect_same_tape(Tape *a, Tape *b, const char *what) {
    cr_assert_eq(a->length, b->length, "%s", what);
    for (size_t i = 0; i < a->length; i++) {
        cr_assert(memcmp(a->data + i, b->data + i, sizeof(float)) == 0 || a->data[i] == b->data[i],
                  "%s: value %zu: %a, %a", what, i, (double)a->data[i], (double)b->data[i]);
    }
    free(a->data);
    free(b->data);
}

Test(llm, a_sequence_does_not_see_its_batch) {
    for (size_t m = 0; m < MODELS; m++) {
        World w = world_open(models[m], 2);
        size_t start[] = {0, 5, 6, 19};
        int32_t ids[19];
        some_ids(&w, m, ids, 19);
        world_plan(&w, plan_for(19, true));
        for (size_t s = 0; s < 3; s++) {
            size_t n = start[s + 1] - start[s], alone[] = {0, n};
            Tape together = {
                .first_row = start[s], .rows = n, .of = 19, .sequence = s, .costly = true};
            Tape single = tape_all(n, true);
            tape_pass(&w, &(LlmBatch){3, start, ids, NULL, NULL, NULL}, &together);
            tape_pass(&w, &(LlmBatch){1, alone, ids + start[s], NULL, NULL, NULL}, &single);
            expect_same_tape(&together, &single, models[m]);
        }
        world_close(&w);
    }
}

Test(llm, threads_and_instruction_sets_change_nothing) {
    for (size_t m = 0; m < MODELS; m++) {
        Tape tapes[3];
        for (int i = 0; i < 3; i++) {
            setenv("REFSAE_ISA", "scalar", 1);
            if (i < 2) {
                unsetenv("REFSAE_ISA");
            }
            World w = world_open(models[m], i == 0 ? 1 : 2);
            size_t start[] = {0, 17};
            int32_t ids[17];
            some_ids(&w, m, ids, 17);
            world_plan(&w, plan_for(17, true));
            tapes[i] = tape_all(17, true);
            tape_pass(&w, &(LlmBatch){1, start, ids, NULL, NULL, NULL}, &tapes[i]);
            world_close(&w);
        }
        Tape copy = tapes[0];
        copy.data = malloc(copy.length * sizeof *copy.data);
        memcpy(copy.data, tapes[0].data, copy.length * sizeof *copy.data);
        expect_same_tape(&tapes[0], &tapes[1], "threads");
        expect_same_tape(&copy, &tapes[2], "scalar");
    }
    unsetenv("REFSAE_ISA");
}

/* 900 tokens and 6 heads are more than one piece of scores holds. */
Test(llm, pieces_of_attention_are_the_whole) {
    static const char *const long_ones[] = {"tests/golden/models/gemma2_odd",
                                            "tests/golden/models/neox_seq"};
    enum {
        TOKENS = 1300
    };
    for (size_t m = 0; m < 2; m++) {
        World w = world_open(long_ones[m], 2);
        size_t start[] = {0, 7, TOKENS};
        int32_t *ids = malloc(TOKENS * sizeof *ids);
        some_ids(&w, m, ids, TOKENS);
        Tape tapes[2];
        for (int whole = 0; whole < 2; whole++) {
            LlmPlan plan = plan_for(TOKENS, true);
            plan.attention_hooks = whole;
            world_plan(&w, plan);
            tapes[whole] = tape_all(TOKENS, false);
            tape_pass(&w, &(LlmBatch){2, start, ids, NULL, NULL, NULL}, &tapes[whole]);
        }
        expect_same_tape(&tapes[0], &tapes[1], long_ones[m]);
        Tape costly = tape_all(TOKENS, true);
        Hooks hooks = {record, want_taped, &costly};
        world_plan(&w, plan_for(TOKENS, false));
        LlmBatch batch = {2, start, ids, NULL, NULL, NULL};
        cr_expect_eq(try_forward(w.run, &batch, 0, 1, &hooks).status, STATUS_RESOURCE);
        free(costly.data);
        free(ids);
        world_close(&w);
    }
}

static bool want_gradients(void *user, HookKind kind, int layer, bool gradient) {
    const int last = *(const int *)((Tape *)user)->user;
    return gradient &&
           (layer < last || kind == HOOK_RESID_PRE || kind == HOOK_Q || kind == HOOK_K ||
            kind == HOOK_V || kind == HOOK_LN1_SCALE) &&
           kind != HOOK_LOGITS && kind != HOOK_LN_FINAL_SCALE && kind != HOOK_LN_FINAL_NORMALIZED &&
           want_taped(user, kind, layer, gradient);
}

/* Of a logit at some rows, and what it was. */
static void gradients_of(World *w, const LlmBatch *batch, const size_t rows[3], float *logits,
                         Tape *tape) {
    Hooks hooks = {record, want_gradients, tape};
    size_t v = w->llm.config.d_vocab;
    float *dlogits = calloc(3 * v, sizeof *dlogits);
    llm_forward(w->run, batch, 0, w->llm.config.n_layers, NULL, NULL);
    llm_logits(w->run, rows, 3, true, logits, NULL);
    for (size_t i = 0; i < 3; i++) {
        dlogits[i * v + i] = 1 + (float)i;
    }
    llm_backward_start(w->run);
    llm_logits_backward(w->run, rows, 3, true, logits, dlogits, NULL);
    llm_backward(w->run, 0, &hooks);
    free(dlogits);
}

Test(llm, rows_that_no_logit_reads_change_no_gradient) {
    static const size_t start[] = {0, 9, 20}, from[] = {3, 19}, rows[] = {3, 8, 19},
                        among[] = {0, 5, 6};
    for (size_t m = 0; m < MODELS; m++) {
        World w = world_open(models[m], 2);
        size_t v = w.llm.config.d_vocab;
        int last = (int)w.llm.config.n_layers - 1;
        int32_t ids[20];
        some_ids(&w, m, ids, 20);
        world_plan(&w, plan_for(20, true));
        float *logits = calloc(6 * v, sizeof *logits);
        Tape all = tape_all(20, false), read = tape_all(20, false);
        all.user = read.user = &last;
        gradients_of(&w, &(LlmBatch){2, start, ids, NULL, NULL, NULL}, rows, logits, &all);
        gradients_of(&w, &(LlmBatch){2, start, ids, NULL, NULL, from}, among, logits + 3 * v,
                     &read);
        cr_expect_arr_eq(logits, logits + 3 * v, 3 * v * sizeof *logits, "%s", models[m]);
        cr_expect(all.length > 0);
        expect_same_tape(&all, &read, models[m]);
        cr_expect_eq(try_backward(w.run, 0).status, STATUS_INPUT, "%s: once more", models[m]);
        Error error = try_forward(w.run, &(LlmBatch){2, start, ids, NULL, NULL, start}, 0,
                                  w.llm.config.n_layers, NULL);
        cr_expect_eq(error.status, STATUS_OK);
        error = try_forward(w.run, &(LlmBatch){2, start, ids, NULL, NULL, rows}, 0, 1, NULL);
        cr_expect_eq(error.status, STATUS_INPUT, "row 8 is of no second sequence");
        free(logits);
        world_close(&w);
    }
}

Test(llm, a_cache_gives_what_the_whole_prefix_gives) {
    for (size_t m = 0; m < MODELS; m++) {
        World w = world_open(models[m], 2), cached = world_open(models[m], 2);
        size_t v = w.llm.config.d_vocab, layers = w.llm.config.n_layers, last = 0;
        int32_t ids[18];
        some_ids(&w, m, ids, 18);
        world_plan(&w, plan_for(18, false));
        world_plan(&cached, (LlmPlan){.max_rows = 7,
                                      .max_sequence = 18,
                                      .max_sequences = 1,
                                      .max_logits = 1,
                                      .cache = true});
        float *whole = logits_of(&w, ids, 18, NULL), *row = malloc(v * sizeof *row);
        static const size_t steps[] = {7, 1, 1, 4, 1, 1, 3};
        size_t past = 0;
        for (size_t i = 0; i < 7; i++) {
            size_t start[] = {0, steps[i]};
            llm_forward(cached.run, &(LlmBatch){1, start, ids + past, NULL, NULL, NULL}, 0, layers,
                        NULL, NULL);
            past += steps[i];
            last = steps[i] - 1;
            llm_logits(cached.run, &last, 1, true, row, NULL);
            cr_expect_arr_eq(row, whole + (past - 1) * v, v * sizeof *row, "%s: %zu", models[m],
                             past);
        }
        cr_assert_eq(past, 18);
        free(whole);
        free(row);
        world_close(&w);
        world_close(&cached);
    }
}

/* Doubles k, v and z of the rows from each sequence's `from` on, at one layer. */
typedef struct TailPatch {
    int layer;
    const LlmBatch *batch;
    const size_t *from; /* rows of the batch that is run */
} TailPatch;

static void patch_rows(void *user, const HookPoint *point, float *data) {
    const TailPatch *patch = user;
    size_t width = point->shape[1] * point->shape[2];
    for (size_t s = 0; s < patch->batch->n_sequences; s++) {
        size_t first = (patch->batch->start[s] + patch->from[s]) * width;
        for (size_t i = first; i < patch->batch->start[s + 1] * width; i++) {
            data[i] *= 2;
        }
    }
}

static bool wants_patch(void *user, HookKind kind, int layer, bool gradient) {
    const TailPatch *patch = user;
    return !gradient && layer == patch->layer &&
           (kind == HOOK_K || kind == HOOK_V || kind == HOOK_Z);
}

/* Rows behind a patch alone, on the keys and values of a clean pass, give what the whole pass
 * gives; twice, so that the first leaves the clean keys as they were. */
Test(llm, a_tail_gives_what_whole_sequences_give) {
    static const size_t start[] = {0, 9, 20}, past[] = {4, 10}, tail[] = {0, 5, 6}, none[] = {0, 0};
    for (size_t m = 0; m < MODELS; m++) {
        World w = world_open(models[m], 2);
        size_t v = w.llm.config.d_vocab, d = w.llm.config.d_model, layers = w.llm.config.n_layers;
        size_t last[] = {8, 19}, tail_last[] = {4, 5}, first_two[] = {0, 1};
        int32_t ids[20], tail_ids[6], some[] = {3, 0, 7};
        LlmPlan plan = plan_for(20, true);
        plan.tails = true;
        world_plan(&w, plan);
        some_ids(&w, m, ids, 20);
        memcpy(tail_ids, ids + 4, 5 * sizeof *ids);
        tail_ids[5] = ids[19];
        LlmBatch batch = {2, start, ids, NULL, NULL, NULL},
                 rest = {2, tail, tail_ids, past, NULL, NULL};
        float *whole = malloc(2 * v * sizeof *whole), *part = malloc(2 * v * sizeof *part), few[3];
        float *stream = malloc(20 * d * sizeof *stream), *kept = malloc(6 * d * sizeof *kept);
        for (size_t layer = 0; layer < 2; layer++) {
            TailPatch patch = {(int)layer, &batch, past}, patch_rest = {(int)layer, &rest, none};
            Hooks hooks = {patch_rows, wants_patch, &patch},
                  hooks_rest = {patch_rows, wants_patch, &patch_rest};
            llm_forward(w.run, &batch, 0, layers, NULL, &hooks);
            llm_logits(w.run, last, 2, true, whole, NULL);
            llm_forward(w.run, &batch, 0, layer, NULL, NULL);
            memcpy(stream, llm_resid(w.run), 20 * d * sizeof *stream);
            memcpy(kept, stream + 4 * d, 5 * d * sizeof *stream);
            memcpy(kept + 5 * d, stream + 19 * d, d * sizeof *stream);
            llm_forward(w.run, &batch, 0, layers, NULL, NULL);
            for (int round = 0; round < 2; round++) {
                llm_forward(w.run, &rest, layer, layers, layer > 0 ? kept : NULL, &hooks_rest);
                llm_logits(w.run, tail_last, 2, true, part, NULL);
                cr_expect_arr_eq(part, whole, 2 * v * sizeof *part, "%s, layer %zu, round %d",
                                 models[m], layer, round);
                llm_logits_at(w.run, 5, some, 3, few);
                for (size_t i = 0; i < 3; i++) {
                    cr_expect_arr_eq(few + i, part + v + some[i], sizeof *few, "%s: token %d",
                                     models[m], some[i]);
                }
            }
            cr_expect_eq(try_backward(w.run, layer).status, STATUS_INPUT);
            /* the last rows alone, of the whole and of a tail; the hook counts all rows of z */
            for (int some_rows = 0; some_rows < 2 && layer + 1 < layers; some_rows++) {
                LlmBatch *shorter = some_rows ? &rest : &batch;
                shorter->read_from = some_rows ? tail_last : last;
                llm_forward(w.run, shorter, some_rows ? layer : 0, layers,
                            some_rows && layer > 0 ? kept : NULL, some_rows ? &hooks_rest : &hooks);
                llm_logits(w.run, first_two, 2, true, part, NULL);
                cr_expect_arr_eq(part, whole, 2 * v * sizeof *part, "%s, layer %zu, ends",
                                 models[m], layer);
                cr_expect_eq(try_backward(w.run, layer).status,
                             some_rows ? STATUS_INPUT : STATUS_OK);
                shorter->read_from = NULL;
                llm_forward(w.run, &batch, 0, layers, NULL, NULL);
            }
        }
        free(whole);
        free(part);
        free(stream);
        free(kept);
        world_close(&w);
    }
}

/* The same of some of the sequences, in any order and again; a sequence that the whole pass did not
 * have is refused. */
Test(llm, a_tail_of_some_sequences_gives_what_the_whole_gives) {
    static const size_t start[] = {0, 7, 16, 20}, from[] = {3, 5, 2}, none[] = {0, 0, 0, 0};
    static const size_t chosen[][4] = {{1}, {2, 0}, {2, 0, 1}, {2, 0, 2, 2}},
                        counts[] = {1, 2, 3, 4};
    for (size_t m = 0; m < MODELS; m++) {
        World w = world_open(models[m], 2);
        size_t v = w.llm.config.d_vocab, layers = w.llm.config.n_layers, last[] = {6, 15, 19};
        int32_t ids[20];
        LlmPlan plan = plan_for(20, true);
        plan.tails = true;
        world_plan(&w, plan);
        some_ids(&w, m, ids, 20);
        LlmBatch batch = {3, start, ids, NULL, NULL, NULL};
        float *whole = malloc(3 * v * sizeof *whole), *part = malloc(4 * v * sizeof *part);
        TailPatch patch = {1, &batch, from};
        llm_forward(w.run, &batch, 0, layers, NULL, &(Hooks){patch_rows, wants_patch, &patch});
        llm_logits(w.run, last, 3, true, whole, NULL);
        llm_forward(w.run, &batch, 0, layers, NULL, NULL);
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            const size_t *of = chosen[c], n = counts[c];
            size_t past[4], tail[5] = {0}, tail_last[4];
            int32_t tail_ids[20];
            for (size_t s = 0; s < n; s++) {
                size_t rows = start[of[s] + 1] - start[of[s]] - from[of[s]];
                past[s] = from[of[s]];
                memcpy(tail_ids + tail[s], ids + start[of[s]] + past[s], rows * sizeof *ids);
                tail[s + 1] = tail[s] + rows;
                tail_last[s] = tail[s + 1] - 1;
            }
            LlmBatch some = {n, tail, tail_ids, past, of, NULL};
            patch = (TailPatch){1, &some, none};
            llm_forward(w.run, &some, 0, layers, NULL, &(Hooks){patch_rows, wants_patch, &patch});
            llm_logits(w.run, tail_last, n, true, part, NULL);
            for (size_t s = 0; s < n; s++) {
                cr_expect_arr_eq(part + s * v, whole + of[s] * v, v * sizeof *part,
                                 "%s: sequence %zu, as %zu of %zu", models[m], of[s], s, n);
            }
        }
        static const size_t one[] = {0, 1, 2, 3, 4}, beyond[] = {3};
        LlmBatch unknown = {1, one, ids, from, beyond, NULL},
                 more = {4, one, ids, none, NULL, NULL};
        cr_expect_eq(try_forward(w.run, &unknown, 0, layers, NULL).status, STATUS_INPUT);
        cr_expect_eq(try_forward(w.run, &more, 0, layers, NULL).status, STATUS_INPUT);
        free(whole);
        free(part);
        world_close(&w);
    }
}

Test(llm, layers_in_two_passes_are_one) {
    for (size_t m = 0; m < MODELS; m++) {
        World w = world_open(models[m], 2);
        size_t n = 11, start[] = {0, 11}, row = 10, v = w.llm.config.d_vocab;
        int32_t ids[11];
        some_ids(&w, m, ids, n);
        LlmBatch batch = {1, start, ids, NULL, NULL, NULL};
        for (int backward = 0; backward < 2; backward++) {
            world_plan(&w, plan_for(n, backward != 0));
            float *whole = logits_of(&w, ids, n, NULL), *again = malloc(v * sizeof *again);
            llm_forward(w.run, &batch, 0, 1, NULL, NULL);
            cr_expect_eq(try_logits(w.run, row, again).status, STATUS_INPUT);
            float *resid = malloc(n * w.llm.config.d_model * sizeof *resid);
            memcpy(resid, llm_resid(w.run), n * w.llm.config.d_model * sizeof *resid);
            llm_forward(w.run, &batch, 1, w.llm.config.n_layers, resid, NULL);
            llm_logits(w.run, &row, 1, true, again, NULL);
            cr_expect_arr_eq(again, whole + row * v, v * sizeof *again, "%s", models[m]);
            free(whole);
            free(again);
            free(resid);
        }
        world_close(&w);
    }
}

/* ---- hooks that write ---- */

typedef struct Patch {
    HookKind kind;
    int layer;
    bool gradient;
    float *store; /* read into while `reading`, else written from */
    size_t size;
    bool reading, zero_head;
} Patch;

static bool want_patch(void *user, HookKind kind, int layer, bool gradient) {
    const Patch *patch = user;
    return kind == patch->kind && layer == patch->layer && gradient == patch->gradient;
}

static void apply_patch(void *user, const HookPoint *point, float *data) {
    Patch *patch = user;
    size_t size = point->shape[0] * point->shape[1] * (point->rank > 2 ? point->shape[2] : 1);
    if (patch->zero_head) { /* head 1 of [T, heads, ...] */
        for (size_t r = 0; r < point->shape[0]; r++) {
            memset(data + (r * point->shape[1] + 1) * point->shape[2], 0,
                   point->shape[2] * sizeof *data);
        }
    } else if (patch->reading) {
        patch->size = size;
        patch->store = realloc(patch->store, size * sizeof *data);
        memcpy(patch->store, data, size * sizeof *data);
    } else {
        cr_assert_eq(size, patch->size);
        memcpy(data, patch->store, size * sizeof *data);
    }
}

Test(llm, a_patched_stream_carries_the_other_prompt_on) {
    static const HookKind kinds[] = {HOOK_RESID_PRE, HOOK_RESID_POST, HOOK_LN2_SCALE, HOOK_PATTERN,
                                     HOOK_Z};
    for (size_t m = 0; m < MODELS; m++) {
        World w = world_open(models[m], 2);
        int32_t a[9], b[9];
        some_ids(&w, m, a, 9);
        some_ids(&w, m + 100, b, 9);
        world_plan(&w, plan_for(9, false));
        size_t bytes = 9 * w.llm.config.d_vocab * sizeof(float);
        float *of_a = logits_of(&w, a, 9, NULL), *of_b = logits_of(&w, b, 9, NULL);
        for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
            Patch patch = {.kind = kinds[k], .layer = 1, .reading = true};
            Hooks hooks = {apply_patch, want_patch, &patch};
            float *read = logits_of(&w, a, 9, &hooks);
            cr_expect_arr_eq(read, of_a, bytes, "%s: reading changed the result", models[m]);
            patch.reading = false;
            float *patched = logits_of(&w, b, 9, &hooks);
            cr_expect(memcmp(patched, of_b, bytes) != 0, "%s: the patch was not used", models[m]);
            if (k < 2) {
                cr_expect_arr_eq(patched, of_a, bytes, "%s: not the other prompt", models[m]);
            }
            free(patch.store);
            free(read);
            free(patched);
        }
        free(of_a);
        free(of_b);
        world_close(&w);
    }
}

/* ---- gradients against central differences ---- */

/* logits[last, 1] - logits[last, 2] with row `row` of a point moved by h along direction. */
static double moved(World *w, const int32_t *ids, size_t n, Patch *patch, size_t row, size_t width,
                    const double *direction, double h) {
    float *at = patch->store + row * width, *kept = malloc(width * sizeof *kept);
    memcpy(kept, at, width * sizeof *kept);
    for (size_t i = 0; i < width; i++) {
        at[i] = (float)((double)at[i] + h * direction[i]);
    }
    Hooks hooks = {apply_patch, want_patch, patch};
    float *logits = logits_of(w, ids, n, &hooks);
    const float *last = logits + (n - 1) * w->llm.config.d_vocab;
    double m = (double)last[1] - (double)last[2];
    memcpy(at, kept, width * sizeof *kept);
    free(kept);
    free(logits);
    return m;
}

/* How far d m / d row is from central differences, at h and h / 2 and extrapolated to 0, along the
 * gradient itself and along a direction at random. */
static double gradient_error(World *w, const int32_t *ids, size_t n, HookKind kind, int layer,
                             size_t row, double *longest) {
    size_t start[2] = {0, n}, last[1] = {n - 1}, v = w->llm.config.d_vocab;
    LlmBatch batch = {.n_sequences = 1, .start = start, .ids = ids};
    Patch value = {.kind = kind, .layer = layer, .reading = true}, gradient = value;
    gradient.gradient = true;
    Hooks hooks[] = {{apply_patch, want_patch, &value}, {apply_patch, want_patch, &gradient}};
    float *logits = calloc(v, sizeof *logits), *dlogits = calloc(v, sizeof *dlogits);
    llm_forward(w->run, &batch, 0, w->llm.config.n_layers, NULL, &hooks[0]);
    llm_logits(w->run, last, 1, true, logits, NULL);
    dlogits[1] = 1;
    dlogits[2] = -1;
    llm_backward_start(w->run);
    llm_logits_backward(w->run, last, 1, true, logits, dlogits, NULL);
    llm_backward(w->run, 0, &hooks[1]);
    value.reading = false;
    size_t width = value.size / n;
    const float *g = gradient.store + row * width, *a = value.store + row * width;
    double length = 0, size = 0, worst = 0, *direction = calloc(width, sizeof *direction);
    for (size_t i = 0; i < width; i++) {
        length += (double)g[i] * (double)g[i];
        size += (double)a[i] * (double)a[i];
    }
    length = sqrt(length);
    size = sqrt(size);
    Random random = random_start(5, RANDOM_TEST);
    for (int k = 0; k < 2 && length > 0; k++) {
        double norm = 0, exact = 0;
        for (size_t i = 0; i < width; i++) {
            direction[i] = k == 0 ? (double)g[i] : (double)random_uniform(&random) - 0.5;
            norm += direction[i] * direction[i];
        }
        for (size_t i = 0; i < width; i++) {
            direction[i] /= sqrt(norm);
            exact += direction[i] * (double)g[i];
        }
        double slope[2], h = fmin(0.05 * size, 0.1 / length);
        for (int half = 0; half < 2; half++, h /= 2) {
            slope[half] = (moved(w, ids, n, &value, row, width, direction, h) -
                           moved(w, ids, n, &value, row, width, direction, -h)) /
                          (2 * h);
        }
        worst = fmax(worst, fabs((4 * slope[1] - slope[0]) / 3 - exact));
    }
    *longest = fmax(*longest, length);
    free(direction);
    free(value.store);
    free(gradient.store);
    free(logits);
    free(dlogits);
    return worst;
}

/* Relative to the longest gradient of the kind in the model: m is known to some 1e-6 of the logits,
 * and a step moves it by 1e-2 of them or less, which found 1.3e-4 at worst. */
Test(llm, gradients_equal_central_differences_at_each_kind_of_node) {
    static const HookKind kinds[] = {HOOK_Q, HOOK_K, HOOK_V, HOOK_Z, HOOK_ATTN_OUT, HOOK_MLP_OUT};
    for (size_t m = 0; m < MODELS; m++) {
        World w = world_open(models[m], 2);
        int32_t ids[9];
        some_ids(&w, m, ids, 9);
        world_plan(&w, plan_for(9, true));
        for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
            double worst = 0, longest = 0;
            for (int layer = 0; layer < (int)w.llm.config.n_layers; layer++) {
                for (size_t row = 5; row < 9; row += 3) {
                    worst = fmax(worst, gradient_error(&w, ids, 9, kinds[k], layer, row, &longest));
                }
            }
            cr_assert(longest > 0);
            cr_expect(worst / longest < 5e-4, "%s: kind %d: %.1e", models[m], (int)kinds[k],
                      worst / longest);
        }
        world_close(&w);
    }
}

/* A head's result set to 0 is its z set to 0, up to the order of the sum over heads. */
Test(llm, a_result_can_be_replaced) {
    for (size_t m = 0; m < MODELS; m++) {
        World w = world_open(models[m], 2);
        int32_t ids[9];
        some_ids(&w, m, ids, 9);
        world_plan(&w, plan_for(9, false));
        Patch patches[] = {{.kind = HOOK_RESULT, .zero_head = true},
                           {.kind = HOOK_Z, .zero_head = true}};
        Hooks hooks[] = {{apply_patch, want_patch, &patches[0]},
                         {apply_patch, want_patch, &patches[1]}};
        float *result = logits_of(&w, ids, 9, &hooks[0]), *z = logits_of(&w, ids, 9, &hooks[1]);
        for (size_t i = 0; i < 9 * w.llm.config.d_vocab; i++) {
            cr_assert_float_eq(result[i], z[i], 1e-4F, "%s: %g %g", models[m], (double)result[i],
                               (double)z[i]);
        }
        free(result);
        free(z);
        world_close(&w);
    }
}

/* Backward forms scores and pattern again: hooks may read them there, and replace them only in a
 * run without backward. */
Test(llm, replaced_scores_are_refused_with_backward) {
    static const HookKind kinds[] = {HOOK_ATTN_SCORES, HOOK_PATTERN};
    for (size_t m = 0; m < MODELS; m++) {
        World w = world_open(models[m], 2);
        size_t start[] = {0, 4, 12};
        int32_t ids[12];
        some_ids(&w, m, ids, 12);
        LlmBatch batch = {2, start, ids, NULL, NULL, NULL};
        for (int backward = 0; backward < 2; backward++) {
            world_plan(&w, plan_for(12, backward != 0));
            for (size_t k = 0; k < 2; k++) {
                Patch patch = {.kind = kinds[k], .zero_head = true};
                Hooks hooks = {apply_patch, want_patch, &patch};
                Error error = try_forward(w.run, &batch, 0, 1, &hooks);
                cr_expect_eq(error.status, backward ? STATUS_INPUT : STATUS_OK, "%s", models[m]);
            }
            Tape tape = tape_all(12, true);
            Hooks reading = {record, want_taped, &tape};
            llm_forward(w.run, &batch, 0, 1, NULL, &reading);
            free(tape.data);
        }
        world_close(&w);
    }
}

/* ---- generation ---- */

Test(llm, sampling) {
    enum {
        V = 50,
        DRAWS = 20000
    };
    Error error;
    float logits[V];
    int32_t id = -1;
    Random random = random_start(1, RANDOM_TEST);
    Arena *arena = arena_new();
    for (int i = 0; i < V; i++) {
        logits[i] = sinf((float)i * 1.7F) * 3;
    }
    logits[7] = logits[31] = 4;
    logits[5] = -INFINITY;
    id = token_sample(logits, V, &(Sampling){0, 0, 1}, &random, arena);
    cr_expect_eq(id, 7);

    static const Sampling ways[] = {{1, 0, 1}, {0.7F, 5, 1}, {1.3F, 0, 0.6F}, {2, 20, 0.5F},
                                    {1, 1, 1}, {1, 0, 0},    {1, V, 1}};
    for (size_t way = 0; way < sizeof ways / sizeof ways[0]; way++) {
        /* What transformers' warpers leave, from their definition. */
        double p[V], total = 0, counts[V] = {0};
        bool kept[V];
        for (int i = 0; i < V; i++) {
            size_t above = 0;
            for (int j = 0; j < V; j++) {
                above += logits[j] > logits[i];
            }
            kept[i] = ways[way].top_k == 0 || above < ways[way].top_k;
            p[i] = kept[i] ? exp((double)(logits[i] / (float)ways[way].temperature)) : 0;
            total += p[i];
        }
        double after = 0;
        for (int i = 0; i < V; i++) {
            double tail = p[i] / total; /* its own and all less probable; equals: lower ids stay */
            bool top = true;
            for (int j = 0; j < V; j++) {
                bool less = p[j] < p[i] || (p[j] == p[i] && j > i);
                tail += less ? p[j] / total : 0;
                top = top && (less || j == i);
            }
            kept[i] = kept[i] && (ways[way].top_p >= 1 || top || tail > 1 - ways[way].top_p);
            after += kept[i] ? p[i] : 0;
        }
        for (int draw = 0; draw < DRAWS; draw++) {
            arena_reset(arena);
            id = token_sample(logits, V, &ways[way], &random, arena);
            counts[id]++;
        }
        for (int i = 0; i < V; i++) { /* five standard deviations */
            double share = kept[i] ? p[i] / after : 0;
            cr_expect(fabs(counts[i] / (double)DRAWS - share) <= 5 * sqrt(share / (double)DRAWS),
                      "way %zu, id %d: %g %g", way, i, counts[i] / (double)DRAWS, share);
        }
    }
    logits[3] = INFINITY;
    cr_expect_eq(token_sample(logits, V, &ways[0], &random, arena), 3);
    float equal[V] = {0};
    bool seen[V] = {false};
    for (int draw = 0; draw < DRAWS; draw++) { /* all are as good as the first of top_k */
        arena_reset(arena);
        seen[token_sample(equal, V, &ways[4], &random, arena)] = true;
    }
    cr_expect(memchr(seen, false, sizeof seen) == NULL);
    logits[3] = NAN;
    ATTEMPT(&error, token_sample(logits, V, &ways[0], &random, arena));
    cr_expect_eq(error.status, STATUS_INPUT);
    arena_free(arena);
}

Test(llm, where_generation_begins_and_stops) {
    World w = world_open("tests/golden/models/gemma2_odd", 1);
    cr_expect_eq(w.llm.config.bos, 2);
    cr_expect(w.llm.config.eos_count >= 1);
    world_close(&w);
    w = world_open("weights/gpt2", 1);
    cr_expect_eq(w.llm.config.eos_count, 1);
    world_close(&w);
}

/* A tied pair saved once, under the head's name. */
Test(llm, a_tied_embedding_may_be_called_head) {
    static const char *const tied[][2] = {{"gpt2", "transformer.wte.weight\"        "},
                                          {"gpt_neox", "gpt_neox.embed_in.weight\"          "}};
    char command[512];
    for (int i = 0; i < 2; i++) {
        char directory[] = "/tmp/refsae_llm_XXXXXX";
        const char *name = tied[i][0], *embed = tied[i][1];
        cr_assert_not_null(mkdtemp(directory));
        snprintf(
            command, sizeof command,
            "cp weights/%s/* %s && cd %s && sed -i 's/\\(tie_word_embeddings\": \\)false/\\1true/' "
            "config.json && LC_ALL=C sed -i 's/%.*s/lm_head.weight\"%s/' model.safetensors",
            name, directory, directory, (int)strcspn(embed, " "), embed,
            embed + strcspn(embed, " "));
        cr_assert_eq(system(command), 0);
        Llm saved, whole;
        Arena *arena = arena_new();
        llm_open(&saved, arena, directory);
        llm_open(&whole, arena, path_join(arena, "weights", name));
        cr_expect_eq(saved.embed.data, saved.head.w.data);
        cr_expect_arr_eq(saved.embed.data, whole.embed.data,
                         whole.config.d_vocab * whole.config.d_model *
                             dtype_size(whole.embed.dtype));
        arena_free(arena);
        snprintf(command, sizeof command, "rm -r %s", directory);
        cr_assert_eq(system(command), 0);
    }
}

/* ---- bad input ---- */

/* A model directory whose config.json is `model`'s with `change` put in front of its closing brace
 * (the last member of a name counts), or `whole` if that is not NULL. */
static Error open_changed(const char *model, const char *change, const char *whole) {
    char directory[] = "/tmp/refsae_llm_XXXXXX", path[512], target[512], cwd[256];
    cr_assert_not_null(mkdtemp(directory));
    cr_assert_not_null(getcwd(cwd, sizeof cwd));
    snprintf(path, sizeof path, "tests/golden/models/%s/config.json", model);
    char text[4096] = "";
    FILE *file = fopen(path, "r");
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    while (text[--length] != '}') {
    }
    snprintf(path, sizeof path, "%s/config.json", directory);
    file = fopen(path, "w");
    if (whole != NULL) {
        fputs(whole, file);
    } else {
        fprintf(file, "%.*s%s%s}", (int)length, text, change[0] != '\0' ? ", " : "", change);
    }
    fclose(file);
    snprintf(target, sizeof target, "%s/tests/golden/models/%s/model.safetensors", cwd, model);
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    cr_assert_eq(symlink(target, path), 0);

    Error error;
    Arena *arena = arena_new();
    ATTEMPT(&error, llm_open(&(Llm){0}, arena, directory));
    arena_free(arena);
    unlink(path);
    snprintf(path, sizeof path, "%s/config.json", directory);
    unlink(path);
    rmdir(directory);
    return error;
}

Test(llm, refuses_by_name) {
    static const struct {
        const char *model, *change, *names;
    } cases[] = {
        {"gpt2_odd", "", NULL},
        {"gpt2_odd", "\"scale_attn_by_inverse_layer_idx\": false", NULL},
        {"gpt2_odd", "\"reorder_and_upcast_attn\": true",
         NULL}, /* the same mathematics in float32 */
        {"gpt2_odd", "\"scale_attn_by_inverse_layer_idx\": true",
         "scale_attn_by_inverse_layer_idx"},
        {"gpt2_odd", "\"add_cross_attention\": true", "add_cross_attention"},
        {"gpt2_odd", "\"activation_function\": \"mish\"", "mish"},
        {"gpt2_odd", "\"activation_function\": 3", "activation_function"},
        {"gpt2_odd", "\"n_head\": 3", "multiple"},
        {"gpt2_odd", "\"n_head\": 0", "n_head"},
        {"gpt2_odd", "\"num_attention_heads\": 1", "but 'num_attention_heads' is 1"},
        {"gpt2_odd", "\"n_head\": 40", "multiple"},
        {"gpt2_odd", "\"n_embd\": -20", "n_embd"},
        {"gpt2_odd", "\"n_embd\": 2.5", "n_embd"},
        {"gpt2_odd", "\"n_embd\": null", "n_embd"},
        {"gpt2_odd", "\"n_layer\": 99999999", "layers"},
        {"gpt2_odd", "\"n_layer\": 4", "h.3.ln_1.weight"},
        {"gpt2_odd", "\"n_layer\": 1e400", "n_layer"},
        {"gpt2_odd", "\"n_positions\": 25", "wpe.weight"},
        {"gpt2_odd", "\"vocab_size\": 72", "expected [72, 20], found [71, 20]"},
        {"gpt2_odd", "\"n_inner\": null", "mlp.c_fc.weight"},
        {"gpt2_odd", "\"layer_norm_epsilon\": -1", "layer_norm_epsilon"},
        {"gpt2_odd", "\"layer_norm_epsilon\": NaN", "layer_norm_epsilon"},
        {"gpt2_odd", "\"tie_word_embeddings\": false", "lm_head.weight"},
        {"gpt2_odd", "\"tie_word_embeddings\": 1", "tie_word_embeddings"},
        {"gpt2_odd", "\"pruned_heads\": {\"0\": [1]}", "pruned_heads"},
        {"gpt2_odd", "\"eos_token_id\": \"x\"", "eos_token_id"},
        {"gpt2_odd", "\"model_type\": \"llama\"", "llama"},
        {"gpt2_odd", "\"model_type\": \"gemma2\"", "embed_tokens.weight"},
        {"gemma2_plain", "", NULL},
        {"gemma2_plain", "\"use_bidirectional_attention\": true", "use_bidirectional_attention"},
        {"gemma2_plain", "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}", "linear"},
        {"gemma2_plain", "\"rope_scaling\": null", NULL},
        {"gemma2_plain", "\"rope_parameters\": {\"rope_type\": \"yarn\"}", "yarn"},
        {"gemma2_plain", "\"rope_parameters\": {\"sliding_attention\": {\"rope_theta\": 2}}",
         "sliding_attention"},
        {"gemma2_plain", "\"rope_parameters\": 3", "rope_parameters"},
        {"gemma2_plain", "\"rope_theta\": 0", "rope_theta"},
        {"gemma2_plain", "\"layer_types\": [\"full_attention\"]", "layer_types"},
        {"gemma2_plain", "\"layer_types\": [\"full_attention\", \"chunked_attention\", 0]",
         "chunked_attention"},
        {"gemma2_plain", "\"num_key_value_heads\": 3", "num_key_value_heads"},
        {"gemma2_plain", "\"head_dim\": 7", "head_dim"},
        {"gemma2_plain", "\"head_dim\": 100000000, \"num_attention_heads\": 100000000", "expected"},
        {"gemma2_plain", "\"query_pre_attn_scalar\": 0", "query_pre_attn_scalar"},
        {"gemma2_plain", "\"attn_logit_softcapping\": 0", "attn_logit_softcapping"},
        {"gemma2_plain", "\"attn_logit_softcapping\": \"50\"", "attn_logit_softcapping"},
        {"gemma2_plain", "\"sliding_window\": 0", "sliding_window"},
        {"gemma2_plain", "\"sliding_window\": null", NULL},
        {"gemma2_plain", "\"attention_bias\": true", "q_proj.bias"},
        {"gemma2_plain", "\"quantization_config\": {\"bits\": 4}", "quantization_config"},
        {"neox_par", "", NULL},
        {"neox_par", "\"hidden_act\": \"gelu_10\"", "gelu_10"},
        {"neox_par", "\"rope_parameters\": {\"partial_rotary_factor\": 0.0001}", "rotary_pct"},
        {"neox_par", "\"rope_parameters\": {\"partial_rotary_factor\": 2}", "rotary_pct"},
        {"neox_par", "\"use_parallel_residual\": []", "use_parallel_residual"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Error error = open_changed(cases[i].model, cases[i].change, NULL);
        if (cases[i].names == NULL) {
            cr_expect_eq(error.status, STATUS_OK, "%s: %s", cases[i].change, error.text);
        } else {
            cr_expect_eq(error.status, STATUS_INPUT, "%s: %d", cases[i].change, (int)error.status);
            cr_expect(strstr(error.text, cases[i].names) != NULL, "%s: %s", cases[i].change,
                      error.text);
        }
    }
    static const char *const broken[] = {
        "", "{", "[]", "3", "null", "{}", "{\"model_type\": null}", "{\"model_type\": \"gpt2\"} x"};
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        Error error = open_changed("gpt2_odd", "", broken[i]);
        cr_expect_eq(error.status, STATUS_INPUT, "%s", broken[i]);
        cr_expect(strstr(error.text, "config.json") != NULL, "%s: %s", broken[i], error.text);
    }
    Error error;
    Arena *arena = arena_new();
    ATTEMPT(&error, llm_open(&(Llm){0}, arena, "/nonexistent"));
    cr_expect_eq(error.status, STATUS_INPUT);
    ATTEMPT(&error, llm_open(&(Llm){0}, arena, "selftest/clip")); /* it has no weights either */
    cr_expect(strstr(error.text, "'model_type'") != NULL, "%s", error.text);
    arena_free(arena);
}

Test(llm, refuses_what_a_run_cannot_hold) {
    Error error;
    World w = world_open("tests/golden/models/gpt2_odd", 1);
    int32_t ids[30];
    some_ids(&w, 1, ids, 30);
    world_plan(&w, plan_for(30, false));
    size_t start[] = {0, 25, 30}, layers = w.llm.config.n_layers;
    error = try_forward(w.run, &(LlmBatch){1, start, ids, NULL, NULL, NULL}, 0, layers, NULL);
    cr_expect_eq(error.status, STATUS_INPUT);
    cr_expect(strstr(error.text, "24 positions") != NULL, "%s", error.text);
    ids[3] = 71;
    start[1] = 5;
    error = try_forward(w.run, &(LlmBatch){1, start, ids, NULL, NULL, NULL}, 0, layers, NULL);
    cr_expect_eq(error.status, STATUS_INPUT);
    cr_expect(strstr(error.text, "71") != NULL, "%s", error.text);
    ids[3] = -1;
    llm_forward(w.run, &(LlmBatch){1, start, ids, NULL, NULL, NULL}, 0, layers, NULL, NULL);
    cr_expect_eq(try_backward(w.run, 0).status, STATUS_INPUT, "a run without backward");
    start[1] = 0;
    error = try_forward(w.run, &(LlmBatch){1, start, ids, NULL, NULL, NULL}, 0, layers, NULL);
    cr_expect_eq(error.status, STATUS_INPUT);
    world_plan(&w, plan_for(20, true)); /* of four sequences */
    size_t many[] = {0, 1, 2, 3, 4, 5}, long_one[] = {0, 21}, two[] = {0, 11, 22}, late[] = {1, 5};
    ids[4] = -2;
    const struct {
        LlmBatch batch;
        size_t first, last;
        Status status;
    } cases[] = {{{5, many, ids, NULL, NULL, NULL}, 0, layers, STATUS_RESOURCE},
                 {{1, long_one, ids, NULL, NULL, NULL}, 0, layers, STATUS_RESOURCE},
                 {{2, two, ids, NULL, NULL, NULL}, 0, layers, STATUS_RESOURCE},
                 {{1, late, ids, NULL, NULL, NULL}, 0, layers, STATUS_INPUT},
                 {{1, many, ids, many, NULL, NULL}, 0, layers, STATUS_INPUT}, /* of no tail */
                 {{0, many, ids, NULL, NULL, NULL}, 0, layers, STATUS_INPUT},
                 {{1, many, ids, NULL, NULL, NULL}, 1, 0, STATUS_INPUT},
                 {{1, many, ids, NULL, NULL, NULL}, 0, layers + 1, STATUS_INPUT},
                 {{1, many, ids, NULL, NULL, NULL}, 1, layers, STATUS_INPUT}, /* of no stream */
                 {{1, many, ids + 4, NULL, NULL, NULL}, 0, layers, STATUS_INPUT}}; /* id -2 */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        error = try_forward(w.run, &cases[i].batch, cases[i].first, cases[i].last, NULL);
        cr_expect_eq(error.status, cases[i].status, "%zu: %s", i, error.text);
    }
    llm_forward(w.run, &(LlmBatch){1, many, ids, NULL, NULL, NULL}, 0, 1, NULL, NULL);
    cr_expect_eq(try_backward(w.run, 0).status, STATUS_INPUT, "not all layers");
    llm_forward(w.run, &(LlmBatch){1, many, ids, NULL, NULL, NULL}, 1, layers, llm_resid(w.run),
                NULL);
    cr_expect_eq(try_backward(w.run, 0).status, STATUS_INPUT, "not from layer 0 on");
    llm_backward_start(w.run);
    cr_expect_eq(try_backward(w.run, 1).status, STATUS_OK);
    world_close(&w);
}

/* One value of each tensor in turn becomes NaN or infinity: named when a pass first reads it. */
Test(llm, weights_that_are_not_finite_are_named) {
    World w = world_open("tests/golden/models/gemma2_plain", 2);
    size_t start[] = {0, 6}, row = 5;
    int32_t ids[6];
    some_ids(&w, 4, ids, 6);
    for (size_t t = 0; t < w.llm.store.count; t++) {
        Tensor *tensor = &w.llm.store.tensors[t];
        const void *data = tensor->data;
        float *copy = malloc(tensor->count * sizeof *copy);
        memcpy(copy, data, tensor->count * sizeof *copy);
        bool embedding = strstr(tensor->name, "embed_tokens") != NULL;
        copy[embedding ? (size_t)ids[2] * w.llm.config.d_model : tensor->count / 2] =
            t % 2 ? NAN : INFINITY;
        tensor->data = copy;
        Weight *weights[] = {&w.llm.embed, &w.llm.head.w, &w.llm.ln_final.w};
        for (size_t i = 0; i < 3; i++) {
            weights[i]->data = weights[i]->data == data ? copy : weights[i]->data;
        }
        world_plan(&w, plan_for(6, false));
        float logits[61];
        LlmBatch batch = {1, start, ids, NULL, NULL, NULL};
        Error error = try_forward(w.run, &batch, 0, w.llm.config.n_layers, NULL);
        if (error.status == STATUS_OK) {
            error = try_logits(w.run, row, logits);
        }
        cr_expect_eq(error.status, STATUS_INPUT, "%s", tensor->name);
        cr_expect(strstr(error.text, tensor->name) != NULL, "%s: %s", tensor->name, error.text);
        for (size_t i = 0; i < 3; i++) {
            weights[i]->data = weights[i]->data == copy ? data : weights[i]->data;
        }
        tensor->data = data;
        free(copy);
    }
    world_close(&w);
}

/* ---- names ---- */

Test(hooks, names_there_and_back) {
    static const char *const names[] = {"hook_embed",
                                        "hook_pos_embed",
                                        "blocks.0.hook_resid_pre",
                                        "blocks.12.attn.hook_rot_q",
                                        "blocks.3.ln1_post.hook_normalized",
                                        "blocks.0.mlp.hook_pre_linear",
                                        "ln_final.hook_scale",
                                        "logits",
                                        "vision.pixel_values",
                                        "vision.ln_pre.hook_scale",
                                        "vision.blocks.7.hook_resid_post"};
    static const char *const wrong[] = {"",
                                        "pixel_values",
                                        "ln_pre.hook_scale",
                                        "vision.logits",
                                        "blocks.hook_resid_pre",
                                        "blocks.-1.hook_resid_pre",
                                        "blocks.01.hook_resid_pre",
                                        "blocks.99999999999.hook_resid_pre",
                                        "hook_resid_pre",
                                        "blocks.1.logits",
                                        "blocks.0.hook_resid_pre.grad",
                                        "blocks.0.hook_resid_prex",
                                        "blocks.0hook_resid_pre"};
    HookKind kind;
    int layer;
    bool vision;
    char name[HOOK_NAME_MAX];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        cr_assert(hook_parse(names[i], &kind, &layer, &vision), "%s", names[i]);
        hook_name(name, kind, layer, vision, false);
        cr_expect_str_eq(name, names[i]);
    }
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        cr_expect(!(hook_parse(wrong[i], &kind, &layer, &vision)), "%s", wrong[i]);
    }
    hook_name(name, HOOK_Z, 2147483647, true, true);
    cr_expect_str_eq(name, "vision.blocks.2147483647.attn.hook_z.grad");
}

Test(hooks, globs) {
    static const struct {
        const char *pattern, *name;
        bool match;
    } cases[] = {
        {"*", "anything", true},
        {"", "", true},
        {"", "a", false},
        {"blocks.*.hook_resid_{pre,post}", "blocks.12.hook_resid_post", true},
        {"blocks.*.hook_resid_{pre,post}", "blocks.12.hook_resid_mid", false},
        {"blocks.[0-2].attn.hook_?", "blocks.1.attn.hook_q", true},
        {"blocks.[!0-2].attn.hook_?", "blocks.1.attn.hook_q", false},
        {"blocks.[^0-2].attn.hook_?", "blocks.3.attn.hook_q", true},
        {"{a,b{c,d}e}f", "bdef", true},
        {"{a,b{c,d}e}f", "af", true},
        {"x{a{b,c}", "x{ab", true},
        {"{a,b{c,d}e}f", "bef", false},
        {"a{,b}", "a", true},
        {"a{b", "a{b", true},
        {"a,b", "a,b", true},
        {"[", "[", true},
        {"[]]", "]", true},
        {"{[,],b}x", ",x", true},
        {"*a*a*a*a*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false},
        {"*.attn.*", "blocks.0.attn.hook_z", true},
        {"[[:alpha:]x]", "q", true},
        {"[[:x]]", "x]", true},
        {"\\{a,b}", "{a,b}", true},
        {"\\{a,b}", "a", false},
        {"\\[{a,b]}", "[b]", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_expect_eq(glob_match(cases[i].pattern, cases[i].name), cases[i].match, "%s %s",
                     cases[i].pattern, cases[i].name);
    }
}

/* Hours where one that is open is searched to the end from every byte. */
Test(hooks, long_globs_take_no_time) {
    static const char *const units[] = {"[:", "[^", "{,"};
    static char pattern[1 << 20];
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        for (size_t i = 0; i + 1 < sizeof pattern; i++) {
            pattern[i] = units[u][i % 2];
        }
        cr_expect(!glob_match(pattern, "blocks.0.hook_z"), "%s", units[u]);
    }
}
