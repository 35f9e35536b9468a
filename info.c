/* info.c: what things are. Kind is decided by content: a folder by its config.json or by the SAEs
 * below it, a file by its first bytes and its tensors. */
#include "info.h"
#include "checkpoint.h"
#include "model_load.h"
#include "run_mapping.h"
#include "run_sage.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* All that is told is the members of one JSON object; people get that without its brackets. */
typedef struct Teller {
    JsonOut object;
    Arena *arena; /* of the path that is told */
} Teller;

/* The last member, "memory": what commands take of their own, in bytes beside the mapped file, and
 * for how much of it. */
static const char *const memory_for[][2] = {{"generate", "512 + 128 tokens, or all positions"},
                                            {"dump_grad", "32 tokens, all hook points"},
                                            {"sage", "prompts of 24 tokens"},
                                            {"train", "256 image and 512 text tokens"},
                                            {"analyze", "768 rows, SAE of 16384"},
                                            {"dump", "one image"},
                                            {"dump_sae", "256 rows"},
                                            {"train_index", "all examples"}};

static void tell_flag(Teller *t, const char *name, bool flag) {
    json_out(&t->object, flag ? "%s true" : "%s false", name);
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
    json_out(&t->object, "tensors %zu values %zu dtype %s mapped_bytes %zu", store->count, values,
             types, mapped);
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
    JsonOut *o = &t->object;
    json_out(
        o,
        "kind %s model_type %s layers %zu d_model %zu heads %zu key_value_heads %zu d_head %zu "
        "d_mlp %zu vocabulary %zu positions %zu norm_eps %f attention_scale %f",
        "language model", kinds[c->kind], c->n_layers, c->d_model, c->n_heads, c->n_kv_heads,
        c->d_head, c->d_mlp, c->d_vocab, c->n_ctx, (double)c->norm_eps, (double)c->attn_scale);
    if (c->rotary_dim > 0) {
        json_out(o, "rotary_dimensions %zu rope_theta %f", c->rotary_dim, (double)c->rope_theta);
    }
    if (c->window > 0) {
        json_out(o, "sliding_window %zu", c->window);
    }
    if (c->attn_softcap > 0) {
        json_out(o, "attention_soft_cap %f", (double)c->attn_softcap);
    }
    if (c->final_softcap > 0) {
        json_out(o, "final_soft_cap %f", (double)c->final_softcap);
    }
    tell_flag(t, "parallel_blocks", c->parallel);
    tell_flag(t, "tied_head", llm.head.w.data == llm.embed.data);
    if (c->bos >= 0) {
        json_out(o, "bos %d", (int)c->bos);
    }
    json_out(o, "eos [");
    for (size_t i = 0; i < c->eos_count; i++) {
        json_out(o, "%d", (int)c->eos[i]);
    }
    json_out(o, "]");
    tell_store(t, &llm.store);
    size_t positions = c->rotary_dim > 0 ? SIZE_MAX : c->n_ctx; /* learned ones end the text */
    LlmPlan generate = {.max_rows = positions < TEXT_ROWS ? positions : TEXT_ROWS,
                        .max_sequence = positions < TEXT_ROWS + 128 ? positions : TEXT_ROWS + 128,
                        .max_sequences = 1,
                        .max_logits = 1,
                        .cache = true};
    LlmPlan dump = {.max_rows = 32,
                    .max_sequence = 32,
                    .max_sequences = 1,
                    .max_logits = 32,
                    .backward = true,
                    .attention_hooks = true};
    size_t longest = TEXT_ROWS + IMAGE_ROWS < positions ? TEXT_ROWS + IMAGE_ROWS : positions;
    VlmOptions train = {.batch = 8, .accumulate = 16, .tokens = TEXT_ROWS};
    Vlm vlm = {.compute = compute,
               .llm = llm,
               .vit = {.config = {.n_patches = IMAGE_ROWS, .d_model = 1024}}};
    TrainRun step = {.options = &train, .vlm = &vlm};
    AnalyzeRun analyze = {.llm = &llm, .compute = compute, .longest = longest, .widest = WIDE_SAE};
    json_out(o, "memory { generate %zu dump_grad %zu sage %zu",
             llm_memory(&llm, compute, &generate), llm_memory(&llm, compute, &dump),
             sage_memory(compute, &llm, 24));
    if (c->kind == LLM_GEMMA2) {
        json_out(o, "train %zu analyze %zu", train_plan(&step),
                 arena_measure(analyze_layout, &analyze));
    }
    json_out(o, "}");
}

static void info_vit(Teller *t, const Compute *compute, const char *path) {
    Vit vit;
    vit_open(&vit, t->arena, path);
    const VitConfig *c = &vit.config;
    json_out(&t->object,
             "kind %s layers %zu d_model %zu heads %zu d_mlp %zu image_size %zu patch_size %zu "
             "image_tokens %zu",
             "CLIP vision tower", c->n_layers, c->d_model, c->n_heads, c->d_mlp, c->image_size,
             c->patch_size, c->n_patches);
    tell_store(t, &vit.store);
    json_out(&t->object, "memory { dump %zu }",
             arena_measure(measured_layout, &(Measured){.compute = compute, .vit = &vit}));
}

/* ---- SAEs ---- */

static void tell_stated(Teller *t, const char *name, SaeCentre state, const char *unsaid) {
    if (state == SAE_CENTRE_UNKNOWN) {
        json_out(&t->object, "%s %s", name, unsaid);
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
    JsonOut *o = &t->object;
    const char *act = acts[sae->act];
    json_out(o,
             "kind %s folder %s format %s architecture %s hook_point %s d_in %zu d_sae %zu "
             "activation %s",
             "sparse autoencoder", sae->path, sae_source_name(sae->source),
             sae->architecture != NULL ? sae->architecture : act, hook, sae->d_in, sae->d_sae, act);
    if (sae->act == SAE_TOPK) {
        json_out(o, "k %zu", sae->k);
        tell_flag(t, "rescale_by_decoder_norm", sae->rescale_by_decoder_norm);
    }
    tell_flag(t, "b_dec_subtracted", sae->subtract_b_dec);
    json_out(o, "normalization %s", norms[sae->norm]);
    if (sae->norm == SAE_NORM_EXPECTED && sae->norm_factor > 0.0f) {
        json_out(o, "normalization_factor %f", (double)sae->norm_factor);
    } else if (sae->norm == SAE_NORM_EXPECTED) {
        json_out(o, "normalization_factor %s", "not in the file: give --norm-factor X");
    }
    tell_stated(t, "stream_centred", sae->centre, "not said: --centre yes|no");
    if (sae->hook_known && sae->hook == HOOK_Z) {
        tell_stated(t, "value_biases_folded", sae->fold_value_biases,
                    "not said: --fold-value-biases yes|no");
    }
    tell_flag(t, "prepend_bos", sae->prepend_bos);
    if (!isnan(sae->average_l0)) {
        json_out(o, "average_l0 %f", sae->average_l0);
    }
    tell_store(t, &sae->store);
    json_out(o, "memory { dump_sae %zu }",
             arena_measure(measured_layout, &(Measured){.compute = compute, .sae = sae}));
}

/* A row of a folder of SAEs: one that cannot be opened says why, and the caller learns it. */
static Error tell_sae_row(Teller *t, const char *path) {
    Sae sae;
    Error error;
    char hook[HOOK_NAME_MAX];
    Arena *arena = arena_new();
    ATTEMPT(&error, sae_open(&sae, arena, path, NULL));
    json_out(&t->object, "{ folder %s", path);
    if (error.status != STATUS_OK) {
        json_out(&t->object, "error %s }", error.text);
        arena_free(arena);
        return error;
    }
    if (sae.hook_known) {
        hook_name(hook, sae.hook, sae.layer, false, false);
        json_out(&t->object, "hook_point %s", hook);
    } else {
        json_out(&t->object, "hook_point null");
    }
    json_out(&t->object, "format %s d_in %zu d_sae %zu }", sae_source_name(sae.source), sae.d_in,
             sae.d_sae);
    arena_free(arena);
    return error;
}

/* The models among the folders of `path`, and (alone) that these are the kind; false: none. */
static bool tell_models(Teller *t, const char *path, bool alone) {
    size_t count;
    bool any = false;
    char **names = path_list(t->arena, path, &count);
    for (size_t i = 0; i < count; i++) {
        const char *folder = path_join(t->arena, path, names[i]);
        const char *file = path_join(t->arena, folder, "config.json");
        bool here = path_is_directory(folder) && path_exists(file);
        const Json *config = here ? json_read_file(t->arena, file) : NULL;
        const Json *type = json_get(config, "model_type");
        if (json_is(type, JSON_STRING)) {
            if (alone && !any) {
                json_out(&t->object, "kind %s", "models");
            }
            json_out(&t->object, any ? "" : "models [");
            json_out(&t->object, "{ folder %s model_type %s }", folder, type->text);
            any = true;
        }
    }
    json_out(&t->object, any ? "]" : "");
    return any;
}

/* A folder of several: all are told before the first that cannot be opened is an error. */
static void info_saes(Teller *t, const char *path, const char **paths, size_t count) {
    Error first = {0};
    json_out(&t->object, "kind %s count %zu saes [", "sparse autoencoders", count);
    for (size_t i = 0; i < count; i++) {
        Error error = tell_sae_row(t, paths[i]);
        first = first.status == STATUS_OK ? error : first;
    }
    json_out(&t->object, "]");
    (void)tell_models(t, path, false);
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
    info_saes(t, path, paths, count);
}

/* ---- files ---- */

static void tell_tensors(Teller *t, const TensorStore *store) {
    json_out(&t->object, "shapes [");
    for (const Tensor *tensor = store->tensors; tensor < store->tensors + store->count; tensor++) {
        json_out(&t->object, "{ name %s dtype %s shape [", tensor->name, tensor->type);
        json_out_sizes(&t->object, tensor->shape, tensor->rank);
        json_out(&t->object, "] }");
    }
    json_out(&t->object, "]");
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
        json_out(&t->object, "kind %s d_llm %zu d_vit %zu", "adapter", weight->shape[0],
                 weight->shape[1]);
        tell_store(t, &store);
    } else if (sae) {
        info_sae(t, compute, path);
    } else {
        json_out(&t->object, "kind %s", "tensors");
        tell_store(t, &store);
        tell_tensors(t, &store);
    }
}

static void info_tokenizer(Teller *t, const char *path) {
    const Tokenizer *tokenizer = tokenizer_open(t->arena, path);
    json_out(&t->object, "kind %s vocabulary %d", "tokenizer", (int)tokenizer_size(tokenizer));
}

/* What JSON is, by members of its first record: the first kind that fits. Its entries are the
 * records or, where a member is named, what is counted there. */
static const struct {
    const char *kind, *members[4], *entries; /* NULL behind the last member */
    bool lines;                              /* read as JSON lines alone */
} record_kinds[] = {
    {"prompts", {"split", "ids", "counterfactual"}, NULL, true},
    {"verdicts of a judge", {"example", "group", "verdict"}, NULL, true},
    {"questions for a judge", {"example", "group", "descriptions"}, NULL, true},
    {"strongest features", {"example", "group", "features"}, NULL, true},
    {"answers", {"image", "text", "exact"}, NULL, true},
    {"feature descriptions", {"explanations"}, NULL, false},
    {"feature descriptions", {"index", "description"}, NULL, false},
    {"questions", {"image", "text"}, NULL, true},
    {"questions", {"image", "question"}, NULL, true},
    {"questions", {"image", "prompt"}, NULL, true},
    {"task", {"attributes", "templates", "positions"}, "attributes", false},
    {"results of sage", {"task", "cross_sections", "tests"}, "cross_sections", false},
    {"a prompt of sage", {"tokens", "positions"}, "tokens", false},
    {"measures by layer and group", {"examples", "convergence", "layers"}, "layers", false},
    {"manifest of runs", {"runs"}, "runs", false},
    {"scores", {"scored", "exact_match", "vqa_accuracy"}, NULL, false},
};

static void info_conversations(Teller *t, JsonArrayFile *file) {
    Arena *arena = arena_new(); /* of one example */
    size_t images = 0, turns = 0;
    for (size_t i = 0; i < file->count; i++) {
        arena_reset(arena);
        Conversation one = conversation_read(arena, file, i);
        images += one.image != NULL ? 1 : 0;
        turns += one.count;
    }
    json_out(&t->object, "kind %s examples %zu with_image %zu turns %zu memory { train_index %zu }",
             "conversations", file->count, images, turns,
             17 * file->count); /* place, order, mark */
    arena_free(arena);
}

static size_t count_lines(const char *path) {
    Arena *arena = arena_new(), *line = arena_within(arena);
    JsonLines lines = json_lines(arena, path);
    size_t count = 0;
    for (; json_line(line, &lines) != NULL; count++) {
        arena_reset(line);
    }
    arena_free(arena);
    return count;
}

static void tell_entries(Teller *t, const char *kind, size_t count) {
    json_out(&t->object, "kind %s entries %zu", kind, count);
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
                         record_kinds[k].lines ? count_lines(path)
                         : entries == NULL     ? file.count
                                               : json_get(first, entries)->length);
            return;
        }
    }
    if (!json_is(first, JSON_OBJECT) || json_get(first->child, "nodes") == NULL) {
        fail(STATUS_INPUT, "%s: JSON of no kind that refsae reads", path);
    }
    tell_entries(t, "cross-sections", first->length);
}

/* By its head, behind a byte order mark; false: a head of none that refsae writes or reads. */
static bool info_csv(Teller *t, const FileMap *file, size_t mark) {
    static const char *const heads[][2] = {{"step,epoch,", "training by step"},
                                           {"step,seconds", "times of training"},
                                           {"layer,group,", "measures by layer and group"},
                                           {"layer,", "curves by layer"},
                                           {"cross_section,node,", "nodes and their scores"},
                                           {"cross_section,method,", "results of sage"}};
    for (size_t k = 0; k < sizeof heads / sizeof *heads; k++) {
        size_t n = strlen(heads[k][0]), lines = 0;
        if (file->size - mark >= n && memcmp(file->data + mark, heads[k][0], n) == 0) {
            for (size_t i = 0; i < file->size; i++) {
                lines += file->data[i] == '\n' || i + 1 == file->size ? 1 : 0;
            }
            tell_entries(t, heads[k][1], lines - 1);
            return true;
        }
    }
    return false;
}

/* The folder `name` of `directory`, if it is LAYER-...; false: it is not. */
static bool tell_layer(Teller *t, const char *directory, const char *name, bool first) {
    enum {
        FEATURES_MOST = 1 << 20
    };
    size_t digits = strspn(name, "0123456789"), described = 0;
    if (digits == 0 || digits > 9 || (name[digits] != '-' && name[digits] != '\0') ||
        !path_is_directory(path_join(t->arena, directory, name))) {
        return false;
    }
    Arena *arena = arena_new(); /* of one layer */
    Descriptions d = descriptions_read(arena, directory, atoi(name), FEATURES_MOST);
    for (size_t j = 0; j < FEATURES_MOST; j++) {
        described += d.text[j] != NULL ? 1 : 0;
    }
    if (first) {
        json_out(&t->object, "kind %s", "feature descriptions");
    }
    json_out(&t->object, "%s %zu", arena_format(t->arena, "layer_%d", atoi(name)), described);
    arena_free(arena);
    return true;
}

/* A folder of folders LAYER-..., or one of them; false: it is neither. */
static bool info_descriptions(Teller *t, const char *path) {
    size_t count;
    char **names = path_list(t->arena, path, &count), *real = path_real(t->arena, path);
    bool any = false;
    for (size_t i = 0; i < count; i++) {
        any |= tell_layer(t, path, names[i], !any);
    }
    return any || (real != NULL &&
                   tell_layer(t, path_parent(t->arena, real), strrchr(real, '/') + 1, true));
}

static void info_image(Teller *t, const char *path) {
    Image image = image_read(t->arena, path);
    json_out(&t->object, "kind %s format %s width %zu height %zu memory { dump %zu }", "image",
             image.format, (size_t)image.width, (size_t)image.height, image.memory);
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
        const char *manifest = path_join(t->arena, path, "manifest.json");
        if (no_saes.status == STATUS_OK) {
            info_sae(t, compute, path);
        } else if (path_exists(manifest)) {
            info_records(t, manifest);
        } else if (!info_descriptions(t, path) && !tell_models(t, path, true)) {
            fail(
                no_saes.status,
                "%s; nor a model's config.json, a run's manifest.json or LAYER-... of descriptions",
                no_saes.text);
        }
    }
}

/* A file that begins as a JSON object: settings, tokenizer, records. False: an index of shards. */
static bool info_object(Teller *t, const Compute *compute, const char *path) {
    const Json *volatile value = NULL;
    Error not_one;
    ATTEMPT(&not_one, value = json_read_file(t->arena, path));
    if (not_one.status != STATUS_OK) {
        if (strstr(not_one.text, "expected nothing after the value, found '{'") == NULL) {
            fail(not_one.status, "%s", not_one.text);
        }
        info_records(t, path); /* one object behind another */
    } else if (json_get(value, "model_type") != NULL || json_get(value, "d_in") != NULL ||
               json_get(value, "trainer") != NULL || json_get(value, "eos_token_id") != NULL ||
               json_get(value, "image_mean") != NULL) { /* of a model or of an SAE */
        info_directory(t, compute, path_parent(t->arena, path));
    } else if (json_get(value, "tokenizer_class") != NULL) {
        info_tokenizer(t, path_parent(t->arena, path));
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
    const size_t mark = json_mark((const char *)file.data, file.size);
    size_t at = mark;
    while (at < file.size && strchr(" \t\r\n", file.data[at]) != NULL && file.data[at] != '\0') {
        at++;
    }
    unsigned char first = at < file.size ? file.data[at] : '\0';
    memcpy(head, file.data, file.size < sizeof head ? file.size : sizeof head);
    bool safetensors = file.size > 8 && file.data[8] == '{' && first != '{' && first != '[';
    bool csv = info_csv(t, &file, mark), gzip = !safetensors && gzip_is(&file);
    bool tar = file.size > 512 && memcmp(file.data + 257, "ustar", 5) == 0;
    arena_free(scratch);
    bool picture = (head[0] == 0xFF && head[1] == 0xD8) || memcmp(head, "\x89PNG", 4) == 0 ||
                   (head[0] == 'P' && head[1] >= '1' && head[1] <= '6');
    size_t length = strlen(path);
    bool zip = head[0] == 'P' && head[1] == 'K';
    bool npz = zip && length > 4 && strcmp(path + length - 4, ".npz") == 0;
    bool named = length > 12 && strcmp(path + length - 12, ".safetensors") == 0;
    bool packed = head[0] == 0x80 || tar || zip;
    bool long_header = head[4] != 0 || head[5] != 0 || head[6] != 0 || head[7] != 0;
    bool object = first == '{' && !safetensors && !(head[7] == 0 && head[6] == 0);
    if (csv || (gzip && info_descriptions(t, path_parent(t->arena, path))) ||
        (object && info_object(t, compute, path))) {
        return;
    }
    if (picture) {
        info_image(t, path);
    } else if (first == '[' && !safetensors) {
        info_records(t, path);
    } else if (npz) {
        info_sae(t, compute, path);
    } else if (gzip ||
               (!named && !packed && first != '{' && (file.size < sizeof head || long_header))) {
        fail(STATUS_INPUT, "%s: %s", path,
             file.size == 0 ? "is empty" : "of no kind that refsae reads");
    } else {
        info_tensors(t, compute, path);
    }
}

/* ---- telling ---- */

/* A list or an object without names of its own stays on its line. */
static void print_told(FILE *out, const Json *value) {
    const char *separator = "";
    fputs(value->kind == JSON_ARRAY ? "[" : "", out);
    for (const Json *v = value->child; v != NULL; v = v->next) {
        fprintf(out, "%s%s%s", separator, v->key != NULL ? v->key : "", v->key != NULL ? " " : "");
        print_told(out, v);
        separator = ", ";
    }
    print_shown(out, value->kind == JSON_ARRAY   ? "]"
                     : value->kind == JSON_TRUE  ? "yes"
                     : value->kind == JSON_FALSE ? "no"
                     : value->kind == JSON_NULL  ? "not said"
                     : value->child != NULL      ? ""
                                                 : value->text);
}

/* A key in words; sizes keep the field's names, as d_model. */
static char *words_of(Arena *arena, const char *key) {
    char *words = arena_format(arena, "%s", key), *at = words;
    while (strncmp(key, "d_", 2) != 0 && (at = strchr(at, '_')) != NULL) {
        *at = ' ';
    }
    return words;
}

/* For people: a line for each member and each object of a list; the memory in MiB. */
static void print_object(Arena *arena, FILE *out, const Json *object) {
    const Json *memory = json_get(object, "memory");
    print_shown(out, json_string(object->child));
    fputc('\n', out);
    for (const Json *v = object->child->next; v != NULL; v = v->next) {
        if (v == memory || strcmp(v->key, "error") == 0) {
            continue; /* below, and by whoever ends the program */
        }
        bool rows = json_is(v, JSON_ARRAY) && json_is(v->child, JSON_OBJECT);
        for (const Json *row = rows ? v->child : v; row != NULL; row = rows ? row->next : NULL) {
            fprintf(out, rows ? "    " : "  %-26s ", words_of(arena, v->key));
            print_told(out, row);
            fputc('\n', out);
        }
    }
    for (const Json *v = json_first(memory); v != NULL; v = v->next) {
        size_t k = 0;
        while (strcmp(memory_for[k][0], v->key) != 0) {
            k++;
        }
        fprintf(out, "  memory: %-18s %.1f MiB (%s)\n", words_of(arena, v->key),
                json_double(v) / 1048576.0, memory_for[k][1]);
    }
}

/* One path, with what it is or why that cannot be said. */
static Error info_one(JsonOut *list, const Compute *compute, const char *path, FILE *text) {
    Error error;
    Arena *arena = arena_new();
    MemoryStream *memory = memory_open(arena);
    Teller t = {.object = json_out_start(memory->stream, 0), .arena = arena};
    json_out(&t.object, "{ path %s", path);
    ATTEMPT(&error, info_path(&t, compute, path));
    while (t.object.depth > 1) { /* what a failure left open */
        json_out(&t.object, "]");
    }
    if (error.status != STATUS_OK) {
        json_out(&t.object, "error %s", error.text);
    }
    json_out(&t.object, "}");
    const char *told = memory_text(memory);
    const Json *object = json_parse(arena, told, memory->length, path);
    if (text == NULL) {
        json_out_value(list, NULL, object);
    } else {
        print_object(arena, text, object);
    }
    arena_free(arena);
    return error;
}

void info_run(const Compute *compute, char *const *paths, size_t count, bool json, FILE *out) {
    JsonOut list = json_out_start(out, 2);
    Error last = {0};
    if (json) {
        json_out(&list, "[");
    }
    for (size_t i = 0; i < count; i++) {
        Error error = info_one(&list, compute, paths[i], json ? NULL : out);
        if (error.status != STATUS_OK) {
            if (last.status != STATUS_OK) {
                fprintf(stderr, "refsae: %s\n", last.text);
            }
            last = error;
        }
    }
    if (json) {
        json_out(&list, "]");
    }
    if (last.status != STATUS_OK) {
        fail(last.status, "%s", last.text);
    }
}
