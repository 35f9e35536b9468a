/* info.c: what things are. Kind is decided by content: a folder by its config.json or by the SAEs
 * below it, a file by its first bytes and its tensors. */
#include "info.h"
#include "checkpoint.h"
#include "model_load.h"
#include "run_mapping.h"
#include "run_sage.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    KEY_MAX = 64
};

/* Facts, as "name: value" or as JSON members. */
typedef struct Teller {
    FILE *out;
    bool json, memory; /* memory: the object of memory figures is open */
    JsonOut object;
    Arena *arena; /* of the path that is told */
    char key[KEY_MAX];
} Teller;

/* A name in snake case, until the next. */
static const char *key_of(Teller *t, const char *name) {
    size_t n = 0;
    for (const char *c = name; *c != '\0' && n + 1 < KEY_MAX; c++) {
        if (isalnum((unsigned char)*c)) {
            t->key[n++] = (char)tolower((unsigned char)*c);
        } else if (n > 0 && t->key[n - 1] != '_') {
            t->key[n++] = '_';
        }
    }
    t->key[n] = '\0';
    return t->key;
}

static void tell(Teller *t, const char *name, const char *text) {
    if (t->json) {
        json_out(&t->object, "%s %s", key_of(t, name), text);
    } else {
        fprintf(t->out, "  %-26s %s\n", name, text);
    }
}

static void tell_count(Teller *t, const char *name, size_t count) {
    if (t->json) {
        json_out(&t->object, "%s %zu", key_of(t, name), count);
    } else {
        fprintf(t->out, "  %-26s %zu\n", name, count);
    }
}

static void tell_number(Teller *t, const char *name, float number) {
    if (t->json) {
        json_out(&t->object, "%s %f", key_of(t, name), (double)number);
    } else {
        fprintf(t->out, "  %-26s %.9g\n", name, (double)number);
    }
}

static void tell_flag(Teller *t, const char *name, bool flag) {
    if (t->json) {
        json_out(&t->object, flag ? "%s true" : "%s false", key_of(t, name));
    } else {
        tell(t, name, flag ? "yes" : "no");
    }
}

/* What only JSON has: a shape of json_out that brings one text at most. */
static void tell_json(Teller *t, const char *shape, const char *text) {
    if (t->json) {
        json_out(&t->object, shape, text);
    }
}

/* What a command takes of its own, beside the mapped file; `sizes` says for how much of it. The
 * JSON figures, in bytes, are members of "memory". These come last of what is told. */
static void tell_memory(Teller *t, const char *command, const char *sizes, size_t bytes) {
    if (!t->json) {
        fprintf(t->out, "  memory: %-18s %.1f MiB (%s)\n", command, (double)bytes / 1048576.0,
                sizes);
        return;
    }
    json_out(&t->object, t->memory ? "%s %zu" : "memory { %s %zu", key_of(t, command), bytes);
    t->memory = true;
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
    tell_count(t, "tensors", store->count);
    tell_count(t, "values", values);
    tell(t, "dtype", types);
    tell_count(t, "mapped bytes", mapped);
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

size_t llm_memory(const Llm *llm, const Compute *compute, const LlmPlan *plan) {
    return arena_measure(measured_layout,
                         &(Measured){.compute = compute, .llm = llm, .plan = plan});
}

static void info_llm(Teller *t, const Compute *compute, const char *path) {
    static const char *const kinds[] = {"gemma2", "gpt2", "gpt_neox"};
    Llm llm;
    llm_open(&llm, t->arena, path);
    const LlmConfig *c = &llm.config;
    tell(t, "kind", "language model");
    tell(t, "model type", kinds[c->kind]);
    tell_count(t, "layers", c->n_layers);
    tell_count(t, "d_model", c->d_model);
    tell_count(t, "heads", c->n_heads);
    tell_count(t, "key-value heads", c->n_kv_heads);
    tell_count(t, "d_head", c->d_head);
    tell_count(t, "d_mlp", c->d_mlp);
    tell_count(t, "vocabulary", c->d_vocab);
    tell_count(t, "positions", c->n_ctx);
    tell_number(t, "norm eps", c->norm_eps);
    tell_number(t, "attention scale", c->attn_scale);
    if (c->rotary_dim > 0) {
        tell_count(t, "rotary dimensions", c->rotary_dim);
        tell_number(t, "rope theta", c->rope_theta);
    }
    if (c->window > 0) {
        tell_count(t, "sliding window", c->window);
    }
    if (c->attn_softcap > 0) {
        tell_number(t, "attention soft-cap", c->attn_softcap);
    }
    if (c->final_softcap > 0) {
        tell_number(t, "final soft-cap", c->final_softcap);
    }
    tell_flag(t, "parallel blocks", c->parallel);
    tell_flag(t, "tied head", llm.head.w.data == llm.embed.data);
    if (c->bos >= 0) {
        tell_count(t, "bos", (size_t)c->bos);
    }
    const char *eos = "";
    tell_json(t, "eos [", "");
    for (size_t i = 0; i < c->eos_count; i++) {
        if (t->json) {
            json_out(&t->object, "%d", (int)c->eos[i]);
        }
        eos = arena_format(t->arena, "%s%s%d", eos, i > 0 ? ", " : "", c->eos[i]);
    }
    tell_json(t, "]", "");
    if (!t->json) {
        tell(t, "eos", eos);
    }
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
    VlmOptions train = {.batch = 8, .accumulate = 16, .tokens = TEXT_ROWS};
    Vlm vlm = {.compute = compute,
               .llm = llm,
               .vit = {.config = {.n_patches = IMAGE_ROWS, .d_model = 1024}}};
    TrainRun step = {.options = &train, .vlm = &vlm};
    AnalyzeRun analyze = {.llm = &llm, .compute = compute, .longest = longest, .widest = WIDE_SAE};
    tell_memory(t, "generate", "512 + 128 tokens", llm_memory(&llm, compute, &generate));
    tell_memory(t, "dump --grad", "32 tokens, all hook points", llm_memory(&llm, compute, &dump));
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
    tell(t, "kind", "CLIP vision tower");
    tell_count(t, "layers", c->n_layers);
    tell_count(t, "d_model", c->d_model);
    tell_count(t, "heads", c->n_heads);
    tell_count(t, "d_mlp", c->d_mlp);
    tell_count(t, "image size", c->image_size);
    tell_count(t, "patch size", c->patch_size);
    tell_count(t, "image tokens", c->n_patches);
    tell_store(t, &vit.store);
    tell_memory(t, "dump", "one image",
                arena_measure(measured_layout, &(Measured){.compute = compute, .vit = &vit}));
}

/* ---- SAEs ---- */

static void tell_stated(Teller *t, const char *name, SaeCentre state, const char *unsaid) {
    if (state == SAE_CENTRE_UNKNOWN) {
        tell(t, name, unsaid);
    } else {
        tell_flag(t, name, state == SAE_CENTRE_YES);
    }
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
    tell(t, "kind", "sparse autoencoder");
    tell(t, "folder", sae->path);
    tell(t, "format", sae_source_name(sae->source));
    tell(t, "architecture", sae->architecture != NULL ? sae->architecture : act);
    tell(t, "hook point", hook);
    tell_count(t, "d_in", sae->d_in);
    tell_count(t, "d_sae", sae->d_sae);
    tell(t, "activation", act);
    if (sae->act == SAE_TOPK) {
        tell_count(t, "k", sae->k);
        tell_flag(t, "rescale by decoder norm", sae->rescale_by_decoder_norm);
    }
    tell_flag(t, "b_dec subtracted", sae->subtract_b_dec);
    tell(t, "normalization", norms[sae->norm]);
    if (sae->norm == SAE_NORM_EXPECTED && sae->norm_factor > 0.0f) {
        tell_number(t, "normalization factor", sae->norm_factor);
    } else if (sae->norm == SAE_NORM_EXPECTED) {
        tell(t, "normalization factor", "not in the file: give --norm-factor X");
    }
    tell_stated(t, "stream centred", sae->centre, "not said: --centre yes|no");
    if (sae->hook_known && sae->hook == HOOK_Z) {
        tell_stated(t, "value biases folded", sae->fold_value_biases,
                    "not said: --fold-value-biases yes|no");
    }
    tell_flag(t, "prepend bos", sae->prepend_bos);
    if (!isnan(sae->average_l0)) {
        tell_number(t, "average L0", (float)sae->average_l0);
    }
    tell_store(t, &sae->store);
    tell_memory(t, "dump --sae", "256 rows",
                arena_measure(measured_layout, &(Measured){.compute = compute, .sae = sae}));
}

/* A row of a folder of SAEs: one that cannot be opened says why, and the caller learns it. */
static Error tell_sae_row(Teller *t, const char *path) {
    Sae sae;
    Error error;
    char hook[HOOK_NAME_MAX] = "(no hook point: --hook)";
    Arena *arena = arena_new();
    ATTEMPT(&error, sae_open(&sae, arena, path, NULL));
    bool opened = error.status == STATUS_OK;
    if (opened && sae.hook_known) {
        hook_name(hook, sae.hook, sae.layer, false, false);
    }
    tell_json(t, "{ folder %s", path);
    if (!opened) {
        tell(t, "error", error.text);
    } else if (t->json) {
        tell_json(t, sae.hook_known ? "hook_point %s" : "hook_point null", hook);
        tell(t, "format", sae_source_name(sae.source));
        tell_count(t, "d_in", sae.d_in);
        tell_count(t, "d_sae", sae.d_sae);
    } else {
        tell(t, hook,
             arena_format(arena, "%s, d_in %zu, d_sae %zu, %s", sae_source_name(sae.source),
                          sae.d_in, sae.d_sae, path));
    }
    tell_json(t, "}", "");
    arena_free(arena);
    return error;
}

/* A folder of several: all are told before the first that cannot be opened is an error. */
static void info_saes(Teller *t, const char **paths, size_t count) {
    Error first = {0};
    tell(t, "kind", "sparse autoencoders");
    tell_count(t, "count", count);
    tell_json(t, "saes [", "");
    for (size_t i = 0; i < count; i++) {
        Error error = tell_sae_row(t, paths[i]);
        first = first.status == STATUS_OK ? error : first;
    }
    tell_json(t, "]", "");
    if (first.status != STATUS_OK) {
        fail(first.status, "%s", first.text);
    }
}

static void info_sae(Teller *t, const Compute *compute, const char *path) {
    Sae sae;
    Error single;
    size_t count = 0;
    ATTEMPT(&single, sae_open(&sae, t->arena, path, NULL));
    if (single.status == STATUS_OK) {
        tell_sae(t, compute, &sae);
        return;
    }
    fail_for_resources(&single);
    const char **paths = path_is_directory(path) ? sae_list(t->arena, path, &count) : NULL;
    if (count < 2) {
        fail(single.status, "%s", single.text);
    }
    info_saes(t, paths, count);
}

/* ---- files ---- */

static void tell_tensors(Teller *t, const TensorStore *store) {
    tell_json(t, "shapes [", "");
    for (size_t i = 0; i < store->count; i++) {
        const Tensor *tensor = &store->tensors[i];
        const char *shape = "";
        tell_json(t, "{ name %s", tensor->name);
        tell_json(t, "dtype %s shape [", tensor->type);
        for (int k = 0; k < tensor->rank; k++) {
            if (t->json) {
                json_out(&t->object, "%zu", tensor->shape[k]);
            }
            shape = arena_format(t->arena, "%s%s%zu", shape, k > 0 ? ", " : "", tensor->shape[k]);
        }
        tell_json(t, "] }", "");
        if (!t->json) {
            tell(t, tensor->name, arena_format(t->arena, "%s [%s]", tensor->type, shape));
        }
    }
    tell_json(t, "]", "");
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

/* What JSON is, by members of its first record: the first kind that fits. Its entries are the
 * records or, where a member is named, what is counted there. */
static const struct {
    const char *kind, *members[4], *entries; /* NULL behind the last member */
} record_kinds[] = {
    {"prompts", {"split", "ids", "counterfactual"}, NULL},
    {"verdicts of a judge", {"example", "group", "verdict"}, NULL},
    {"questions for a judge", {"example", "group", "descriptions"}, NULL},
    {"strongest features", {"example", "group", "features"}, NULL},
    {"answers", {"image", "text", "exact"}, NULL},
    {"feature descriptions", {"explanations"}, NULL},
    {"feature descriptions", {"index", "description"}, NULL},
    {"questions", {"image", "text"}, NULL},
    {"questions", {"image", "question"}, NULL},
    {"questions", {"image", "prompt"}, NULL},
    {"task", {"attributes", "templates", "positions"}, "attributes"},
    {"results of sage", {"task", "cross_sections", "tests"}, "cross_sections"},
    {"a prompt of sage", {"tokens", "positions"}, "tokens"},
    {"measures by layer and group", {"examples", "convergence", "layers"}, "layers"},
    {"manifest of runs", {"runs"}, "runs"},
    {"scores", {"scored", "exact_match", "vqa_accuracy"}, NULL},
};

static void info_conversations(Teller *t, JsonArrayFile *file) {
    Arena *arena = arena_new(); /* of one example */
    size_t images = 0, turns = 0;
    for (size_t i = 0; i < file->count; i++) {
        arena_reset(arena);
        Conversation one = conversation_parse(arena, json_array_read(file, i, arena), file->name);
        images += one.image != NULL ? 1 : 0;
        turns += one.count;
    }
    tell(t, "kind", "conversations");
    tell_count(t, "examples", file->count);
    tell_count(t, "with image", images);
    tell_count(t, "turns", turns);
    tell_memory(t, "train", "index of the examples", 17 * file->count); /* place, order, mark */
    arena_free(arena);
}

static void tell_entries(Teller *t, const char *kind, size_t count) {
    tell(t, "kind", kind);
    tell_count(t, "entries", count);
}

/* An array, JSON lines, or one object. */
static void info_records(Teller *t, const char *path) {
    JsonArrayFile file;
    json_array_open(&file, t->arena, path);
    const Json *first = file.count > 0 ? json_array_read(&file, 0, t->arena) : NULL;
    if (first == NULL || json_get(first, "conversations") != NULL) {
        info_conversations(t, &file);
        return;
    }
    for (size_t k = 0; k < sizeof record_kinds / sizeof *record_kinds; k++) {
        const char *const *member = record_kinds[k].members, *entries = record_kinds[k].entries;
        size_t n = 0;
        while (member[n] != NULL && json_get(first, member[n]) != NULL) {
            n++;
        }
        if (member[n] == NULL) {
            tell_entries(t, record_kinds[k].kind,
                         entries != NULL ? json_get(first, entries)->length : file.count);
            return;
        }
    }
    if (!json_is(first, JSON_OBJECT) || json_get(first->child, "nodes") == NULL) {
        fail(STATUS_INPUT, "%s: JSON of no kind that refsae reads", path);
    }
    tell_entries(t, "cross-sections", first->length);
}

/* By its head; false: a head of none that refsae writes or reads. */
static bool info_csv(Teller *t, const FileMap *file) {
    static const char *const heads[][2] = {{"step,epoch,", "training by step"},
                                           {"step,seconds", "times of training"},
                                           {"layer,group,", "measures by layer and group"},
                                           {"layer,", "curves by layer"},
                                           {"cross_section,node,", "nodes and their scores"},
                                           {"cross_section,method,", "results of sage"}};
    for (size_t k = 0; k < sizeof heads / sizeof *heads; k++) {
        size_t n = strlen(heads[k][0]), lines = 0;
        if (file->size >= n && memcmp(file->data, heads[k][0], n) == 0) {
            for (size_t i = 0; i < file->size; i++) {
                lines += file->data[i] == '\n' || i + 1 == file->size ? 1 : 0;
            }
            tell_entries(t, heads[k][1], lines - 1);
            return true;
        }
    }
    return false;
}

/* A folder of folders LAYER-...; false: it has none. */
static bool info_descriptions(Teller *t, const char *path) {
    enum {
        FEATURES_MOST = 1 << 20
    };
    size_t count;
    char **names = path_list(t->arena, path, &count);
    bool any = false;
    for (size_t i = 0; i < count; i++) {
        size_t digits = strspn(names[i], "0123456789"), described = 0;
        if (digits == 0 || digits > 9 || (names[i][digits] != '-' && names[i][digits] != '\0')) {
            continue;
        }
        Arena *arena = arena_new(); /* of one layer */
        Descriptions d = descriptions_read(arena, path, atoi(names[i]), FEATURES_MOST);
        for (size_t j = 0; j < FEATURES_MOST; j++) {
            described += d.text[j] != NULL ? 1 : 0;
        }
        if (!any) {
            tell(t, "kind", "feature descriptions");
        }
        any = true;
        tell_count(t, arena_format(t->arena, "layer %d", atoi(names[i])), described);
        arena_free(arena);
    }
    return any;
}

static void info_image(Teller *t, const char *path) {
    Image image = image_read(t->arena, path);
    tell(t, "kind", "image");
    tell(t, "format", image.format);
    tell_count(t, "width", image.width);
    tell_count(t, "height", image.height);
    tell_memory(t, "dump", "pixels", image.memory);
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
        Error no_saes;
        size_t count;
        ATTEMPT(&no_saes, (void)sae_list(t->arena, path, &count));
        fail_for_resources(&no_saes);
        if (no_saes.status == STATUS_OK || !info_descriptions(t, path)) {
            info_sae(t, compute, path);
        }
    }
}

static Error json_try(Arena *arena, const char *path, const Json **value) {
    Error error;
    ATTEMPT(&error, *value = json_read_file(arena, path));
    fail_for_resources(&error);
    return error;
}

/* A file that begins as a JSON object does: settings, a tokenizer, or records. False: an index of
 * shards. */
static bool info_object(Teller *t, const Compute *compute, const char *path) {
    const Json *value = NULL;
    Error not_one = json_try(t->arena, path, &value), no_lines;
    if (not_one.status != STATUS_OK) { /* one a line? If not, the first complaint is clearer */
        ATTEMPT(&no_lines, info_records(t, path));
        fail_for_resources(&no_lines);
        if (no_lines.status != STATUS_OK) {
            fail(not_one.status, "%s", not_one.text);
        }
    } else if (json_get(value, "model_type") != NULL || json_get(value, "d_in") != NULL ||
               json_get(value, "trainer") != NULL) { /* of a model or of an SAE */
        info_directory(t, compute, path_parent(t->arena, path));
    } else if (json_get(value, "weight_map") != NULL) {
        return false;
    } else if (json_is(json_get(value, "model"), JSON_OBJECT)) {
        info_tokenizer(t, path);
    } else {
        info_records(t, path);
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
    bool csv = info_csv(t, &file);
    arena_free(scratch);
    bool picture = (head[0] == 0xFF && head[1] == 0xD8) || memcmp(head, "\x89PNG", 4) == 0 ||
                   (head[0] == 'P' && head[1] >= '1' && head[1] <= '6');
    size_t length = strlen(path);
    bool npz =
        head[0] == 'P' && head[1] == 'K' && length > 4 && strcmp(path + length - 4, ".npz") == 0;
    bool object = first == '{' && !safetensors && !(head[7] == 0 && head[6] == 0);
    if (csv) {
        return;
    }
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

/* One path, with what it is or, in JSON, why that cannot be said. */
static Error info_one(Teller *t, const Compute *compute, const char *path) {
    Error error;
    t->arena = arena_new();
    tell_json(t, "{ path %s", path);
    if (!t->json) {
        fprintf(t->out, "%s\n", path);
    }
    ATTEMPT(&error, info_path(t, compute, path));
    if (t->memory) {
        tell_json(t, "}", "");
        t->memory = false;
    }
    if (error.status != STATUS_OK) {
        tell_json(t, "error %s", error.text);
    }
    tell_json(t, "}", "");
    arena_free(t->arena);
    return error;
}

void info_run(const Compute *compute, char *const *paths, size_t count, bool json, FILE *out) {
    Teller t = {.out = out, .json = json, .object = json_out_start(out, 2)};
    Error last = {0};
    tell_json(&t, "[", "");
    for (size_t i = 0; i < count; i++) {
        Error error = info_one(&t, compute, paths[i]);
        if (error.status != STATUS_OK) {
            if (last.status != STATUS_OK) {
                fprintf(stderr, "refsae: %s\n", last.text);
            }
            last = error;
        }
    }
    tell_json(&t, "]", "");
    if (last.status != STATUS_OK) {
        fail(last.status, "%s", last.text);
    }
}
