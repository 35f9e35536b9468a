/* vectors.c: conformance vectors: inputs of a few kilobytes in the formats that people use, what
 * must come out of them, and what comes out of known misreadings. Which there are is data,
 * selftest/vectors.json; here stands how one of each kind is run. */
#include "vectors.h"

#include "checkpoint.h"
#include "dump.h"
#include "report.h"
#include "run_sage.h"
#include "selftest.h"

#include <errno.h>
#include <math.h>
#include <string.h>

static const char wrong_folder[] = "wrong", run_folder[] = "run", sage_folder[] = "sage_run",
                  tensor_file[] = "run.safetensors";

/* ---- what goes in ---- */

typedef struct Inputs {
    const Compute *compute;
    const Json *own, *instead; /* a misreading's come first; NULL: none */
    Arena *arena;
} Inputs;

static const Json *in_value(const Inputs *in, const char *key) {
    const Json *value = json_get(in->instead, key);
    return value != NULL ? value : json_get(in->own, key);
}

static const char *in_text(const Inputs *in, const char *key) {
    const Json *value = in_value(in, key);
    return value != NULL ? value->text : NULL;
}

static double in_number(const Inputs *in, const char *key) {
    const Json *value = in_value(in, key);
    return value != NULL ? json_double(value) : 0.0;
}

static size_t in_size(const Inputs *in, const char *key) {
    return (size_t)in_number(in, key);
}

static bool in_flag(const Inputs *in, const char *key) {
    return json_is(in_value(in, key), JSON_TRUE);
}

/* ---- what comes out: tensors of F32, F64 (of which NaN stands for null), I32 or U8 ---- */

typedef struct Outcome {
    Tensor *tensors;
    size_t count, room;
} Outcome;

static double number_at(const Tensor *t, size_t i) {
    return t->dtype == DTYPE_F64   ? ((const double *)t->data)[i]
           : t->dtype == DTYPE_I32 ? ((const int32_t *)t->data)[i]
           : t->dtype == DTYPE_U8  ? ((const unsigned char *)t->data)[i]
                                   : (double)weight_at((Weight){t->data, t->dtype}, i);
}

static void outcome_add(const Inputs *in, Outcome *outcome, Tensor tensor) {
    const char *take = in_text(in, "take");
    if (take == NULL || glob_match(take, tensor.name)) {
        outcome->tensors = arena_grow(in->arena, outcome->tensors, &outcome->room,
                                      outcome->count + 1, sizeof tensor);
        outcome->tensors[outcome->count++] = tensor;
    }
}

static void outcome_row(const Inputs *in, Outcome *outcome, const char *name, Dtype dtype,
                        const void *data, size_t count) {
    Tensor row = {.name = name, .data = data, .dtype = dtype, .rank = 1, .shape = {count}};
    row.count = count;
    outcome_add(in, outcome, row);
}

static void outcome_file(const Inputs *in, Outcome *outcome, const char *path) {
    TensorStore store;
    tensors_open(&store, in->arena, path);
    for (size_t i = 0; i < store.count; i++) {
        outcome_add(in, outcome, store.tensors[i]);
    }
}

typedef struct Numbers {
    double *values;
    size_t count, room;
} Numbers;

/* Those below a path of keys, which passes through arrays; NULL: the value's own. */
static void numbers_add(Numbers *numbers, const Json *value, const Json *path, Arena *arena) {
    if (json_is(value, JSON_ARRAY)) {
        for (const Json *v = value->child; v != NULL; v = v->next) {
            numbers_add(numbers, v, path, arena);
        }
    } else if (path != NULL) {
        numbers_add(numbers, json_get(value, path->text), path->next, arena);
    } else {
        numbers->values = arena_grow(arena, numbers->values, &numbers->room, numbers->count + 1,
                                     sizeof *numbers->values);
        numbers->values[numbers->count++] =
            json_is(value, JSON_NUMBER) ? json_double(value) : (double)NAN;
    }
}

static float *in_floats(const Inputs *in, const char *key, size_t *count) {
    Numbers numbers = {0};
    numbers_add(&numbers, in_value(in, key), NULL, in->arena);
    float *values = arena_floats(in->arena, 1, numbers.count);
    for (size_t i = 0; i < numbers.count; i++) {
        values[i] = (float)numbers.values[i];
    }
    *count = numbers.count;
    return values;
}

/* ---- the kinds ---- */

static const Console console = {.quiet = true, .command = "refsae vectors"};

static void run_dump(const Inputs *in, Outcome *outcome) {
    DumpOptions options = {.vlm = {.llm = in_text(in, "llm"),
                                   .ids = in_text(in, "ids"),
                                   .text = in_text(in, "text"),
                                   .prompt = in_text(in, "prompt"),
                                   .vision = in_text(in, "vision"),
                                   .image = in_text(in, "image"),
                                   .adapter = in_text(in, "adapter"),
                                   .bos = -1,
                                   .sae = {.norm_factor = in_number(in, "norm_factor"),
                                           .unit_decoder = in_flag(in, "unit_decoder")}},
                           .sae = in_text(in, "sae"),
                           .input = in_text(in, "input"),
                           .hooks = in_text(in, "hooks"),
                           .grad = in_text(in, "grad"),
                           .out = tensor_file};
    dump_run(in->compute, &options, &console);
    outcome_file(in, outcome, tensor_file);
}

static void run_tokenize(const Inputs *in, Outcome *outcome) {
    const Tokenizer *tokenizer = tokenizer_open(in->arena, in_text(in, "tokenizer"));
    size_t length;
    if (in_text(in, "text") != NULL) {
        const Json *text = in_value(in, "text");
        Tokens tokens = tokenizer_encode(tokenizer, text->text, text->length,
                                         in_flag(in, "special"), in->arena);
        outcome_row(in, outcome, "ids", DTYPE_I32, tokens.id, tokens.count);
    } else {
        int32_t *ids = token_ids_parse(in->arena, in_text(in, "ids"), "ids", &length);
        const char *text = tokenizer_decode(tokenizer, ids, length, true, in->arena, &length);
        outcome_row(in, outcome, "utf8", DTYPE_U8, text, length);
    }
}

static void run_training(const Inputs *in, Outcome *outcome) {
    VlmOptions options = {.llm = in_text(in, "llm"),
                          .vision = in_text(in, "vision"),
                          .data = in_text(in, "data"),
                          .images = in_text(in, "images"),
                          .init = in_text(in, "adapter"),
                          .out = in->instead != NULL ? wrong_folder : run_folder,
                          .softcap = in_flag(in, "softcap"),
                          .lr = in_number(in, "lr"),
                          .min_lr = in_number(in, "min_lr"),
                          .batch = 1,
                          .accumulate = 1,
                          .epochs = 1,
                          .steps = in_size(in, "steps"),
                          .tokens = in_size(in, "tokens")};
    TrainResult result = run_train(in->arena, in->compute, &options, &console);
    outcome_row(in, outcome, "loss", DTYPE_F64, result.loss, result.steps);
    outcome_file(in, outcome, path_join(in->arena, options.out, "adapter.safetensors"));
}

static void run_schedule(const Inputs *in, Outcome *outcome) {
    VlmOptions options = {.lr = in_number(in, "lr"),
                          .min_lr = in_number(in, "min_lr"),
                          .warmup = in_number(in, "warmup")};
    size_t steps = in_size(in, "steps");
    double *rates = arena_alloc(in->arena, steps, sizeof *rates);
    for (size_t s = 0; s < steps; s++) {
        rates[s] = train_lr(&options, s, steps);
    }
    outcome_row(in, outcome, "lr", DTYPE_F64, rates, steps);
}

/* The same gradient at each step. */
static void run_adamw(const Inputs *in, Outcome *outcome) {
    size_t n, steps = in_size(in, "steps");
    float *p = in_floats(in, "p", &n), *g = in_floats(in, "g", &n);
    float *m = arena_floats(in->arena, 1, n), *v = arena_floats(in->arena, 1, n);
    for (size_t t = 1; t <= steps; t++) {
        adamw_step(in->compute, p, g, m, v, n, in_number(in, "lr"), 0.9, 0.999, 1e-8,
                   in_number(in, "weight_decay"), t);
    }
    outcome_row(in, outcome, "p", DTYPE_F32, p, n);
}

static void run_spearman(const Inputs *in, Outcome *outcome) {
    Numbers score = {0}, effect = {0};
    double *rho = arena_alloc(in->arena, 1, sizeof *rho);
    numbers_add(&score, in_value(in, "score"), NULL, in->arena);
    numbers_add(&effect, in_value(in, "effect"), NULL, in->arena);
    *rho = sage_spearman(score.values, effect.values, score.count);
    outcome_row(in, outcome, "spearman", DTYPE_F64, rho, 1);
}

/* Words of Philox4x32-10, and normals made of the first of them. */
static void run_random(const Inputs *in, Outcome *outcome) {
    size_t count = in_size(in, "count");
    double *words = arena_alloc(in->arena, count, sizeof *words);
    float *normals = arena_floats(in->arena, count, 2);
    Random random = random_start(in_size(in, "seed"), in_size(in, "stream")), again = random;
    for (size_t i = 0; i < count; i++) {
        words[i] = random_word(&random);
        random_normals(&again, normals + 2 * i);
    }
    outcome_row(in, outcome, "words", DTYPE_F64, words, count);
    outcome_row(in, outcome, "normals", DTYPE_F32, normals, count);
}

static void run_statistics(const Inputs *in, Outcome *outcome) {
    size_t n, d = in_size(in, "d");
    const float *x = in_floats(in, "x", &n), *recon = in_floats(in, "recon", &n);
    SaeStats *stats = arena_alloc(in->arena, 1, sizeof *stats);
    *stats = sae_stats(x, recon, x, n / d, d, d);
    outcome_row(in, outcome, "mse", DTYPE_F64, &stats->mse, 1);
    outcome_row(in, outcome, "fvu", DTYPE_F64, &stats->fvu, 1);
}

static void keep(const Inputs *in, const char *name, const char *key) {
    const char *to = in_text(in, key);
    path_make_directory(path_parent(in->arena, to));
    if (rename(path_join(in->arena, sage_folder, name), to) != 0) {
        fail_errno(errno, to, "cannot be written");
    }
}

/* Figures of a run of sage below a path of keys; one run serves all vectors. */
static void run_sage(const Inputs *in, Outcome *outcome) {
    const char *figures = path_join(in->arena, sage_folder, "sage.json");
    Numbers numbers = {0};
    if (!path_exists(figures)) {
        SageOptions options = {.vlm = {.llm = in_text(in, "llm"),
                                       .saes = in_text(in, "saes"),
                                       .out = sage_folder,
                                       .bos = 1,
                                       .seed = in_size(in, "seed")},
                               .task = in_text(in, "task"),
                               .nodes = in_text(in, "nodes"),
                               .projection = in_text(in, "projection"),
                               .n = {in_size(in, "train"), in_size(in, "test")},
                               .share = in_number(in, "share"),
                               .max_nodes = in_size(in, "max_nodes")};
        SageResult result = sage_run(in->arena, in->compute, &options, &console);
        report_sage(&result);
        keep(in, "prompts.jsonl", "prompts");
        keep(in, "cross_sections.json", "cross_sections");
    }
    numbers_add(&numbers, json_read_file(in->arena, figures), in_value(in, "path")->child,
                in->arena);
    outcome_row(in, outcome, "figures", DTYPE_F64, numbers.values, numbers.count);
}

static const struct {
    const char *name;
    void (*run)(const Inputs *in, Outcome *outcome);
    double tolerance; /* of the largest expected number */
} kinds[] = {{"dump", run_dump, 2e-5},         {"tokenize", run_tokenize, 0.0},
             {"train", run_training, 1e-5},    {"schedule", run_schedule, 1e-12},
             {"adamw", run_adamw, 1e-6},       {"statistics", run_statistics, 1e-6},
             {"spearman", run_spearman, 1e-9}, {"random", run_random, 0.0},
             {"sage", run_sage, 1e-3}};

enum {
    N_KINDS = sizeof kinds / sizeof *kinds
};

static Outcome outcome_of(const Inputs *in, size_t kind) {
    Outcome outcome = {0};
    files_note(in->arena); /* each is a run of its own */
    kinds[kind].run(in, &outcome);
    if (outcome.count == 0) {
        fail(STATUS_INPUT, "vectors: nothing comes out as '%s'", in_text(in, "take"));
    }
    return outcome;
}

/* ---- variants: a folder once more, with other settings and tensors ---- */

static void vary_settings(const char *from, const char *to, const Json *set, Arena *arena) {
    OutFile *file = out_open(to);
    JsonOut out = json_out_start(file->stream, 1);
    json_out(&out, "{");
    for (const Json *v = json_read_file(arena, from)->child; v != NULL; v = v->next) {
        if (json_get(set, v->key) == NULL) {
            json_out_value(&out, v->key, v);
        }
    }
    for (const Json *v = set->child; v != NULL; v = v->next) {
        json_out_value(&out, v->key, v);
    }
    json_out(&out, "}");
    out_commit(file);
}

/* A tensor of `count` numbers by a rule {"from": NAME, "shape": [...], "strides": [...], "scale":
 * X, "add": X}: those of another (or its own), in another order, times scale, plus add. */
static const float *vary_tensor(const TensorStore *store, const Tensor *tensor, const Json *rule,
                                Arena *arena) {
    const Tensor *source = tensors_find(store, json_text(rule, "from", tensor->name));
    const Json *size = json_first(json_get(rule, "shape"));
    const Json *stride = json_first(json_get(rule, "strides"));
    size_t strides[TENSOR_MAX_RANK] = {0};
    float *values = arena_floats(arena, 1, source->count), *out;
    weight_widen(values, (Weight){source->data, source->dtype}, 0, source->count);
    Tensor t = {.data = values, .dtype = DTYPE_F32, .count = tensor->count};
    for (; size != NULL && stride != NULL; size = size->next, stride = stride->next) {
        t.shape[t.rank] = (size_t)json_double(size);
        strides[t.rank++] = (size_t)json_double(stride);
    }
    if (t.rank > 0) {
        tensor_gather(&t, strides, arena);
    }
    out = arena_floats(arena, 1, tensor->count);
    float scale = (float)json_number(rule, "scale", 1.0, -1e6, 1e6);
    float add = (float)json_number(rule, "add", 0.0, -1e6, 1e6);
    for (size_t i = 0; i < tensor->count; i++) {
        out[i] = weight_at((Weight){t.data, DTYPE_F32}, i) * scale + add;
    }
    return out;
}

/* Every tensor, in F32, by the first rule whose key its name matches. */
static void vary_tensors(const char *from, const char *to, const Json *rules, Arena *arena) {
    TensorStore store;
    tensors_open(&store, arena, from);
    TensorWriter *writer = tensor_writer_open(to);
    for (const Tensor *t = store.tensors; t < store.tensors + store.count; t++) {
        tensor_writer_declare(writer, t->name, DTYPE_F32, t->rank, t->shape);
    }
    for (const Tensor *t = store.tensors; t < store.tensors + store.count; t++) {
        const Json *rule = json_first(rules);
        while (rule != NULL && !glob_match(rule->key, t->name)) {
            rule = rule->next;
        }
        tensor_writer_data(writer, vary_tensor(&store, t, rule, arena), sizeof(float), t->count);
    }
    tensor_writer_commit(writer);
}

/* {"of": FOLDER, "set": {FILE: {KEY: VALUE}}, "tensors": rules} */
static void vary(const Json *variant, const char *as) {
    Arena *arena = arena_new();
    const char *of = json_text(variant, "of", "");
    const Json *rules = json_get(variant, "tensors");
    size_t count;
    char **names = path_list(arena, of, &count);
    path_make_directory(as);
    for (size_t i = 0; i < count; i++) {
        const char *from = path_join(arena, of, names[i]), *to = path_join(arena, as, names[i]);
        const Json *set = json_below(variant, "set", names[i]);
        const char *dot = strrchr(names[i], '.');
        if (set != NULL) {
            vary_settings(from, to, set, arena);
        } else if (rules != NULL && dot != NULL && strcmp(dot, ".safetensors") == 0) {
            vary_tensors(from, to, rules, arena);
        } else {
            FileMap map = file_map(arena, from);
            OutFile *file = out_open(to);
            fwrite(map.data, 1, map.size, file->stream);
            out_commit(file);
        }
    }
    arena_free(arena);
}

/* ---- the index ---- */

/* Under the names of `right`, which a misreading may have taken from elsewhere. */
static void write_outcome(JsonOut *out, const Outcome *outcome, const Outcome *right) {
    json_out(out, "expected {");
    for (size_t k = 0; k < outcome->count && k < right->count; k++) {
        const Tensor *t = &outcome->tensors[k];
        json_out(out, "%s { shape [", right->tensors[k].name);
        json_out_sizes(out, t->shape, t->rank);
        json_out(out, "] values [");
        for (size_t i = 0; i < t->count; i++) {
            json_out(out, t->dtype == DTYPE_F32 ? "%f" : "%g", number_at(t, i));
        }
        json_out(out, "] }");
    }
    json_out(out, "}");
}

/* The file, or those in a folder; nothing where there is neither. */
static void list_path(JsonOut *out, const char *path, Arena *arena) {
    size_t count = 0;
    if (path_is_directory(path)) {
        char **names = path_list(arena, path, &count);
        for (size_t i = 0; i < count; i++) {
            list_path(out, path_join(arena, path, names[i]), arena);
        }
    } else if (path_exists(path)) {
        json_out(out, "%s", path);
    }
}

static void write_vector(JsonOut *out, const Compute *compute, const Json *vector) {
    Arena *arena = arena_new();
    Inputs in = {.compute = compute, .own = json_get(vector, "inputs"), .arena = arena};
    const char *name = json_text(vector, "name", ""), *kind = json_text(vector, "kind", "dump");
    size_t k = 0;
    while (k + 1 < N_KINDS && strcmp(kinds[k].name, kind) != 0) {
        k++;
    }
    if (json_get(vector, "variant") != NULL) {
        vary(json_get(vector, "variant"), json_text(json_get(vector, "variant"), "as", name));
    }
    Outcome right = outcome_of(&in, k);
    json_out(out, "{ name %s convention %s sentence %s kind %s", name,
             json_text(vector, "convention", ""), json_text(vector, "sentence", ""), kind);
    json_out_value(out, "inputs", in.own);
    json_out(out, "files [");
    for (const Json *v = json_first(in.own); v != NULL; v = v->next) {
        if (json_is(v, JSON_STRING)) {
            list_path(out, v->text, arena);
        }
    }
    json_out(out, "] tolerance %g", json_number(vector, "tolerance", kinds[k].tolerance, 0.0, 1.0));
    write_outcome(out, &right, &right);
    json_out(out, "wrong [");
    for (const Json *wrong = json_first(json_get(vector, "wrong")); wrong != NULL;
         wrong = wrong->next) {
        if (json_get(wrong, "of") != NULL) {
            vary(wrong, wrong_folder);
        }
        in.instead = json_get(wrong, "inputs");
        Outcome other = outcome_of(&in, k);
        remove_tree(wrong_folder, 0);
        json_out(out, "{ reading %s", json_text(wrong, "reading", ""));
        write_outcome(out, &other, &right);
        json_out(out, "}");
    }
    json_out(out, "] }");
    remove_tree(tensor_file, 0);
    remove_tree(run_folder, 0);
    arena_free(arena);
}

/* What others need not have. */
static void tidy(void) {
    static const char *const ours[] = {"vectors.json", "tensors.txt", "questions.jsonl",
                                       "gemma2",       "saes_gemma2", sage_folder};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) {
        remove_tree(ours[i], 0);
    }
}

static void write_inside(void *user) {
    const Compute *const *compute = user;
    Arena *arena = arena_new();
    remove_tree(sage_folder, 0); /* of a run that was left */
    OutFile *file = out_open("index.json");
    JsonOut out = json_out_start(file->stream, 3);
    json_out(&out, "[");
    const Json *vectors = json_read_file(arena, "vectors.json");
    for (const Json *vector = vectors->child; vector != NULL; vector = vector->next) {
        write_vector(&out, *compute, vector);
    }
    json_out(&out, "]");
    out_commit(file);
    tidy();
    arena_free(arena);
}

void vectors_write(const Compute *compute, const char *out) {
    Arena *arena = arena_new();
    size_t count;
    path_make_directory(out);
    (void)path_list(arena, out, &count);
    if (count > 0 && !path_exists(path_join(arena, out, "adapters/adapter.safetensors"))) {
        fail(STATUS_INPUT, "--out %s: expected a new folder, or one with vectors", out);
    }
    selftest_inside(out, write_inside, &compute);
    arena_free(arena);
}
