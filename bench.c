/* bench.c: how near the kernels come to what this machine can do, at the published models' shapes.
 * Noise on shared machines is 10 % within minutes, so every figure is the best of ten rounds, and a
 * round measures everything once, the limits included. Floor 15. */
#include "bench.h"

#include <string.h>
#include <unistd.h>

#include "kernelset.h"

enum {
    ROUNDS = 10,
    TOKENS = 512,
    D_MODEL = 2304,
    D_MLP = 9216,
    HEADS = 16,
    D_HEAD = 256,
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
    product_run(bench->compute, p, HEADS);
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

static size_t bench_items(Item *items, const Bench *bench) {
    static const char *const functions[] = {"exp", "log", "tanh", "erf", "sin", "cos"};
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
        for (size_t i = 0; i < 3; i++) {
            items[n] = (Item){"", decoding, "GB/s", 'r', (int)dtypes[i], 0, 0};
            snprintf(items[n++].name, sizeof items->name, "one token, %dx%d, %s", D_MLP, D_MODEL,
                     dtype_name(dtypes[i]));
        }
        for (int i = 0; i < FN_COUNT; i++) {
            items[n] = (Item){"", function, "M/s", 0, i, 0, 0};
            strcpy(items[n++].name, functions[i]);
        }
        while (first < n) {
            items[first++].threads = t;
        }
        if (t == bench->compute->threads) {
            return n;
        }
    }
}

/* What the system says of the processor: a name and the sizes of its caches, or "unknown" and 0. */
static const char *processor_name(Arena *arena) {
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[256], *name = NULL;
    while (file != NULL && name == NULL && fgets(line, sizeof line, file) != NULL) {
        name = strncmp(line, "model name", 10) == 0 ? strchr(line, ':') : NULL;
    }
    if (file != NULL) {
        fclose(file);
    }
    return name == NULL ? "unknown" : arena_copy(arena, name + 2, strcspn(name + 2, "\n"));
}

static size_t cache_size(int level) {
    long size = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    static const int names[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE,
                                _SC_LEVEL3_CACHE_SIZE};
    size = sysconf(names[level - 1]);
#endif
    (void)level;
    return size > 0 ? (size_t)size : 0;
}

static void bench_print(FILE *out, bool json, const Bench *bench, const Item *items, size_t n) {
    Arena *arena = arena_new();
    fprintf(out,
            json ? "{\"processor\": \"%s\", \"caches\": [%zu, %zu, %zu], \"isa\": \"%s\", "
                   "\"kernels\": ["
                 : "%s, caches of %zu, %zu and %zu bytes, %s; best of ten rounds\n",
            processor_name(arena), cache_size(1), cache_size(2), cache_size(3),
            compute_isa(bench->compute));
    arena_free(arena);
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

void bench_kernels(const Compute *compute, bool json, FILE *out) {
    Arena *arena = arena_new();
    Compute one = *compute;
    one.threads = 1;
    Bench bench = {.compute = compute, .weight_bytes = (size_t)D_MLP * D_MODEL * 8};
    bench.x = arena_floats(arena, TOKENS, D_MLP);
    bench.y = arena_floats(arena, TOKENS, D_MLP);
    bench.weights = arena_alloc(arena, bench.weight_bytes, 1);
    Item *items = arena_alloc(arena, MAX_ITEMS, sizeof *items);
    for (size_t i = 0; i < (size_t)TOKENS * D_MLP; i++) {
        bench.x[i] = 0.25f + (float)(i * 2654435761u % 4096) / 1024.0f;
    }
    for (size_t i = 0; i < bench.weight_bytes / 2; i++) { /* small and positive in every dtype */
        const uint16_t bits = (uint16_t)(0x3c00 + i * 2654435761u % 256);
        memcpy(bench.weights + 2 * i, &bits, sizeof bits);
    }
    const size_t n = bench_items(items, &bench);
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < n; i++) {
            bench.compute = items[i].threads == 1 ? &one : compute;
            const double start = progress_now(), work = items[i].measure(&bench, &items[i]);
            const double speed = 1e-9 * work / (progress_now() - start);
            items[i].best = speed > items[i].best ? speed : items[i].best;
        }
    }
    bench.compute = compute;
    bench_print(out, json, &bench, items, n);
    arena_free(arena);
}
