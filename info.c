/* info.c: what things are. Kind is decided by content: a folder by its config.json or by the SAEs
 * below it, a file by its first bytes and its tensors. */
#include "info.h"
#include "checkpoint.h"
#include "model_load.h"
#include "run_mapping.h"
#include "run_sage.h"

#include <ctype.h>
#include <math.h>
#include <string.h>

/* One fact, as "name: value" or as a JSON member, whose key is the name in snake case. */
typedef struct Teller {
    FILE *out;
    bool json, memory; /* memory: the object of memory figures is open */
    JsonOut object;
    Arena *arena; /* of the path that is told */
} Teller;

enum {
    KEY_MAX = 64
};

static const char *key_of(char key[KEY_MAX], const char *name) {
    size_t n = 0;
    for (const char *c = name; *c != '\0' && n + 1 < KEY_MAX; c++) {
        if (isalnum((unsigned char)*c)) {
            key[n++] = (char)tolower((unsigned char)*c);
        } else if (n > 0 && key[n - 1] != '_') {
            key[n++] = '_';
        }
    }
    key[n] = '\0';
    return key;
}

typedef enum FactKind {
    FACT_COUNT,
    FACT_NUMBER,
    FACT_FLAG,
    FACT_TEXT,
    FACT_NONE /* not told */
} FactKind;

typedef struct Fact {
    const char *name;
    FactKind kind;
    size_t count;
    float number;
    bool flag;
    const char *text;
} Fact;

static void fact_print(FILE *out, const Fact *f) {
    fprintf(out, "  %-26s ", f->name);
    f->kind == FACT_COUNT    ? fprintf(out, "%zu\n", f->count)
    : f->kind == FACT_NUMBER ? fprintf(out, "%.9g\n", (double)f->number)
    : f->kind == FACT_FLAG   ? fprintf(out, "%s\n", f->flag ? "yes" : "no")
                             : fprintf(out, "%s\n", f->text);
}

static void fact_json(JsonOut *json, const Fact *f) {
    char key[KEY_MAX];
    key_of(key, f->name);
    f->kind == FACT_COUNT    ? json_out_int(json, key, (int64_t)f->count)
    : f->kind == FACT_NUMBER ? json_out_float(json, key, f->number)
    : f->kind == FACT_FLAG   ? json_out_bool(json, key, f->flag)
                             : json_out_text(json, key, f->text);
}

/* The facts of a thing in order, up to one without a name. */
static void tell_facts(Teller *t, const Fact *facts) {
    for (const Fact *f = facts; f->name != NULL; f++) {
        if (f->kind != FACT_NONE && t->json) {
            fact_json(&t->object, f);
        } else if (f->kind != FACT_NONE) {
            fact_print(t->out, f);
        }
    }
}

static Fact fact_count(const char *name, size_t count, bool there) {
    return (Fact){.name = name, .kind = there ? FACT_COUNT : FACT_NONE, .count = count};
}

static Fact fact_number(const char *name, float number, bool there) {
    return (Fact){.name = name, .kind = there ? FACT_NUMBER : FACT_NONE, .number = number};
}

static Fact fact_flag(const char *name, bool flag, bool there) {
    return (Fact){.name = name, .kind = there ? FACT_FLAG : FACT_NONE, .flag = flag};
}

static Fact fact_text(const char *name, const char *text) {
    return (Fact){.name = name, .kind = text != NULL ? FACT_TEXT : FACT_NONE, .text = text};
}

static void tell(Teller *t, const char *name, const char *text) {
    tell_facts(t, (Fact[]){fact_text(name, text), {0}});
}

static void tell_count(Teller *t, const char *name, size_t count) {
    tell_facts(t, (Fact[]){fact_count(name, count, true), {0}});
}

/* A list of numbers: an array in JSON. */
static void tell_ids(Teller *t, const char *name, const int32_t *ids, size_t count) {
    char key[KEY_MAX];
    const char *text = "";
    if (t->json) {
        json_out_array(&t->object, key_of(key, name));
    }
    for (size_t i = 0; i < count; i++) {
        if (t->json) {
            json_out_int(&t->object, NULL, ids[i]);
        }
        text = arena_format(t->arena, "%s%s%d", text, i > 0 ? ", " : "", ids[i]);
    }
    if (t->json) {
        json_out_end(&t->object);
    } else {
        tell(t, name, text);
    }
}

/* What a command takes of its own, beside the mapped file; `sizes` says for how much of it. The
 * JSON figures, in bytes, are members of "memory". These come last of what is told. */
static void tell_memory(Teller *t, const char *command, const char *sizes, size_t bytes) {
    char key[KEY_MAX];
    if (!t->json) {
        fprintf(t->out, "  memory: %-18s %.1f MiB (%s)\n", command, (double)bytes / 1048576.0,
                sizes);
        return;
    }
    if (!t->memory) {
        json_out_object(&t->object, "memory");
        t->memory = true;
    }
    json_out_int(&t->object, key_of(key, command), (int64_t)bytes);
}

static void tell_store(Teller *t, const TensorStore *store) {
    size_t values = 0, mapped = 0, of_type[DTYPE_OTHER + 1] = {0};
    const char *types = "";
    for (size_t i = 0; i < store->count; i++) {
        values += store->tensors[i].count;
        of_type[store->tensors[i].dtype]++;
    }
    for (size_t i = 0; i < store->map_count; i++) {
        mapped += store->maps[i].size;
    }
    for (int d = 0; d <= DTYPE_OTHER; d++) {
        if (of_type[d] > 0) {
            types = arena_format(t->arena, "%s%s%s", types, types[0] != 0 ? ", " : "",
                                 dtype_name((Dtype)d));
        }
    }
    tell_facts(t, (Fact[]){fact_count("tensors", store->count, true),
                           fact_count("values", values, true),
                           fact_text("dtype", types),
                           fact_count("mapped bytes", mapped, true),
                           {0}});
}

/* ---- models ---- */

enum {
    TEXT_ROWS = 512,
    IMAGE_ROWS = 256,
    SAE_ROWS = 256,
    WIDE_SAE = 16384
}; /* sizes that the memory figures assume */

/* What is laid out to be measured: one of a language model, a tower and an SAE. */
typedef struct Measured {
    const Compute *compute;
    const Llm *llm;
    const LlmPlan *plan;
    const Vit *vit;
    const Sae *sae;
} Measured;

static void measured_layout(Arena *arena, void *user) {
    const Measured *m = user;
    if (m->llm != NULL) {
        (void)llm_run_layout(m->llm, m->compute, m->plan, arena);
        (void)arena_floats(arena, m->plan->max_logits, m->llm->config.d_vocab);
    } else if (m->vit != NULL) {
        (void)vit_run_layout(m->vit, m->compute, arena);
    } else {
        (void)sae_run_layout(m->compute, m->sae->d_in, m->sae->d_sae, SAE_ROWS, arena);
        (void)arena_floats(arena, 2 * SAE_ROWS, m->sae->d_sae + m->sae->d_in);
    }
}

static size_t plan_bytes(const Llm *llm, const Compute *compute, const LlmPlan *plan) {
    return arena_measure(measured_layout,
                         &(Measured){.compute = compute, .llm = llm, .plan = plan});
}

static void info_llm(Teller *t, const Compute *compute, const char *path) {
    static const char *const kinds[] = {"gemma2", "gpt2", "gpt_neox"};
    Llm llm;
    llm_open(&llm, t->arena, path);
    const LlmConfig *c = &llm.config;
    tell_facts(t, (Fact[]){fact_text("kind", "language model"),
                           fact_text("model type", kinds[c->kind]),
                           fact_count("layers", c->n_layers, true),
                           fact_count("d_model", c->d_model, true),
                           fact_count("heads", c->n_heads, true),
                           fact_count("key-value heads", c->n_kv_heads, true),
                           fact_count("d_head", c->d_head, true),
                           fact_count("d_mlp", c->d_mlp, true),
                           fact_count("vocabulary", c->d_vocab, true),
                           fact_count("positions", c->n_ctx, true),
                           fact_number("norm eps", c->norm_eps, true),
                           fact_number("attention scale", c->attn_scale, true),
                           fact_count("rotary dimensions", c->rotary_dim, c->rotary_dim > 0),
                           fact_number("rope theta", c->rope_theta, c->rotary_dim > 0),
                           fact_count("sliding window", c->window, c->window > 0),
                           fact_number("attention soft-cap", c->attn_softcap, c->attn_softcap > 0),
                           fact_number("final soft-cap", c->final_softcap, c->final_softcap > 0),
                           fact_flag("parallel blocks", c->parallel, true),
                           fact_flag("tied head", llm.head.w.data == llm.embed.data, true),
                           fact_count("bos", (size_t)c->bos, c->bos >= 0),
                           {0}});
    tell_ids(t, "eos", c->eos, c->eos_count);
    tell_store(t, &llm.store);
    LlmPlan generate = {.max_rows = TEXT_ROWS,
                        .max_sequence = TEXT_ROWS + 128,
                        .max_sequences = 1,
                        .max_logits = 1,
                        .cache = true};
    LlmPlan dump = {.max_rows = 32,
                    .max_sequence = 32,
                    .max_sequences = 1,
                    .max_logits = 32,
                    .backward = true,
                    .attention_hooks = true};
    size_t longest =
        TEXT_ROWS + IMAGE_ROWS < c->n_ctx || c->rotary_dim > 0 ? TEXT_ROWS + IMAGE_ROWS : c->n_ctx;
    TrainOptions train = {.batch = 8, .accumulate = 16, .tokens = TEXT_ROWS};
    Vlm vlm = {.compute = compute,
               .llm = llm,
               .vit = {.config = {.n_patches = IMAGE_ROWS, .d_model = 1024}}};
    TrainRun step = {.options = &train, .vlm = &vlm};
    AnalyzeRun analyze = {.llm = &llm, .compute = compute, .longest = longest, .widest = WIDE_SAE};
    tell_memory(t, "generate", "512 + 128 tokens", plan_bytes(&llm, compute, &generate));
    tell_memory(t, "dump --grad", "32 tokens, all hook points", plan_bytes(&llm, compute, &dump));
    tell_memory(t, "sage", "prompts of 24 tokens", sage_memory(compute, &llm, 24));
    if (c->kind == LLM_GEMMA2) {
        tell_memory(t, "train", "256 image and 512 text tokens", train_plan(&step));
        tell_memory(t, "analyze", "768 rows, SAE of 16384",
                    arena_measure(analyze_layout, &analyze));
    }
}

static void info_vit(Teller *t, const Compute *compute, const char *path) {
    Vit vit;
    vit_open(&vit, t->arena, path);
    const VitConfig *c = &vit.config;
    tell_facts(t, (Fact[]){fact_text("kind", "CLIP vision tower"),
                           fact_count("layers", c->n_layers, true),
                           fact_count("d_model", c->d_model, true),
                           fact_count("heads", c->n_heads, true),
                           fact_count("d_mlp", c->d_mlp, true),
                           fact_count("image size", c->image_size, true),
                           fact_count("patch size", c->patch_size, true),
                           fact_count("image tokens", c->n_patches, true),
                           {0}});
    tell_store(t, &vit.store);
    tell_memory(t, "dump", "one image",
                arena_measure(measured_layout, &(Measured){.compute = compute, .vit = &vit}));
}

/* ---- SAEs ---- */

static Fact fact_stated(const char *name, SaeCentre state, const char *unsaid) {
    return state == SAE_CENTRE_UNKNOWN ? fact_text(name, unsaid)
                                       : fact_flag(name, state == SAE_CENTRE_YES, true);
}

static void tell_sae(Teller *t, const Compute *compute, const Sae *sae) {
    static const char *const acts[] = {"ReLU", "JumpReLU", "top k, then ReLU",
                                       "BatchTopK threshold", "gated"};
    static const char *const norms[] = {"none", "layer_norm", "constant_norm_rescale",
                                        "expected_average_only_in"};
    char hook[HOOK_NAME_MAX] = "not said: give --hook NAME";
    if (sae->hook_known) {
        hook_name(hook, sae->hook, sae->layer, false, false);
    }
    const char *act = acts[sae->act];
    bool topk = sae->act == SAE_TOPK, expected = sae->norm == SAE_NORM_EXPECTED;
    bool factor = expected && sae->norm_factor > 0.0f;
    tell_facts(
        t, (Fact[]){fact_text("kind", "sparse autoencoder"),
                    fact_text("folder", sae->path),
                    fact_text("format", sae_source_name(sae->source)),
                    fact_text("architecture", sae->architecture != NULL ? sae->architecture : act),
                    fact_text("hook point", hook),
                    fact_count("d_in", sae->d_in, true),
                    fact_count("d_sae", sae->d_sae, true),
                    fact_text("activation", act),
                    fact_count("k", sae->k, topk),
                    fact_flag("rescale by decoder norm", sae->rescale_by_decoder_norm, topk),
                    fact_flag("b_dec subtracted", sae->subtract_b_dec, true),
                    fact_text("normalization", norms[sae->norm]),
                    factor ? fact_number("normalization factor", sae->norm_factor, true)
                           : fact_text("normalization factor",
                                       expected ? "not in the file: give --norm-factor X" : NULL),
                    fact_stated("stream centred", sae->centre, "not said: --centre yes|no"),
                    sae->hook_known && sae->hook == HOOK_Z
                        ? fact_stated("value biases folded", sae->fold_value_biases,
                                      "not said: --fold-value-biases yes|no")
                        : fact_text("value biases folded", NULL),
                    fact_flag("prepend bos", sae->prepend_bos, true),
                    fact_number("average L0", (float)sae->average_l0, !isnan(sae->average_l0)),
                    {0}});
    tell_store(t, &sae->store);
    tell_memory(t, "dump --sae", "256 rows",
                arena_measure(measured_layout, &(Measured){.compute = compute, .sae = sae}));
}

/* A row of a folder of SAEs: one that cannot be opened says why. */
static void tell_sae_row(Teller *t, const char *path) {
    Sae sae;
    Error error;
    char hook[HOOK_NAME_MAX] = "(no hook point: --hook)";
    Arena *arena = arena_new();
    ATTEMPT(&error, sae_open(&sae, arena, path, NULL));
    bool opened = error.status == STATUS_OK;
    if (opened && sae.hook_known) {
        hook_name(hook, sae.hook, sae.layer, false, false);
    }
    if (t->json) {
        json_out_object(&t->object, NULL);
        json_out_text(&t->object, "folder", path);
    }
    if (!opened) {
        tell(t, "error", error.text);
    } else if (t->json) {
        sae.hook_known ? json_out_text(&t->object, "hook_point", hook)
                       : json_out_null(&t->object, "hook_point");
        tell(t, "format", sae_source_name(sae.source));
        tell_count(t, "d_in", sae.d_in);
        tell_count(t, "d_sae", sae.d_sae);
    } else {
        tell(t, hook,
             arena_format(arena, "%s, d_in %zu, d_sae %zu, %s", sae_source_name(sae.source),
                          sae.d_in, sae.d_sae, path));
    }
    if (t->json) {
        json_out_end(&t->object);
    }
    arena_free(arena);
}

/* A folder of several; fails before it tells anything. */
static void info_saes(Teller *t, const char *path) {
    size_t count;
    char **paths = sae_list(t->arena, path, &count);
    if (count < 2) {
        fail(STATUS_INPUT, "%s: a single SAE", path);
    }
    tell(t, "kind", "sparse autoencoders");
    tell_count(t, "count", count);
    if (t->json) {
        json_out_array(&t->object, "saes");
    }
    for (size_t i = 0; i < count; i++) {
        tell_sae_row(t, paths[i]);
    }
    if (t->json) {
        json_out_end(&t->object);
    }
}

static void info_sae(Teller *t, const Compute *compute, const char *path) {
    Sae sae;
    Error single, several;
    ATTEMPT(&single, sae_open(&sae, t->arena, path, NULL));
    if (single.status == STATUS_OK) {
        tell_sae(t, compute, &sae);
        return;
    }
    ATTEMPT(&several, info_saes(t, path));
    if (several.status != STATUS_OK) {
        fail(single.status, "%s", single.text);
    }
}

/* ---- files ---- */

static void tell_tensors(Teller *t, const TensorStore *store) {
    if (t->json) {
        json_out_array(&t->object, "shapes");
    }
    for (size_t i = 0; i < store->count; i++) {
        const Tensor *tensor = &store->tensors[i];
        const char *shape = "";
        for (int k = 0; k < tensor->rank; k++) {
            shape = arena_format(t->arena, "%s%s%zu", shape, k > 0 ? ", " : "", tensor->shape[k]);
        }
        if (!t->json) {
            tell(t, tensor->name, arena_format(t->arena, "%s [%s]", tensor->type, shape));
            continue;
        }
        json_out_object(&t->object, NULL);
        tell(t, "name", tensor->name);
        tell(t, "dtype", tensor->type);
        json_out_array(&t->object, "shape");
        for (int k = 0; k < tensor->rank; k++) {
            json_out_int(&t->object, NULL, (int64_t)tensor->shape[k]);
        }
        json_out_end(&t->object);
        json_out_end(&t->object);
    }
    if (t->json) {
        json_out_end(&t->object);
    }
}

static void info_tensors(Teller *t, const Compute *compute, const char *path) {
    TensorStore store;
    tensors_open(&store, t->arena, path);
    bool module = adapter_prefix(&store)[0] != '\0';
    const Tensor *weight = tensors_find(&store, module ? "module.weight" : "weight");
    const Tensor *bias = tensors_find(&store, module ? "module.bias" : "bias");
    bool adapter = weight != NULL && weight->rank == 2 && bias != NULL && bias->rank == 1 &&
                   bias->shape[0] == weight->shape[0] && tensors_find(&store, "settings") == NULL;
    bool sae =
        tensors_find(&store, "W_enc") != NULL || tensors_find(&store, "encoder.weight") != NULL;
    if (adapter) {
        tell(t, "kind", "adapter");
        tell_count(t, "d_llm", weight->shape[0]);
        tell_count(t, "d_vit", weight->shape[1]);
        tell_store(t, &store);
    } else if (sae) {
        info_sae(t, compute, path);
    } else {
        tell(t, "kind", "tensors");
        tell_store(t, &store);
        tell_tensors(t, &store);
    }
}

static void info_tokenizer(Teller *t, const char *path) {
    const Tokenizer *tokenizer = tokenizer_open(t->arena, path);
    tell(t, "kind", "tokenizer");
    tell_count(t, "vocabulary", (size_t)tokenizer_size(tokenizer));
}

/* An array, or JSON lines. */
static void info_records(Teller *t, const char *path) {
    JsonArrayFile file;
    json_array_open(&file, t->arena, path);
    Arena *arena = arena_new(); /* of one record */
    size_t images = 0, turns = 0;
    const char *kind = NULL; /* of records that are no conversations */
    for (size_t i = 0; i < file.count; i++) {
        arena_reset(arena);
        const Json *element = json_array_read(&file, i, arena);
        if (i == 0 && json_get(element, "conversations") == NULL) {
            kind = json_get(element, "explanations") != NULL  ? "feature descriptions"
                   : json_get(element, "question_id") != NULL ? "questions"
                                                              : NULL;
            if (kind == NULL) {
                fail(STATUS_INPUT, "%s: JSON of no kind that refsae reads", path);
            }
            break;
        }
        Conversation conversation = conversation_parse(arena, element, path);
        images += conversation.image != NULL ? 1 : 0;
        turns += conversation.count;
    }
    if (kind != NULL) {
        tell(t, "kind", kind);
        tell_count(t, "records", file.count);
    } else {
        tell(t, "kind", "conversations");
        tell_count(t, "examples", file.count);
        tell_count(t, "with image", images);
        tell_count(t, "turns", turns);
        tell_memory(t, "train", "index of the examples", 17 * file.count); /* place, order, mark */
    }
    arena_free(arena);
}

static void info_image(Teller *t, const char *path) {
    Image image = image_read(t->arena, path);
    tell_facts(t, (Fact[]){fact_text("kind", "image"),
                           fact_text("format", image.format),
                           fact_count("width", image.width, true),
                           fact_count("height", image.height, true),
                           {0}});
    tell_memory(t, "dump", "pixels", 3 * image.width * image.height);
}

/* ---- deciding ---- */

static void info_directory(Teller *t, const Compute *compute, const char *path) {
    const char *config_path = path_join(t->arena, path, "config.json");
    const Json *config = path_exists(config_path) ? json_read_file(t->arena, config_path) : NULL;
    const Json *type = json_get(config, "model_type");
    if (json_text_is(type, "clip") || json_text_is(type, "clip_vision_model")) {
        info_vit(t, compute, path);
    } else if (type != NULL) {
        info_llm(t, compute, path);
    } else {
        info_sae(t, compute, path);
    }
}

/* The folder that a file is in. */
static char *path_parent(Arena *arena, const char *path) {
    const char *slash = strrchr(path, '/');
    return slash == NULL ? arena_copy(arena, ".", 1)
                         : arena_copy(arena, path, (size_t)(slash - path) + (slash == path));
}

static Error json_try(Arena *arena, const char *path, const Json **value) {
    Error error;
    ATTEMPT(&error, *value = json_read_file(arena, path));
    return error;
}

/* A file that begins as a JSON object does: settings, a tokenizer, or JSON lines. False: an index
 * of shards. */
static bool info_object(Teller *t, const Compute *compute, const char *path) {
    const Json *value = NULL;
    Error not_one = json_try(t->arena, path, &value), no_lines;
    if (not_one.status != STATUS_OK) { /* one a line? If not, the first complaint is clearer */
        ATTEMPT(&no_lines, info_records(t, path));
        if (no_lines.status != STATUS_OK) {
            fail(not_one.status, "%s", not_one.text);
        }
    } else if (json_get(value, "model_type") != NULL || json_get(value, "d_in") != NULL ||
               json_get(value, "trainer") != NULL) { /* of a model or of an SAE */
        info_directory(t, compute, path_parent(t->arena, path));
    } else if (json_get(value, "weight_map") != NULL) {
        return false;
    } else if (json_get(value, "model") != NULL) {
        info_tokenizer(t, path);
    } else {
        fail(STATUS_INPUT, "%s: JSON of no kind that refsae reads", path);
    }
    return true;
}

static void info_path(Teller *t, const Compute *compute, const char *path) {
    if (path_is_directory(path)) {
        info_directory(t, compute, path);
        return;
    }
    Arena *scratch = arena_new();
    FileMap file = file_map(scratch, path);
    unsigned char head[8] = {0};
    size_t at = 0;
    while (at < file.size && strchr(" \t\r\n", file.data[at]) != NULL && file.data[at] != '\0') {
        at++;
    }
    unsigned char first = at < file.size ? file.data[at] : '\0';
    memcpy(head, file.data, file.size < sizeof head ? file.size : sizeof head);
    bool safetensors = file.size > 8 && file.data[8] == '{' && first != '{' && first != '[';
    arena_free(scratch);
    bool picture = (head[0] == 0xFF && head[1] == 0xD8) || memcmp(head, "\x89PNG", 4) == 0 ||
                   (head[0] == 'P' && head[1] >= '1' && head[1] <= '6');
    size_t length = strlen(path);
    bool npz =
        head[0] == 'P' && head[1] == 'K' && length > 4 && strcmp(path + length - 4, ".npz") == 0;
    bool object = first == '{' && !safetensors && !(head[7] == 0 && head[6] == 0);
    if (picture) {
        info_image(t, path);
    } else if (first == '[' && !safetensors) {
        info_records(t, path);
    } else if (object && info_object(t, compute, path)) {
        return;
    } else if (npz) {
        info_sae(t, compute, path);
    } else {
        info_tensors(t, compute, path);
    }
}

/* One path, with what it is or why that cannot be said. */
static Error info_one(Teller *t, const Compute *compute, const char *path) {
    Error error;
    t->arena = arena_new();
    if (t->json) {
        json_out_object(&t->object, NULL);
        json_out_text(&t->object, "path", path);
    } else {
        fprintf(t->out, "%s\n", path);
    }
    ATTEMPT(&error, info_path(t, compute, path));
    if (error.status != STATUS_OK) {
        tell(t, "error", error.text);
    }
    if (t->memory) {
        json_out_end(&t->object);
        t->memory = false;
    }
    if (t->json) {
        json_out_end(&t->object);
    }
    arena_free(t->arena);
    return error;
}

void info_run(const Compute *compute, char *const *paths, size_t count, bool json, FILE *out) {
    Teller t = {.out = out, .json = json, .object = json_out_start(out, 2)};
    Error first = {0}; /* complaint, with the status of the last */
    if (json) {
        json_out_array(&t.object, NULL);
    }
    for (size_t i = 0; i < count; i++) {
        Error error = info_one(&t, compute, paths[i]);
        if (first.status == STATUS_OK) {
            first = error;
        } else if (error.status != STATUS_OK) {
            first.status = error.status;
        }
    }
    if (json) {
        json_out_end(&t.object);
    }
    if (first.status != STATUS_OK) {
        fail(first.status, "%s", first.text);
    }
}
