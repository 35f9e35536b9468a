/* bench.c: how near the kernels, and whole commands, come to what this machine can do, at the
 * published models' shapes. Noise on shared machines is 10 % within minutes, so every figure is the
 * best of ten rounds, and a round measures everything once, the limits included. */
#include "bench.h"

#include "info.h"
#include "json.h"
#include "kernelset.h"
#include "model_load.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    ROUNDS = 10,
    TOKENS = 512,
    D_MODEL = 2304,
    D_MLP = 9216,
    HEADS = 16,
    D_HEAD = 256,
    FEATURE_ROWS = 256,
    D_SAE = 16384,
    ACTIVE = 1024,
    MAX_ITEMS = 96,
    LIMIT_ROUNDS = 1000000
};

/* Products [rows, in] by W [out, in], stored so or (in_out) the other way round. None is larger
 * than what Bench holds. */
typedef struct Shape {
    const char *name;
    size_t rows, in, out;
    Dtype dtype;
    bool in_out;
} Shape;

static const Shape shapes[] = {
    {"Gemma-2-2B MLP", 512, 2304, 9216, DTYPE_BF16, false},
    {"Gemma-2-2B MLP", 512, 2304, 9216, DTYPE_BF16, true},
    {"Gemma-2-2B MLP", 512, 2304, 9216, DTYPE_F16, false},
    {"Gemma-2-2B MLP", 512, 2304, 9216, DTYPE_F16, true},
    {"Gemma-2-2B MLP", 512, 2304, 9216, DTYPE_F32, false},
    {"Gemma-2-2B MLP", 512, 2304, 9216, DTYPE_F32, true},
    {"Gemma-2-2B MLP, out", 512, 9216, 2304, DTYPE_BF16, false},
    {"Gemma-2-2B MLP, out", 512, 9216, 2304, DTYPE_BF16, true},
    {"Gemma-2-2B MLP", 4, 2304, 9216, DTYPE_BF16, false},
    {"Gemma-2-2B MLP", 17, 2304, 9216, DTYPE_BF16, false},
    {"Gemma-2-2B MLP", 257, 2304, 9216, DTYPE_BF16, false},
    {"Gemma-2-2B MLP", 431, 2304, 9216, DTYPE_BF16, false},
    {"CLIP-L MLP", 257, 1024, 4096, DTYPE_F32, false},
    {"GPT-2 Small MLP", 512, 768, 3072, DTYPE_F32, true},
    {"Pythia-70M MLP", 512, 512, 2048, DTYPE_F16, false},
    {"SAE of 16k, encoding", 256, 2304, 16384, DTYPE_F32, true},
};

typedef struct Bench {
    const Compute *compute;
    float *x, *y;           /* [TOKENS, D_MLP] each */
    float *features;        /* [FEATURE_ROWS, D_SAE] */
    unsigned char *weights; /* four matrices [D_MLP, D_MODEL] of 16 bits, two of 32 */
    size_t weight_bytes;
    volatile float sink;
} Bench;

typedef struct Item {
    char name[64];
    double (*measure)(Bench *bench, const struct Item *item); /* runs it once; the work done */
    const char *unit;
    char limit;  /* 'm': multiply-adds, 'r': reads, 0: none */
    int variant; /* which shape, function or dtype */
    int threads;
    double best; /* GFLOP/s, GB/s or million elements a second */
} Item;

/* The set that can measure this machine's limits: the plain one cannot. NULL: none. */
static const KernelSet *limits(const Bench *bench) {
    const KernelSet *set = bench->compute->set;
    bool usable = true;
    for (size_t i = 0; set != NULL && (!usable || set->limit_multiply == NULL); i++) {
        set = kernel_set_at(i, &usable);
    }
    return set;
}

static void multiply_body(void *user, size_t i, int thread) {
    Bench *bench = user;
    size_t operations;
    (void)i;
    (void)thread;
    bench->sink = limits(bench)->limit_multiply(LIMIT_ROUNDS, &operations);
}

static double limit_multiply(Bench *bench, const Item *item) {
    size_t operations;
    compute_parallel(bench->compute, (size_t)item->threads, multiply_body, bench);
    bench->sink = limits(bench)->limit_multiply(1, &operations);
    return (double)LIMIT_ROUNDS * (double)operations * item->threads;
}

static void read_body(void *user, size_t i, int thread) {
    Bench *bench = user;
    (void)thread;
    bench->sink = limits(bench)->limit_read(bench->weights + (i << 20), 1 << 20);
}

static double limit_read(Bench *bench, const Item *item) {
    (void)item;
    compute_parallel(bench->compute, bench->weight_bytes >> 20, read_body, bench);
    return (double)(bench->weight_bytes >> 20 << 20);
}

static void multiply(Bench *bench, const unsigned char *weights, const Shape *shape) {
    const ptrdiff_t in = (ptrdiff_t)shape->in, out = (ptrdiff_t)shape->out;
    const Matrix w = {.w = {weights, shape->dtype},
                      .row = shape->in_out ? 1 : in,
                      .col = shape->in_out ? out : 1,
                      .out = shape->out,
                      .in = shape->in};
    product_run_one(bench->compute, product_nt(bench->y, bench->x, &w, shape->rows));
}

static double product(Bench *bench, const Item *item) {
    const Shape *shape = &shapes[item->variant];
    multiply(bench, bench->weights, shape);
    return 2.0 * (double)shape->rows * (double)shape->in * (double)shape->out;
}

static double decoding_sae(Bench *bench, const Item *item) {
    (void)item;
    sparse_run(bench->compute, (Sparse){.y = bench->y,
                                        .f = bench->features,
                                        .w = {bench->weights, DTYPE_F32},
                                        .w_row = D_MODEL,
                                        .w_col = 1,
                                        .rows = FEATURE_ROWS,
                                        .k = D_SAE,
                                        .n = D_MODEL});
    return 2.0 * (double)((size_t)FEATURE_ROWS * ACTIVE * D_MODEL);
}

/* One token through all of the weights; the bytes that had to be read. */
static double decoding(Bench *bench, const Item *item) {
    const Shape shape = {"", 1, D_MODEL, D_MLP, (Dtype)item->variant, false};
    const size_t matrix = (size_t)D_MLP * D_MODEL * dtype_size(shape.dtype);
    for (size_t at = 0; at + matrix <= bench->weight_bytes; at += matrix) {
        multiply(bench, bench->weights + at, &shape);
    }
    return (double)bench->weight_bytes;
}

/* scores = q k^T of every head: [TOKENS, HEADS, D_HEAD] twice into [HEADS, TOKENS, TOKENS]. */
static double attention_scores(Bench *bench, const Item *item) {
    Product p[HEADS];
    (void)item;
    for (size_t h = 0; h < HEADS; h++) {
        const Matrix keys = {.w = {bench->x + h * D_HEAD, DTYPE_F32},
                             .row = HEADS * D_HEAD,
                             .col = 1,
                             .out = TOKENS,
                             .in = D_HEAD};
        p[h] = product_nt(bench->y + h * TOKENS * TOKENS, bench->x + h * D_HEAD, &keys, TOKENS);
        p[h].a_row = HEADS * D_HEAD;
    }
    product_run_heads(bench->compute, p, HEADS);
    return 2.0 * (double)((size_t)HEADS * TOKENS * TOKENS * D_HEAD);
}

typedef struct FunctionRun {
    const KernelSet *set;
    Task task;
} FunctionRun;

static void function_body(void *user, size_t i, int thread) {
    const FunctionRun *job = user;
    (void)thread;
    job->set->run[OP_ELEMENTARY](&job->task, i * 8192, (i + 1) * 8192);
}

static double function(Bench *bench, const Item *item) {
    FunctionRun job = {bench->compute->set, {.y = bench->y, .a = bench->x, .kind = item->variant}};
    compute_parallel(bench->compute, TOKENS * D_MODEL / 8192, function_body, &job);
    return 1e3 * (TOKENS * D_MODEL / 8192 * 8192);
}

static const char *const function_names[FN_COUNT] = {"exp", "log", "tanh", "erf", "sin", "cos"};

static size_t bench_items(Item *items, const Bench *bench) {
    static const Dtype dtypes[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};
    size_t n = 0;
    for (int t = 1;; t = bench->compute->threads) {
        size_t first = n;
        if (limits(bench) != NULL) {
            items[n++] = (Item){"limit, multiply-add", limit_multiply, "GFLOP/s", 'm', 0, 0, 0};
            items[n++] = (Item){"limit, read", limit_read, "GB/s", 'r', 0, 0, 0};
        }
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            const Shape *s = &shapes[i];
            items[n] = (Item){"", product, "GFLOP/s", 'm', (int)i, 0, 0};
            snprintf(items[n++].name, sizeof items->name, "%s, %zux%zu by %zux%zu, %s, %s", s->name,
                     s->rows, s->in, s->out, s->in, dtype_name(s->dtype),
                     s->in_out ? "[in, out]" : "[out, in]");
        }
        items[n++] =
            (Item){"scores of 16 heads, 512x512x256", attention_scores, "GFLOP/s", 'm', 0, 0, 0};
        items[n++] = (Item){"SAE of 16k, decoding, 256 rows of 1024 active, F32",
                            decoding_sae,
                            "GFLOP/s",
                            'm',
                            0,
                            0,
                            0};
        for (size_t i = 0; i < 3; i++) {
            items[n] = (Item){"", decoding, "GB/s", 'r', (int)dtypes[i], 0, 0};
            snprintf(items[n++].name, sizeof items->name, "one token, %dx%d, %s", D_MLP, D_MODEL,
                     dtype_name(dtypes[i]));
        }
        for (int i = 0; i < FN_COUNT; i++) {
            items[n] = (Item){"", function, "M/s", 0, i, 0, 0};
            strcpy(items[n++].name, function_names[i]);
        }
        while (first < n) {
            items[first++].threads = t;
        }
        if (t == bench->compute->threads) {
            return n;
        }
    }
}

/* What the system says in its first line "NAME...: VALUE", or "unknown". */
static const char *system_value(Arena *arena, const char *path, const char *name) {
    FILE *file = fopen(path, "r");
    char line[256], *value = NULL;
    while (file != NULL && value == NULL && fgets(line, sizeof line, file) != NULL) {
        value = strncmp(line, name, strlen(name)) == 0 ? strchr(line, ':') : NULL;
    }
    if (file != NULL) {
        fclose(file);
    }
    return value == NULL ? "unknown" : arena_copy(arena, value + 2, strcspn(value + 2, "\n"));
}

static void machine_print(FILE *out, bool json, const Compute *compute) {
    Arena *arena = arena_new();
    fprintf(out,
            json ? "{\"processor\": \"%s\", \"caches\": [%zu, %zu, %zu], \"isa\": \"%s\", "
                 : "%s, caches of %zu, %zu and %zu bytes, %s",
            system_value(arena, "/proc/cpuinfo", "model name"), cache_size(1), cache_size(2),
            cache_size(3), compute_isa(compute));
    arena_free(arena);
}

static void bench_print(FILE *out, bool json, const Bench *bench, const Item *items, size_t n) {
    machine_print(out, json, bench->compute);
    fputs(json ? "\"kernels\": [" : "; best of ten rounds\n", out);
    double multiply_limit = 0.0, read_limit = 0.0;
    for (size_t i = 0; i < n; i++) {
        const Item *item = &items[i];
        multiply_limit = item->measure == limit_multiply ? item->best : multiply_limit;
        read_limit = item->measure == limit_read ? item->best : read_limit;
        double limit = item->limit == 'm' ? multiply_limit : item->limit == 'r' ? read_limit : 0.0;
        const char *row = json ? "%s{\"name\": \"%s\", \"threads\": %d, \"best\": %.1f, "
                                 "\"unit\": \"%s\""
                               : "%s%-62s %3d %9.1f %-8s";
        fprintf(out, row, json && i > 0 ? ", " : "", item->name, item->threads, item->best,
                item->unit);
        if (limit > 0.0) {
            fprintf(out, json ? ", \"of_limit\": %.3f" : "%4.0f %%",
                    (json ? 1.0 : 100.0) * item->best / limit);
        }
        fputs(json ? "}" : "\n", out);
    }
    fputs(json ? "]}\n" : "", out);
}

static void item_round(Bench *bench, Item *item) {
    const double start = progress_now(), work = item->measure(bench, item);
    const double speed = 1e-9 * work / (progress_now() - start);
    item->best = speed > item->best ? speed : item->best;
}

static void bench_layout(Bench *bench, Arena *arena, const Compute *compute) {
    *bench = (Bench){.compute = compute, .weight_bytes = (size_t)D_MLP * D_MODEL * 8};
    bench->x = arena_floats(arena, TOKENS, D_MLP);
    bench->y = arena_floats(arena, TOKENS, D_MLP);
    bench->features = arena_floats(arena, FEATURE_ROWS, D_SAE);
    bench->weights = arena_alloc(arena, bench->weight_bytes, 1);
    for (size_t i = 0; i < (size_t)TOKENS * D_MLP; i++) {
        bench->x[i] = 0.25f + (float)(i * 2654435761u % 4096) / 1024.0f;
    }
    for (size_t i = 0; i < (size_t)FEATURE_ROWS * ACTIVE; i++) { /* each row has its own */
        const size_t every = D_SAE / ACTIVE;
        bench->features[i * every + i / ACTIVE % every] = 0.5f;
    }
    for (size_t i = 0; i < bench->weight_bytes / 2; i++) { /* small and positive in every dtype */
        const uint16_t bits = (uint16_t)(0x3c00 + i * 2654435761u % 256);
        memcpy(bench->weights + 2 * i, &bits, sizeof bits);
    }
}

void bench_kernels(const Compute *compute, bool json, FILE *out) {
    Arena *arena = arena_new();
    Compute one = *compute;
    one.threads = 1;
    Bench bench;
    bench_layout(&bench, arena, compute);
    Item *items = arena_alloc(arena, MAX_ITEMS, sizeof *items);
    const size_t n = bench_items(items, &bench);
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < n; i++) {
            bench.compute = items[i].threads == 1 ? &one : compute;
            item_round(&bench, &items[i]);
        }
    }
    bench.compute = compute;
    bench_print(out, json, &bench, items, n);
    arena_free(arena);
}

/* ---- bench --llm: commands on a model. A stage is what a command does between two signs of its
 * progress, its fastest; so no command has to know of it. ---- */

enum { /* behind those of Meter */
    SECONDS = METERS,
    USER,
    SYSTEM,
    QUANTITIES,
    STAGES_MOST = 64
};

typedef struct Stage {
    const char *command, *what, *unit;
    double took[QUANTITIES]; /* a unit */
    double predicted, held;  /* bytes */
} Stage;

typedef struct ModelBench {
    const BenchModel *model;
    Arena *arena;
    Compute compute;
    double meter[METERS], last[QUANTITIES];
    Bench kernels;
    Item limit[2]; /* multiply-adds, reads */
    const char *command;
    double predicted, before, held; /* bytes: of the command; when it began; at most since */
    Progress seen;
    Stage stages[STAGES_MOST];
    size_t n;
} ModelBench;

static void look(const ModelBench *b, double now[QUANTITIES]) {
    static const char form[] = "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lf %lf";
    FILE *file = fopen("/proc/self/stat", "r");
    memcpy(now, b->meter, sizeof b->meter);
    now[SECONDS] = progress_now();
    now[USER] = now[SYSTEM] = NAN;
    if (file != NULL) {
        (void)fscanf(file, form, &now[USER], &now[SYSTEM]); /* in hundredths of a second */
        fclose(file);
    }
}

/* Bytes of the process that are no file's; NaN: the system does not say. */
static double memory_held(const ModelBench *b) {
    const char *text = system_value(b->arena, "/proc/self/status", "RssAnon");
    return text[0] == 'u' ? NAN : 1024.0 * strtod(text, NULL);
}

static void watch_stage(void *user, const Progress *p) {
    ModelBench *b = user;
    double now[QUANTITIES], units = (double)p->done - (double)b->seen.done;
    size_t i = 0;
    look(b, now);
    b->held = fmax(b->held, memory_held(b) - b->before);
    while (i < b->n && (b->stages[i].command != b->command || b->stages[i].what != p->what)) {
        i++;
    }
    if (p->what == b->seen.what && units > 0.0 && i < STAGES_MOST) {
        Stage *s = &b->stages[i];
        const double best = i == b->n ? INFINITY : s->took[SECONDS];
        const bool faster = (now[SECONDS] - b->last[SECONDS]) / units < best;
        s->command = b->command;
        s->what = p->what;
        s->unit = p->unit;
        s->predicted = b->predicted;
        s->held = b->held;
        for (size_t q = 0; q < QUANTITIES && faster; q++) {
            s->took[q] = (now[q] - b->last[q]) / units;
        }
        b->n = size_larger(b->n, i + 1);
    }
    b->seen = *p;
    look(b, b->last);
}

/* From here on stages are this command's; what `info` predicts for it; the limits once more. */
static void bench_begin(ModelBench *b, const char *command) {
    MemoryStream *text = memory_open(b->arena);
    char *path = arena_format(b->arena, "%s", b->model->llm);
    info_run(&b->compute, &path, 1, true, text->stream);
    const char *told = memory_text(text);
    const Json *paths = json_parse(b->arena, told, text->length, "info");
    const Json *bytes = json_get(json_get(paths->child, "memory"), command);
    for (int round = 0; round < 2 * ROUNDS && limits(&b->kernels) != NULL; round++) {
        item_round(&b->kernels, &b->limit[round % 2]);
    }
    b->command = command;
    b->predicted = bytes != NULL ? json_double(bytes) : NAN;
    b->before = memory_held(b);
    b->held = 0.0;
    b->seen = (Progress){0};
}

/* One pass over as many rows (if the model has room), and from its last row back, or on by 16
 * tokens. */
static void bench_text(ModelBench *b, const char *command, size_t rows, bool decode) {
    enum {
        DECODED = 16
    };
    Arena *arena = arena_new();
    Llm llm;
    llm_open(&llm, arena, b->model->llm);
    size_t layers = llm.config.n_layers, vocab = llm.config.d_vocab, most = llm.config.n_ctx;
    rows = llm.config.rotary_dim > 0 || rows + DECODED < most ? rows : most - DECODED;
    const size_t last = rows - 1;
    LlmPlan plan = {.max_rows = rows,
                    .max_sequence = rows + (decode ? 128 : 0),
                    .max_sequences = 1,
                    .max_logits = 1,
                    .backward = !decode,
                    .cache = decode};
    bench_begin(b, command);
    b->predicted = (double)llm_memory(&llm, &b->compute, &plan);
    LlmRun *run = llm_run_layout(&llm, &b->compute, &plan, arena);
    float *logits = arena_floats(arena, 2, vocab), *dlogits = logits + vocab;
    LlmBatch batch = {.n_sequences = 1,
                      .start = (size_t[]){0, rows},
                      .ids = arena_alloc(arena, rows, sizeof *batch.ids)};
    Progress progress = progress_start("forward", "passes", 0, 1, true);
    llm_forward(run, &batch, 0, layers, NULL, NULL);
    progress_set(&progress, 1, NULL);
    if (!decode) {
        llm_logits(run, &last, 1, true, logits, NULL);
        progress = progress_start("backward", "passes", 0, 1, true);
        llm_backward_start(run);
        llm_logits_backward(run, &last, 1, true, logits, dlogits, NULL);
        llm_backward(run, 0, NULL);
        progress_set(&progress, 1, NULL);
    }
    progress = progress_start("decoding", "tokens", 0, DECODED, true);
    batch.start = (size_t[]){0, 1};
    for (size_t i = 0; decode && i < DECODED; i++) {
        llm_forward(run, &batch, 0, layers, NULL, NULL);
        llm_logits(run, &(size_t){0}, 1, true, logits, NULL);
        progress_set(&progress, i + 1, NULL);
    }
    arena_free(arena);
}

/* Two conversations, each of an image and as much text as `info` reckons with. */
static void write_conversations(void) {
    OutFile *file = out_open("bench.json");
    for (int k = 0; k < 2; k++) {
        fprintf(file->stream,
                "%c{\"id\": %d, \"image\": \"%c.ppm\", \"conversations\": [{\"from\": \"human\", "
                "\"value\": \"<image>\\nWhat is it?\"}, {\"from\": \"gpt\", \"value\": \"",
                "[,"[k], k, "ab"[k]);
        for (int i = 0; i < 160; i++) {
            fputs("a red circle ", file->stream);
        }
        fputs(k == 0 ? "\"}]}" : "\"}]}]", file->stream);
    }
    out_commit(file);
}

static void bench_command(ModelBench *b, const char *command, const char *words,
                          const char *const *paths) {
    bench_begin(b, command);
    b->model->run(&b->compute, words, paths);
}

static void bench_commands(void *user) {
    ModelBench *b = user;
    const BenchModel *m = b->model;
    progress_watch(watch_stage, b);
    bench_text(b, "generate", 512, true);
    if (m->vision != NULL) { /* two steps: in the first weights are read from disk */
        write_conversations();
        bench_command(b, "train",
                      SELFTEST_TRAIN " --data bench.json --batch 1 --accumulate 1 --steps 2 "
                                     "--tokens 512",
                      (const char *[]){m->llm, m->vision});
    }
    if (m->vision != NULL && m->saes != NULL) {
        bench_command(b, "analyze", SELFTEST_ANALYZE " --data bench.json --loss-examples 0",
                      (const char *[]){m->llm, m->vision, m->saes});
    }
    if (m->saes != NULL && m->task != NULL) {
        bench_command(b, "sage", SELFTEST_SAGE, (const char *[]){m->llm, m->saes, m->task});
    }
    for (size_t rows = 64; rows <= m->rows; rows *= 2) {
        bench_text(b, arena_format(b->arena, "%zu rows", rows), rows, false);
    }
}

/* What a stage takes a unit. Shares of its time: what the machine needs at least for its
 * multiply-adds, and for one read of what they are multiplied with; what it was spent on; and of
 * the threads' that in which products packed, in the system (pages, files) and waiting. */
static const char *const figure_names[] = {
    "seconds",  "gflops", "multiply", "read",   "products", "attention", "sparse",
    "elements", "other",  "packing",  "system", "waiting",  "info_mib",  "held_mib"};

enum {
    FIGURES = sizeof figure_names / sizeof *figure_names
};

static void stage_figures(const ModelBench *b, const Stage *s, double x[FIGURES]) {
    const double seconds = s->took[SECONDS], whole = 100.0 * seconds * b->compute.threads;
    x[0] = seconds;
    x[1] = 1e-9 * s->took[METER_OPERATIONS] / seconds;
    for (int i = 0; i < 6; i++) {
        x[2 + i] = s->took[i] / seconds / (i < 2 ? 1e9 * b->limit[i].best : 1.0);
    }
    x[8] = 1.0 - x[4] - x[5] - x[6] - x[7];
    x[9] = 100.0 * s->took[METER_PACKING] / whole;
    const bool told = seconds >= 1.0; /* by a clock of hundredths */
    x[10] = told ? s->took[SYSTEM] / whole : NAN;
    x[11] = told ? 1.0 - (s->took[USER] + s->took[SYSTEM]) / whole : NAN;
    x[12] = 0x1p-20 * s->predicted;
    x[13] = 0x1p-20 * s->held;
}

static void model_print(const ModelBench *b, bool json, FILE *out) {
    machine_print(out, json, &b->compute);
    fprintf(out,
            json ? "\"threads\": %d, \"multiply_limit\": %.1f, \"read_limit\": %.1f, \"stages\": ["
                 : ", threads: %d, %.1f GFLOP/s, %.1f GB/s\n%38s",
            b->compute.threads, b->limit[0].best, b->limit[1].best, "");
    for (size_t i = 0; i < FIGURES && !json; i++) {
        fprintf(out, " %9s", figure_names[i]);
    }
    for (size_t s = 0; s < b->n; s++) {
        const Stage *stage = &b->stages[s];
        double x[FIGURES];
        stage_figures(b, stage, x);
        fprintf(out,
                json ? "%s{\"command\": \"%s\", \"stage\": \"%s\", \"unit\": \"%s\""
                     : "%s%-10s %-14s %-12s",
                json ? s > 0 ? ", " : "" : "\n", stage->command, stage->what, stage->unit);
        for (size_t i = 0; i < FIGURES; i++) {
            if (json) {
                fprintf(out, ", \"%s\": ", figure_names[i]);
                char number[JSON_NUMBER_SIZE];
                json_format_double(number, x[i]);
                fputs(number, out);
            } else {
                fprintf(out, " %9.3g", x[i]);
            }
        }
        fputs(json ? "}" : "", out);
    }
    fputs(json ? "]}\n" : "\n", out);
}

/* A path that still holds in another folder. */
static const char *from_here(Arena *arena, const char *path) {
    const char *real = path != NULL ? path_real(arena, path) : NULL;
    if (path != NULL && real == NULL) {
        fail_errno(errno, path, "open");
    }
    return real;
}

void bench_model(const Compute *compute, const BenchModel *model, bool json, FILE *out) {
    Arena *arena = arena_new();
    BenchModel here = {from_here(arena, model->llm),
                       from_here(arena, model->vision),
                       from_here(arena, model->saes),
                       model->task,
                       model->rows,
                       model->run};
    ModelBench *b = arena_alloc(arena, 1, sizeof *b);
    *b = (ModelBench){.model = &here, .arena = arena, .compute = *compute};
    b->compute.meter = b->meter;
    b->limit[0] = (Item){.measure = limit_multiply, .threads = compute->threads};
    b->limit[1] = (Item){.measure = limit_read};
    bench_layout(&b->kernels, arena, compute);
    selftest_world(bench_commands, b);
    model_print(b, json, out);
    arena_free(arena);
}
