/* model_load.c: from a directory's config.json and tensors to a model.
 *
 * Details that are easy to get wrong:
 *   an absent key takes the default of that model's own config class;
 *   Gemma-2's head_dim and query_pre_attn_scalar are fields, not d_model / heads;
 *   gpt_neox has rotary_pct (0.25) and an untied head, stored as embed_out (4) or lm_head (5);
 *   query_key_value of gpt_neox has rows [heads, 3, d_head], gpt2's c_attn columns [3, d];
 *   a checkpoint of the base model has no prefix before its names; a stored head is used even where
 *   the config ties it, as transformers 5 does;
 *   in a `clip` config vision_config_dict wins over vision_config, defaults included. */
#include "model_load.h"

#include <math.h>
#include <string.h>

#include "checkpoint.h"
#include "json.h"

/* ---- settings of every model ---- */

enum {
    SIZE_MOST = 100000000
}; /* no dimension comes near */
static const double LEAST = 1e-30, MOST = 1e30; /* of numbers that must be above 0 */

static size_t setting_size(const Json *config, const char *key, size_t absent) {
    return json_size(config, key, absent, 1, SIZE_MOST);
}

static bool is_null(const Json *config, const char *key) {
    return json_is(json_get(config, key), JSON_NULL);
}

static Activation setting_activation(const Json *config, const char *key, Activation absent) {
    static const JsonName names[] = {
        {"gelu", ACT_GELU_ERF},
        {"gelu_python", ACT_GELU_ERF},
        {"gelu_new", ACT_GELU_TANH},
        {"gelu_fast", ACT_GELU_TANH}, /* sqrt(2/pi) to ten digits: below half an ulp */
        {"gelu_accurate", ACT_GELU_TANH},
        {"gelu_pytorch_tanh", ACT_GELU_TANH},
        {"gelu_python_tanh", ACT_GELU_TANH},
        {"quick_gelu", ACT_QUICK_GELU},
        {"relu", ACT_RELU},
        {"silu", ACT_SILU},
        {"swish", ACT_SILU},
        {NULL, 0},
    };
    return (Activation)json_choice(config, key, (int)absent, names);
}

/* d_head where the heads share d_model among them. */
static size_t heads_share(const char *file, size_t d_model, size_t n_heads) {
    if (d_model % n_heads != 0) {
        fail(STATUS_INPUT, "%s: the hidden size %zu is not a multiple of num_attention_heads %zu",
             file, d_model, n_heads);
    }
    return d_model / n_heads;
}

/* Before memory is asked for layers that the file cannot hold. */
static void check_layers(size_t n_layers, const TensorStore *store) {
    if (n_layers > store->count) {
        fail(STATUS_INPUT, "%s: num_hidden_layers is %zu, but %s has only %zu tensor%s",
             store->settings, n_layers, store->path, store->count, plural(store->count));
    }
}

/* ---- tensors of every model ---- */

typedef struct Loader {
    Arena *scratch; /* names */
    const TensorStore *store;
    const char *prefix; /* before the names now asked for */
    LlmLayer *layer;    /* that notes its tensors; NULL: none */
} Loader;

static bool is_stored(const Loader *loader, const char *prefix, const char *module) {
    char *name = arena_format(loader->scratch, "%s%s.weight", prefix, module);
    return tensors_find(loader->store, name) != NULL;
}

/* "MODULE.NAME", or MODULE itself if NAME is "". */
static Weight need_tensor(Loader *loader, const char *module, const char *name, int rank,
                          const size_t *shape) {
    const char *dot = name[0] != 0 ? "." : "";
    const char *full = arena_format(loader->scratch, "%s%s%s%s", loader->prefix, module, dot, name);
    const Tensor *tensor = tensors_need(loader->store, full, rank, shape);
    if (loader->layer != NULL) {
        loader->layer->tensors[loader->layer->tensor_count++] = tensor;
    }
    return (Weight){tensor->data, tensor->dtype};
}

static Weight need_table(Loader *loader, const char *module, size_t rows, size_t cols) {
    return need_tensor(loader, module, "weight", 2, (size_t[]){rows, cols});
}

static Weight need_bias(Loader *loader, const char *module, size_t size, bool bias) {
    return bias ? need_tensor(loader, module, "bias", 1, &size) : (Weight){NULL, DTYPE_F32};
}

static Norm need_norm(Loader *loader, const char *module, size_t size, bool bias) {
    Weight w = need_tensor(loader, module, "weight", 1, &size);
    return (Norm){w, need_bias(loader, module, size, bias)};
}

/* torch.nn.Linear: W stored [out, in]. */
static Matrix need_linear(Loader *loader, const char *module, size_t out, size_t in, bool bias) {
    Weight w = need_table(loader, module, out, in);
    return (Matrix){w, need_bias(loader, module, out, bias), (ptrdiff_t)in, 1, out, in};
}

/* GPT-2's Conv1D: W stored [in, out], always with a bias. */
static Matrix need_conv1d(Loader *loader, const char *module, size_t out, size_t in) {
    Weight w = need_table(loader, module, in, out);
    return (Matrix){w, need_bias(loader, module, out, true), 1, (ptrdiff_t)out, out, in};
}

/* A folder of another program's weights often has no config.json, so those are named first. */
static const Json *read_config(Arena *arena, const char *directory, const char *file) {
    path_need_directory(directory);
    if (!path_exists(file)) {
        checkpoint_refuse(directory);
    }
    return json_read_file(arena, file);
}

/* ---- config.json of the language models ---- */

/* Settings that change the computation: each may be absent, null, or what leaves it as it is. */
static void refuse_settings(const Json *config) {
    static const struct {
        const char *key;
        JsonKind harmless;
    } settings[] = {
        {"scale_attn_by_inverse_layer_idx", JSON_FALSE},
        {"add_cross_attention", JSON_FALSE},
        {"use_bidirectional_attention", JSON_FALSE},
        {"is_encoder_decoder", JSON_FALSE},
        {"is_causal", JSON_TRUE},
        {"quantization_config", JSON_NULL},
        {"pruned_heads", JSON_OBJECT},
    };
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        const Json *value = json_get(config, settings[i].key);
        if (value != NULL && value->kind != JSON_NULL &&
            (value->kind != settings[i].harmless || value->child != NULL)) {
            fail(STATUS_INPUT, "%s: '%s' is set, which refsae does not implement", config->text,
                 settings[i].key);
        }
    }
}

static float setting_softcap(const Json *config, const char *key, double absent) {
    return is_null(config, key) ? 0 : (float)json_number(config, key, absent, LEAST, MOST);
}

/* rope_parameters (transformers 5), rope_scaling (4, and before it where both stand). */
static const Json *rope_settings(const Json *config) {
    const Json *rope = json_member(config, "rope_scaling", JSON_OBJECT);
    if (rope == NULL || rope->length == 0) {
        rope = json_member(config, "rope_parameters", JSON_OBJECT);
    }
    for (const Json *c = rope != NULL ? rope->child : NULL; c != NULL; c = c->next) {
        if (c->kind == JSON_OBJECT) {
            fail(STATUS_INPUT, "%s: '%s': parameters by layer type ('%s') are not supported",
                 config->text, rope->key, c->key);
        }
    }
    const JsonName known[] = {{"default", 1}, {NULL, 0}};
    json_choice(rope, json_get(rope, "rope_type") != NULL ? "rope_type" : "type", 1, known);
    return rope;
}

/* theta_key: where transformers 4 has it. */
static float rope_theta(const Json *config, const char *theta_key) {
    double theta = json_number(config, theta_key, 10000, LEAST, MOST);
    return (float)json_number(rope_settings(config), "rope_theta", theta, LEAST, MOST);
}

static void config_gemma2(const Json *config, LlmConfig *c) {
    c->rms_norm = c->gated = true;
    c->d_vocab = setting_size(config, "vocab_size", 256000);
    c->d_model = setting_size(config, "hidden_size", 2304);
    c->d_mlp = setting_size(config, "intermediate_size", 9216);
    c->n_layers = setting_size(config, "num_hidden_layers", 26);
    c->n_heads = setting_size(config, "num_attention_heads", 8);
    c->n_kv_heads = setting_size(config, "num_key_value_heads", 4);
    c->d_head = setting_size(config, "head_dim", 256);
    c->n_ctx = setting_size(config, "max_position_embeddings", 8192);
    c->norm_eps = (float)json_number(config, "rms_norm_eps", 1e-6, 0, MOST);
    c->attn_softcap = setting_softcap(config, "attn_logit_softcapping", 50);
    c->final_softcap = setting_softcap(config, "final_logit_softcapping", 30);
    c->activation = setting_activation(config, "hidden_activation", ACT_GELU_TANH);
    c->rope_theta = rope_theta(config, "rope_theta");
    c->rotary_dim = c->d_head;
    double scalar = json_number(config, "query_pre_attn_scalar", 256, LEAST, MOST);
    c->attn_scale = (float)(1 / sqrt(scalar));
    c->embed_scale = (float)sqrt((double)c->d_model);
    bool sliding = !is_null(config, "sliding_window");
    c->window = sliding ? setting_size(config, "sliding_window", 4096) : 0;
    if (c->n_heads % c->n_kv_heads != 0) {
        fail(STATUS_INPUT,
             "%s: num_attention_heads %zu is not a multiple of num_key_value_heads %zu",
             config->text, c->n_heads, c->n_kv_heads);
    }
    if (c->d_head % 2 != 0) {
        fail(STATUS_INPUT, "%s: head_dim %zu is odd and cannot be rotated in halves", config->text,
             c->d_head);
    }
}

/* The heads of gpt2 and gpt_neox share d_model among them. */
static void config_heads(const Json *config, LlmConfig *c) {
    c->n_kv_heads = c->n_heads;
    c->d_head = heads_share(config->text, c->d_model, c->n_heads);
    c->attn_scale = (float)(1 / sqrt((double)c->d_head));
}

/* n_embd, or hidden_size, which transformers takes for it (of two that differ the later). */
static size_t gpt2_size(const Json *config, const char *key, const char *alias, size_t absent) {
    size_t size = setting_size(config, key, setting_size(config, alias, absent));
    size_t other = setting_size(config, alias, size);
    if (size != other) {
        fail(STATUS_INPUT, "%s: '%s' is %zu, but '%s' is %zu", config->text, key, size, alias,
             other);
    }
    return size;
}

static void config_gpt2(const Json *config, LlmConfig *c) {
    c->d_vocab = setting_size(config, "vocab_size", 50257);
    c->d_model = gpt2_size(config, "n_embd", "hidden_size", 768);
    c->n_layers = gpt2_size(config, "n_layer", "num_hidden_layers", 12);
    c->n_heads = gpt2_size(config, "n_head", "num_attention_heads", 12);
    c->n_ctx = gpt2_size(config, "n_positions", "max_position_embeddings", 1024);
    c->d_mlp = 4 * c->d_model;
    c->d_mlp = is_null(config, "n_inner") ? c->d_mlp : setting_size(config, "n_inner", c->d_mlp);
    c->norm_eps = (float)json_number(config, "layer_norm_epsilon", 1e-5, 0, MOST);
    c->activation = setting_activation(config, "activation_function", ACT_GELU_TANH);
    config_heads(config, c);
    c->attn_scale = json_bool(config, "scale_attn_weights", true) ? c->attn_scale : 1;
}

static void config_gpt_neox(const Json *config, LlmConfig *c) {
    c->d_vocab = setting_size(config, "vocab_size", 50432);
    c->d_model = setting_size(config, "hidden_size", 6144);
    c->d_mlp = setting_size(config, "intermediate_size", 24576);
    c->n_layers = setting_size(config, "num_hidden_layers", 44);
    c->n_heads = setting_size(config, "num_attention_heads", 64);
    c->n_ctx = setting_size(config, "max_position_embeddings", 2048);
    c->norm_eps = (float)json_number(config, "layer_norm_eps", 1e-5, 0, MOST);
    c->parallel = json_bool(config, "use_parallel_residual", true);
    c->activation = setting_activation(config, "hidden_act", ACT_GELU_ERF);
    config_heads(config, c);
    c->rope_theta = rope_theta(config, "rotary_emb_base");
    double pct = json_number(config, "rotary_pct", 0.25, LEAST, MOST);
    pct = json_number(rope_settings(config), "partial_rotary_factor", pct, LEAST, MOST);
    double dim = floor((double)c->d_head * pct);
    if (pct > 1 || dim < 2 || fmod(dim, 2) != 0) {
        fail(STATUS_INPUT,
             "%s: 'rotary_pct' %g of head size %zu: expected an even number of dimensions from 2 "
             "to the head's",
             config->text, pct, c->d_head);
    }
    c->rotary_dim = (size_t)dim;
}

/* ---- tensors of the language models ---- */

static void layer_gemma2(Loader *t, const LlmConfig *c, const Json *config, LlmLayer *l) {
    size_t d = c->d_model, query = c->n_heads * c->d_head, key = c->n_kv_heads * c->d_head;
    bool bias = json_bool(config, "attention_bias", false);
    l->ln1 = need_norm(t, "input_layernorm", d, false);
    l->ln1_post = need_norm(t, "post_attention_layernorm", d, false);
    l->ln2 = need_norm(t, "pre_feedforward_layernorm", d, false);
    l->ln2_post = need_norm(t, "post_feedforward_layernorm", d, false);
    l->q = need_linear(t, "self_attn.q_proj", query, d, bias);
    l->k = need_linear(t, "self_attn.k_proj", key, d, bias);
    l->v = need_linear(t, "self_attn.v_proj", key, d, bias);
    l->o = need_linear(t, "self_attn.o_proj", d, query, bias);
    l->pre = need_linear(t, "mlp.gate_proj", c->d_mlp, d, false);
    l->linear = need_linear(t, "mlp.up_proj", c->d_mlp, d, false);
    l->out = need_linear(t, "mlp.down_proj", d, c->d_mlp, false);
}

static void layer_gpt2(Loader *t, const LlmConfig *c, const Json *config, LlmLayer *l) {
    size_t d = c->d_model;
    (void)config;
    l->ln1 = need_norm(t, "ln_1", d, true);
    l->ln2 = need_norm(t, "ln_2", d, true);
    Matrix qkv = need_conv1d(t, "attn.c_attn", 3 * d, d);
    l->q = matrix_rows(&qkv, 0, d);
    l->k = matrix_rows(&qkv, d, d);
    l->v = matrix_rows(&qkv, 2 * d, d);
    l->o = need_conv1d(t, "attn.c_proj", d, d);
    l->pre = need_conv1d(t, "mlp.c_fc", c->d_mlp, d);
    l->out = need_conv1d(t, "mlp.c_proj", d, c->d_mlp);
}

static void layer_gpt_neox(Loader *t, const LlmConfig *c, const Json *config, LlmLayer *l) {
    size_t d = c->d_model;
    bool bias = json_bool(config, "attention_bias", true);
    l->ln1 = need_norm(t, "input_layernorm", d, true);
    l->ln2 = need_norm(t, "post_attention_layernorm", d, true);
    l->qkv = need_linear(t, "attention.query_key_value", 3 * d, d, bias);
    l->o = need_linear(t, "attention.dense", d, d, bias);
    l->pre = need_linear(t, "mlp.dense_h_to_4h", c->d_mlp, d, true);
    l->out = need_linear(t, "mlp.dense_4h_to_h", d, c->d_mlp, true);
}

/* What differs by LlmKind: settings, names of tensors, and tokens where no file says them. */
static const struct {
    void (*config)(const Json *, LlmConfig *);
    void (*layer)(Loader *, const LlmConfig *, const Json *, LlmLayer *);
    const char *prefix, *embed, *layers, *final;
    int32_t bos, eos;
} kinds[] = {
    {config_gemma2, layer_gemma2, "model.", "embed_tokens", "layers", "norm", 2, 1},
    {config_gpt2, layer_gpt2, "transformer.", "wte", "h", "ln_f", 50256, 50256},
    {config_gpt_neox, layer_gpt_neox, "gpt_neox.", "embed_in", "layers", "final_layer_norm", 0, 2},
};

/* ---- the language models ---- */

static LlmConfig config_read(const Json *config, const char *file) {
    static const JsonName names[] = {
        {"gemma2", LLM_GEMMA2}, {"gpt2", LLM_GPT2}, {"gpt_neox", LLM_GPT_NEOX}, {NULL, 0}};
    LlmConfig c = {.embed_scale = 1};
    int kind = json_choice(config, "model_type", -1, names);
    if (kind < 0) {
        fail(STATUS_INPUT, "%s: no 'model_type' in it", file);
    }
    c.kind = (LlmKind)kind;
    refuse_settings(config);
    kinds[kind].config(config, &c);
    if (c.n_heads > SIZE_MAX / 3 / c.d_head) {
        fail(STATUS_INPUT, "%s: %zu heads of %zu are too many", file, c.n_heads, c.d_head);
    }
    return c;
}

/* An id, or -1 where there is none or it is outside the vocabulary. */
static int32_t token_id(const Json *value, size_t d_vocab) {
    int64_t id = -1;
    return json_int64(value, &id) && id >= 0 && (uint64_t)id < d_vocab ? (int32_t)id : -1;
}

/* bos: config.json first; where generation stops: generation_config.json first; then the class. */
static void config_tokens(LlmConfig *c, Arena *arena, const Json *config, const Json *generation) {
    const Json *bos = json_get(config, "bos_token_id");
    bos = bos != NULL ? bos : json_get(generation, "bos_token_id");
    c->bos = bos != NULL ? token_id(bos, c->d_vocab) : kinds[c->kind].bos;
    c->bos = c->bos >= 0 && (size_t)c->bos < c->d_vocab ? c->bos : -1;

    const Json *from = generation, *eos = json_get(generation, "eos_token_id");
    if (eos == NULL || eos->kind == JSON_NULL) {
        from = config;
        eos = json_get(config, "eos_token_id");
    }
    bool list = json_is(eos, JSON_ARRAY);
    c->eos = arena_alloc(arena, list ? eos->length + 1 : 1, sizeof *c->eos);
    if (eos == NULL) {
        c->eos[c->eos_count++] = kinds[c->kind].eos;
    }
    for (const Json *e = list ? eos->child : eos; e != NULL; e = list ? e->next : NULL) {
        int32_t id = token_id(e, c->d_vocab);
        if (e->kind != JSON_NUMBER && e->kind != JSON_NULL) {
            json_refuse(from, "eos_token_id", "numbers");
        }
        if (id >= 0) {
            c->eos[c->eos_count++] = id;
        }
    }
}

/* Gemma-2's layer_types, or sliding in every even layer. */
static void config_layer_types(const Json *config, Llm *llm) {
    const LlmConfig *c = &llm->config;
    const Json *types = json_member(config, "layer_types", JSON_ARRAY);
    if (types != NULL && types->length != c->n_layers) {
        fail(STATUS_INPUT, "%s: 'layer_types': expected %zu names, found %zu", config->text,
             c->n_layers, types->length);
    }
    const Json *type = types != NULL ? types->child : NULL;
    for (size_t layer = 0; layer < c->n_layers; layer++) {
        bool sliding = type != NULL ? json_text_is(type, "sliding_attention") : layer % 2 == 0;
        if (type != NULL && !sliding && !json_text_is(type, "full_attention")) {
            fail(STATUS_INPUT, "%s: 'layer_types': %s is not supported", config->text,
                 type->kind == JSON_STRING ? type->text : "what is no text");
        }
        llm->layers[layer].sliding = sliding && c->window > 0;
        type = type != NULL ? type->next : NULL;
    }
}

/* Embedding and head: a stored head counts; without one, where the config ties it, the embedding;
 * and a tied pair may be saved once under the head's name. */
static void load_embed_and_head(Loader *t, Llm *llm, const Json *config) {
    const LlmConfig *c = &llm->config;
    const char *prefix = t->prefix, *embed = kinds[c->kind].embed;
    bool tied = json_bool(config, "tie_word_embeddings", c->kind != LLM_GPT_NEOX);
    bool lm_head = is_stored(t, "", "lm_head");
    bool embed_out = !lm_head && is_stored(t, "", "embed_out");
    bool only_head = (lm_head || embed_out) && tied && !is_stored(t, prefix, embed);
    if (!only_head) {
        llm->embed = need_table(t, embed, c->d_vocab, c->d_model);
    }
    llm->head =
        (Matrix){llm->embed, {NULL, DTYPE_F32}, (ptrdiff_t)c->d_model, 1, c->d_vocab, c->d_model};
    if (lm_head || embed_out || !tied) {
        t->prefix = "";
        llm->head =
            need_linear(t, embed_out ? "embed_out" : "lm_head", c->d_vocab, c->d_model, false);
        t->prefix = prefix;
    }
    llm->embed = only_head ? llm->head.w : llm->embed;
}

static void load_llm(Llm *llm, Arena *arena, Arena *scratch, const Json *config) {
    const LlmConfig *c = &llm->config;
    Loader t = {.scratch = scratch, .store = &llm->store};
    /* If no prefix fits, errors name tensors as the model's own class does. */
    t.prefix = kinds[c->kind].prefix;
    const char *const prefixes[] = {"", "gpt_neox.", "transformer.", "model."};
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        t.prefix = is_stored(&t, prefixes[i], kinds[c->kind].embed) ? prefixes[i] : t.prefix;
    }
    const char *prefix = t.prefix;
    load_embed_and_head(&t, llm, config);
    if (c->kind == LLM_GPT2) {
        llm->pos_embed = need_table(&t, "wpe", c->n_ctx, c->d_model);
    }
    check_layers(c->n_layers, &llm->store);
    llm->layers = arena_alloc(arena, c->n_layers, sizeof *llm->layers);
    for (size_t layer = 0; layer < c->n_layers; layer++) {
        t.layer = &llm->layers[layer];
        t.prefix = arena_format(scratch, "%s%s.%zu.", prefix, kinds[c->kind].layers, layer);
        kinds[c->kind].layer(&t, c, config, t.layer);
    }
    t.layer = NULL;
    t.prefix = prefix;
    llm->ln_final = need_norm(&t, kinds[c->kind].final, c->d_model, c->kind != LLM_GEMMA2);
    if (c->kind == LLM_GEMMA2) {
        config_layer_types(config, llm);
    }
}

void llm_open(Llm *llm, Arena *arena, const char *directory) {
    Arena *scratch = arena_new();
    *llm = (Llm){.path = arena_copy(arena, directory, strlen(directory))};
    const char *file = path_join(arena, directory, "config.json");
    const char *beside = path_join(scratch, directory, "generation_config.json");
    const Json *config = read_config(scratch, directory, file), *generation = NULL;
    llm->config = config_read(config, file);
    if (path_exists(beside)) {
        generation = json_read_file(scratch, beside);
    }
    config_tokens(&llm->config, arena, config, generation);
    tensors_open(&llm->store, arena, directory);
    llm->store.settings = file;
    load_llm(llm, arena, scratch, config);
    arena_free(scratch);
}

/* ---- CLIP ---- */

static VitConfig config_clip(const Json *config, const char *file) {
    static const JsonName types[] = {{"clip", 1}, {"clip_vision_model", 0}, {NULL, 0}};
    VitConfig c = {0};
    int kind = json_choice(config, "model_type", -1, types);
    if (kind < 0) {
        fail(STATUS_INPUT, "%s: expected an object with 'model_type' in it", file);
    }
    if (kind == 1) {
        const Json *nested = json_member(config, "vision_config_dict", JSON_OBJECT);
        /* neither: every default */
        config = nested != NULL ? nested : json_member(config, "vision_config", JSON_OBJECT);
    }
    c.d_model = setting_size(config, "hidden_size", 768);
    c.d_mlp = setting_size(config, "intermediate_size", 3072);
    c.n_layers = setting_size(config, "num_hidden_layers", 12);
    c.n_heads = setting_size(config, "num_attention_heads", 12);
    c.image_size = setting_size(config, "image_size", 224);
    c.patch_size = json_size(config, "patch_size", 32, 1, c.image_size);
    json_size(config, "num_channels", VIT_CHANNELS, VIT_CHANNELS, VIT_CHANNELS);
    c.d_head = heads_share(file, c.d_model, c.n_heads);
    c.n_patches = size_product(c.image_size / c.patch_size, c.image_size / c.patch_size);
    c.norm_eps = (float)json_number(config, "layer_norm_eps", 1e-5, 0, 1);
    c.activation = setting_activation(config, "hidden_act", ACT_QUICK_GELU);
    return c;
}

static void load_vit(Vit *vit, Arena *arena, Arena *scratch) {
    const VitConfig *c = &vit->config;
    size_t d = c->d_model, p = c->patch_size, patch = VIT_CHANNELS * p * p;
    Loader t = {.scratch = scratch, .store = &vit->store, .prefix = "vision_model."};
    if (is_stored(&t, "", "embeddings.patch_embedding")) {
        t.prefix = "";
    }
    const char *prefix = t.prefix;
    vit->class_embed = need_tensor(&t, "embeddings.class_embedding", "", 1, &d);
    vit->pos_embed = need_table(&t, "embeddings.position_embedding", c->n_patches + 1, d);
    vit->patch = (Matrix){.row = (ptrdiff_t)patch, .col = 1, .out = d, .in = patch};
    vit->patch.w = need_tensor(&t, "embeddings.patch_embedding", "weight", 4,
                               (size_t[]){d, VIT_CHANNELS, p, p});
    vit->ln_pre = need_norm(&t, "pre_layrnorm", d, true);
    check_layers(c->n_layers, &vit->store);
    vit->layers = arena_alloc(arena, c->n_layers, sizeof *vit->layers);
    for (size_t layer = 0; layer < c->n_layers; layer++) {
        VitLayer *l = &vit->layers[layer];
        t.prefix = arena_format(scratch, "%sencoder.layers.%zu.", prefix, layer);
        l->ln1 = need_norm(&t, "layer_norm1", d, true);
        l->q = need_linear(&t, "self_attn.q_proj", d, d, true);
        l->k = need_linear(&t, "self_attn.k_proj", d, d, true);
        l->v = need_linear(&t, "self_attn.v_proj", d, d, true);
        l->o = need_linear(&t, "self_attn.out_proj", d, d, true);
        l->ln2 = need_norm(&t, "layer_norm2", d, true);
        l->in = need_linear(&t, "mlp.fc1", c->d_mlp, d, true);
        l->out = need_linear(&t, "mlp.fc2", d, c->d_mlp, true);
    }
}

void vit_open(Vit *vit, Arena *arena, const char *directory) {
    Arena *scratch = arena_new();
    *vit = (Vit){.path = arena_copy(arena, directory, strlen(directory))};
    const char *file = path_join(arena, directory, "config.json");
    vit->config = config_clip(read_config(scratch, directory, file), file);
    tensors_open(&vit->store, arena, directory);
    vit->store.settings = file;
    load_vit(vit, arena, scratch);
    arena_free(scratch);
}
