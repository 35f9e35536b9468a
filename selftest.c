/* selftest.c: what this machine does. Whether its bits are right: a world made from random numbers,
 * every command run on it, and the digests that must come out, without files or network. And how
 * fast it is: the kernels beside what the machine can do. */
#include "selftest.h"

#include "dump.h"
#include "info.h"
#include "kernelset.h"
#include "model_load.h"
#include "report.h"
#include "run_sage.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "selftest_files.h"

/* ---- the digests ---- */

/* In the order of the stages. An intended change of a result changes its line: `refsae selftest`
 * prints what it found. */
static const struct {
    const char *file, *digest;
} expected[] = {
    {"functions", "a21f002243c742e931ebeeffab162110c330c885abf1db2885b9ccdfe70570d8"},
    {"gemma2.st", "965a84f307b21dcaa47578fd60a9ea5d418b7cb62e26cf926947822645dc4922"},
    {"gpt2.st", "d7f8e46325c1eac7fe01a002c4f4a7fd07e792c444e94987d487b46f65c22420"},
    {"gpt_neox.st", "d31a64310dccb2b16813ef404173ff45818a8945470f5c9314aa44f01e813966"},
    {"clip.st", "82629ddaea092a7dca6c5178f912e752c2c81efb1994d11d67e188e01efd2113"},
    {"png.st", "875812a55e921cd03bf28ce8ef22fa072f2afb509840d4feb9ed2e65f0622353"},
    {"train/adapter.safetensors",
     "15c0fa4cc23dc3c7bbbc7ed8895fbb54882746e645308437ba240e8b110f452e"},
    {"train/checkpoint.safetensors",
     "580b282bdcf1ba393fc610808ca84d5cb033f33a2f2400f6ee238ef7063abee8"},
    {"train/train.csv", "f161707af2994f4d2371aa969a53fa43260e5c029d6fc4a56c1e1b5b3572649e"},
    {"eval/answers.jsonl", "9289f38e3790c30b4c58188536e9546f613be7ccbbe02526bf26b94bad893e64"},
    {"eval/scores.json", "599598c1d31f094bf3e6f73d3fc08fa8024feced325628f9dedf10c87ba7b288"},
    {"analyze/layers.csv", "f298d5dd48fc1ecd87cb58f3ea7e8daedf2fba1e01dc433260bd1e36de69fbde"},
    {"analyze/layers.json", "9d42cbf57db5d5bcc241492135fd6a770b02c03a9af041227f07cce01e00bee0"},
    {"analyze/features.jsonl", "e2bdda632be00181f4d7d1cee01a574f98bf962be6f3ab55c8d290d875dcf7a1"},
    {"sage/prompts.jsonl", "194d378f37b4d2cfd987c8e2a845f1abbe1e68ea6be02083d91e13beccde7f32"},
    {"sage/cross_sections.csv", "7c1c37b259f00a7722f4183922f7bab1d63017b9c28cf536190b61db364c17a4"},
    {"sage/sage.csv", "38a0388ce98b47b315a501445472e625119fedd08c48f3531ab5339a1bac0325"},
    {"sage/sage.json", "6a8e1d6e1e36a6c506818d142ae17aae586b4455f1a0ba64f75567401db20807"},
};

enum {
    N_EXPECTED = sizeof expected / sizeof *expected
};

/* ---- files ---- */

/* The files that are no random numbers, as they lie in selftest/. */
static void write_files(void) {
    Arena *arena = arena_new();
    for (size_t i = 0; i < sizeof selftest_files / sizeof *selftest_files; i++) {
        const char *name = selftest_files[i].name, *slash = strrchr(name, '/');
        if (slash != NULL) {
            path_make_directory(arena_copy(arena, name, (size_t)(slash - name)));
        }
        OutFile *file = out_open(name);
        fwrite(selftest_files[i].text, 1, selftest_files[i].size, file->stream);
        out_commit(file);
    }
    arena_free(arena);
}

void remove_tree(const char *path, int depth) {
    if (depth == 8 || !path_is_directory(path)) {
        (void)unlink(path);
        return;
    }
    Arena *arena = arena_new();
    size_t count;
    char **names = path_list(arena, path, &count);
    for (size_t i = 0; i < count; i++) {
        remove_tree(path_join(arena, path, names[i]), depth + 1);
    }
    (void)rmdir(path);
    arena_free(arena);
}

/* ---- random checkpoints ---- */

/* BF16 and F16 by dropping the low bits; what is too small for an F16 is 0. */
static uint16_t narrow(float x, Dtype dtype) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (dtype == DTYPE_BF16) {
        return (uint16_t)(bits >> 16);
    }
    uint32_t exponent = (bits >> 23) & 0xff;
    uint32_t low = exponent < 113 ? 0 : ((exponent - 112) << 10) | ((bits >> 13) & 0x3ff);
    return (uint16_t)(((bits >> 16) & 0x8000) | low);
}

/* A line of tensors.txt: "NAME MEAN SPREAD SHAPE..."; false: of another kind. */
static bool tensor_line(const char *line, char name[96], float *mean, float *spread, int *rank,
                        size_t shape[4]) {
    int found = line == NULL ? 0
                             : sscanf(line, "%95s %f %f %zu %zu %zu %zu", name, mean, spread, shape,
                                      shape + 1, shape + 2, shape + 3);
    *rank = found - 3;
    return found > 3;
}

/* Draws the tensors below a line "> FILE DTYPE", which are normal numbers from a stream of the
 * file's own; returns the next such line. */
static char **draw_file(Arena *arena, char **lines, uint64_t stream) {
    char path[96], type[8], name[96];
    float mean, spread;
    int rank;
    size_t shape[4];
    sscanf(*lines++, "> %95s %7s", path, type);
    Dtype dtype = type[0] == 'B' ? DTYPE_BF16 : strcmp(type, "F16") == 0 ? DTYPE_F16 : DTYPE_F32;
    Random random = random_start(1, RANDOM_TEST + (stream << 32));
    path_make_directory(path_parent(arena, path));
    TensorWriter *writer = tensor_writer_open(path);
    for (char **line = lines; tensor_line(*line, name, &mean, &spread, &rank, shape); line++) {
        tensor_writer_declare(writer, name, dtype, rank, shape);
    }
    for (; tensor_line(*lines, name, &mean, &spread, &rank, shape); lines++) {
        size_t count = 1;
        float normals[2];
        for (int d = 0; d < rank; d++) {
            count *= shape[d];
        }
        for (size_t k = 0; k < count; k++) {
            if (k % 2 == 0) {
                random_normals(&random, normals);
            }
            float x = mean + spread * normals[k % 2];
            uint16_t half = narrow(x, dtype);
            tensor_writer_data(writer, dtype == DTYPE_F32 ? (void *)&x : (void *)&half,
                               dtype_size(dtype), 1);
        }
    }
    tensor_writer_commit(writer);
    return lines;
}

static void draw_checkpoints(void) {
    Arena *arena = arena_new();
    FileMap map = file_map(arena, "tensors.txt");
    char *text = arena_copy(arena, (const char *)map.data, map.size), **lines = NULL;
    size_t count = 0, capacity = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        lines = arena_grow(arena, lines, &capacity, count + 2, sizeof *lines);
        lines[count++] = line;
    }
    uint64_t stream = 1;
    for (char **line = lines; *line != NULL;) {
        line = draw_file(arena, line, stream++);
    }
    arena_free(arena);
}

/* ---- the stages ---- */

static const struct {
    const char *name;
    float (*of)(float);
} functions[FN_COUNT] = {
    [FN_EXP] = {"exp", exp_f32}, [FN_LOG] = {"log", log_f32}, [FN_TANH] = {"tanh", tanh_f32},
    [FN_ERF] = {"erf", erf_f32}, [FN_SIN] = {"sin", sin_f32}, [FN_COS] = {"cos", cos_f32}};

static void run_functions(void) {
    Random random = random_start(1, RANDOM_TEST);
    OutFile *file = out_open("functions");
    for (int f = 0; f < FN_COUNT; f++) {
        for (int i = 0; i < 20000; i++) {
            float x, y;
            uint32_t bits = random_word(&random);
            memcpy(&x, &bits, sizeof x);
            y = functions[f].of(x);
            if (y == y) { /* the bits of a NaN are its own */
                unsigned char bytes[sizeof y];
                little_copy(bytes, &y, sizeof y, 1);
                fwrite(bytes, sizeof y, 1, file->stream);
            }
        }
    }
    out_commit(file);
}

static VlmOptions selftest_train(const char *llm, const char *vision) {
    return (VlmOptions){.llm = llm,
                        .vision = vision,
                        .data = "data.json",
                        .images = "images",
                        .out = "train",
                        .shuffle = true,
                        .lr = 1e-2,
                        .min_lr = 1e-8,
                        .warmup = 0.3,
                        .batch = 2,
                        .accumulate = 2,
                        .epochs = 3,
                        .tokens = 60,
                        .seed = 475};
}

static VlmOptions selftest_analyze(const char *llm, const char *vision, const char *saes) {
    return (VlmOptions){.llm = llm,
                        .vision = vision,
                        .adapter = "train/adapter.safetensors",
                        .saes = saes,
                        .data = "data.json",
                        .images = "images",
                        .out = "analyze",
                        .judge = "lexical",
                        .examples = 4,
                        .loss_examples = 2,
                        .features = 3,
                        .max_frequency = 1,
                        .max_density = 1,
                        .converge = 1.5,
                        .canonical = true,
                        .seed = 475};
}

static SageOptions selftest_sage(const char *llm, const char *saes, const char *task) {
    return (SageOptions){
        .vlm = {.llm = llm, .saes = saes, .out = "sage", .bos = 1, .canonical = true, .seed = 475},
        .task = task,
        .nodes = "q,k,v,z,mlp_out",
        .projection = "auto",
        .n = {24, 12},
        .share = 0.5,
        .f1 = {0.5},
        .max_nodes = 8,
        .n_f1 = 1};
}

static void run_stages(const Compute *compute) {
    static const char *const llms[] = {"gemma2", "gpt2", "gpt_neox"}, *const dumps[] = {
                                                                          "gemma2.st", "gpt2.st",
                                                                          "gpt_neox.st"};
    const Console console = {.quiet = true, .command = "refsae selftest"};
    run_functions();
    for (size_t i = 0; i < 3; i++) {
        DumpOptions dump = {
            .vlm = {.llm = llms[i], .ids = "2,70,71,261,9,100,33,262,12,250,8", .bos = -1},
            .hooks = "*",
            .grad = "261,262",
            .out = dumps[i]};
        dump_run(compute, &dump, &console);
    }
    DumpOptions vision = {.vlm = {.vision = "clip", .image = "images/c.jpg", .bos = -1},
                          .hooks = "*",
                          .out = "clip.st"};
    DumpOptions picture = {
        .vlm = {.image = "images/d.png", .bos = -1}, .hooks = "image.rgb", .out = "png.st"};
    dump_run(compute, &vision, &console);
    dump_run(compute, &picture, &console);
    Arena *arena = arena_new();
    VlmOptions train = selftest_train("gemma2", "clip");
    (void)run_train(arena, compute, &train, &console);
    VlmOptions eval = {.llm = "gemma2",
                       .vision = "clip",
                       .adapter = "train/adapter.safetensors",
                       .questions = "questions.jsonl",
                       .images = "images",
                       .out = "eval",
                       .max_new_tokens = 6,
                       .sampling = {.temperature = 0.7, .top_k = 40, .top_p = 0.9},
                       .seed = 475};
    run_eval(compute, &eval, &console);
    VlmOptions analyze = selftest_analyze("gemma2", "clip", "saes_gemma2");
    AnalyzeResult layers = run_analyze(arena, compute, &analyze, &console);
    report_analyze(&layers, &(LayerTable){.n = 0});
    SageOptions sage = selftest_sage("gpt2", "saes_gpt2", "task.json");
    SageResult found = sage_run(arena, compute, &sage, &console);
    report_sage(&found);
    arena_free(arena);
}

static void compare(bool json, FILE *out) {
    size_t wrong = 0;
    fputs(json ? "[" : "", out);
    for (size_t i = 0; i < N_EXPECTED; i++) {
        char digest[65];
        sha256_file(expected[i].file, digest);
        bool same = strcmp(digest, expected[i].digest) == 0;
        wrong += same ? 0 : 1;
        fprintf(out,
                json ? "%s{\"output\": \"%s\", \"sha256\": \"%s\", \"same\": %s}"
                     : "%s%-28s %s  %s\n",
                json && i > 0 ? ", " : "", expected[i].file, digest,
                json   ? same ? "true" : "false"
                : same ? "ok"
                       : "DIFFERS");
    }
    fputs(json ? "]\n" : "", out);
    if (wrong > 0) {
        fail(STATUS_CHECK, "selftest: %zu of %d outputs have other bytes than they should", wrong,
             (int)N_EXPECTED);
    }
}

void selftest_inside(const char *path, void (*work)(void *user), void *user) {
    char back[4096];
    Error error;
    if (getcwd(back, sizeof back) == NULL || chdir(path) != 0) {
        fail(STATUS_RESOURCE, "%s: %s", path, strerror(errno));
    }
    ATTEMPT(&error, write_files(); draw_checkpoints(); work(user));
    if (chdir(back) != 0 && error.status == STATUS_OK) {
        ATTEMPT(&error, fail(STATUS_RESOURCE, "the way back from %s: %s", path, strerror(errno)));
    }
    if (error.status != STATUS_OK) {
        fail(error.status, "%s", error.text);
    }
}

typedef struct Check {
    const Compute *compute;
    bool json;
    FILE *out;
} Check;

static void check_stages(void *user) {
    const Check *check = user;
    run_stages(check->compute);
    compare(check->json, check->out);
}

/* A folder of our own below TMPDIR; its name is `size` bytes at most. */
static void make_world(char *path, size_t size) {
    const char *base = getenv("TMPDIR");
    base = base != NULL && base[0] != '\0' ? base : "/tmp";
    int made = -1;
    errno = EEXIST;
    for (int n = 0; made != 0 && errno == EEXIST && n < 10000; n++) {
        int length = snprintf(path, size, "%s/refsae-selftest-%d", base, n);
        bool fits = length >= 0 && (size_t)length < size;
        errno = fits ? 0 : ENAMETOOLONG;
        made = fits ? mkdir(path, 0700) : -1;
    }
    if (made != 0) {
        fail(STATUS_RESOURCE, "selftest: no folder can be made in %s: %s (see TMPDIR)", base,
             strerror(errno));
    }
}

/* Works on a world that is gone afterwards. */
static void in_world(void (*work)(void *user), void *user) {
    char path[4096];
    Error error, ignored;
    make_world(path, sizeof path);
    ATTEMPT(&error, selftest_inside(path, work, user));
    ATTEMPT(&ignored, remove_tree(path, 0)); /* must not hide why the work failed */
    if (error.status != STATUS_OK) {
        fail(error.status, "%s", error.text);
    }
}

void selftest_run(const Compute *compute, bool json, FILE *out) {
    in_world(check_stages, &(Check){compute, json, out});
}

/* ---- bench: how near the kernels come to what this machine can do, at the published models'
 * shapes. Noise on shared machines is 10 % within minutes, so every figure is the best of ten
 * rounds, and a round measures everything once, the limits included. ---- */

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

/* Decoding by every 16th feature of an SAE of 16k, in all of 256 rows. */
static double decoding_sae(Bench *bench, const Item *item) {
    static size_t start[257];
    static uint32_t column[256 * 1024];
    for (size_t r = 0; r < 256; r++) {
        start[r + 1] = (r + 1) * 1024;
        for (size_t i = 0; i < 1024; i++) {
            column[r * 1024 + i] = (uint32_t)(16 * i);
        }
    }
    (void)item;
    sparse_run(bench->compute, bench->y, start, column, bench->x, 256,
               (Weight){bench->weights, DTYPE_F32}, D_MODEL, 1, D_MODEL);
    return 2.0 * (double)start[256] * D_MODEL;
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
            strcpy(items[n++].name, functions[i].name);
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
    bench->weights = arena_alloc(arena, bench->weight_bytes, 1);
    for (size_t i = 0; i < (size_t)TOKENS * D_MLP; i++) {
        bench->x[i] = 0.25f + (float)(i * 2654435761u % 4096) / 1024.0f;
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

static void bench_mapping(ModelBench *b, const Console *console) {
    VlmOptions train = selftest_train(b->model->llm, b->model->vision);
    VlmOptions analyze = selftest_analyze(b->model->llm, b->model->vision, b->model->saes);
    write_conversations();
    train.data = analyze.data = "bench.json";
    train.batch = train.accumulate = 1;
    train.steps = analyze.examples = 2; /* in the first step weights are read from disk */
    train.tokens = 512;
    analyze.loss_examples = 0;
    bench_begin(b, "train");
    (void)run_train(b->arena, &b->compute, &train, console);
    if (b->model->saes != NULL) {
        bench_begin(b, "analyze");
        (void)run_analyze(b->arena, &b->compute, &analyze, console);
    }
}

static void bench_commands(void *user) {
    ModelBench *b = user;
    const Console console = {.quiet = true, .command = "refsae bench"};
    progress_watch(watch_stage, b);
    bench_text(b, "generate", 512, true);
    if (b->model->vision != NULL) {
        bench_mapping(b, &console);
    }
    if (b->model->saes != NULL && b->model->task != NULL) {
        SageOptions sage = selftest_sage(b->model->llm, b->model->saes, b->model->task);
        bench_begin(b, "sage");
        (void)sage_run(b->arena, &b->compute, &sage, &console);
    }
    for (size_t rows = 64; rows <= b->model->rows; rows *= 2) {
        bench_text(b, arena_format(b->arena, "%zu rows", rows), rows, false);
    }
}

/* What a stage takes a unit. Shares of its time: what the machine needs at least for its
 * multiply-adds, and for one read of what they are multiplied with; what it was spent on; and of
 * the threads' the time in the system (pages, files) and that in which they waited. */
static const char *const figure_names[] = {"seconds",  "gflops",  "multiply", "read",
                                           "products", "sparse",  "elements", "other",
                                           "system",   "waiting", "info_mib", "held_mib"};

enum {
    FIGURES = sizeof figure_names / sizeof *figure_names
};

static void stage_figures(const ModelBench *b, const Stage *s, double x[FIGURES]) {
    const double seconds = s->took[SECONDS], whole = 100.0 * seconds * b->compute.threads;
    x[0] = seconds;
    x[1] = 1e-9 * s->took[METER_OPERATIONS] / seconds;
    for (int i = 0; i < 5; i++) {
        x[2 + i] = s->took[i] / seconds / (i < 2 ? 1e9 * b->limit[i].best : 1.0);
    }
    x[7] = 1.0 - x[4] - x[5] - x[6];
    x[8] = s->took[SYSTEM] / whole;
    x[9] = 1.0 - (s->took[USER] + s->took[SYSTEM]) / whole;
    x[10] = 0x1p-20 * s->predicted;
    x[11] = 0x1p-20 * s->held;
}

static void model_print(const ModelBench *b, bool json, FILE *out) {
    machine_print(out, json, &b->compute);
    fprintf(out,
            json ? "\"threads\": %d, \"multiply_limit\": %.1f, \"read_limit\": %.1f, \"stages\": ["
                 : ", %d threads, %.1f GFLOP/s, %.1f GB/s\n%38s",
            b->compute.threads, b->limit[0].best, b->limit[1].best, "");
    for (size_t i = 0; i < FIGURES && !json; i++) {
        fprintf(out, " %8s", figure_names[i]);
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
                fprintf(out, " %8.3g", x[i]);
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
    BenchModel here = {from_here(arena, model->llm), from_here(arena, model->vision),
                       from_here(arena, model->saes), model->task, model->rows};
    ModelBench *b = arena_alloc(arena, 1, sizeof *b);
    *b = (ModelBench){.model = &here, .arena = arena, .compute = *compute};
    b->compute.meter = b->meter;
    b->limit[0] = (Item){.measure = limit_multiply, .threads = compute->threads};
    b->limit[1] = (Item){.measure = limit_read};
    bench_layout(&b->kernels, arena, compute);
    in_world(bench_commands, b);
    model_print(b, json, out);
    arena_free(arena);
}
