/* llm_load.c: a language model from an unmodified Hugging Face directory: config.json in the
 * spellings of transformers 4 and 5, and the checkpoint's tensors under their names.
 *
 * Details that are easy to get wrong:
 *   an absent key takes the default of that model's own config class;
 *   Gemma-2's head_dim and query_pre_attn_scalar are fields, not d_model / heads;
 *   gpt_neox has rotary_pct (0.25) and an untied head, stored as embed_out (4) or lm_head (5);
 *   the fused query_key_value of gpt_neox has rows [heads, 3, d_head], gpt2's c_attn columns [3,
 * d]; a checkpoint of the base model has no prefix before its names; a stored head is used even
 * where the config ties it, as transformers 5 does. */
#include "checkpoint.h"
#include "json.h"
#include "llm_run.h"

#include <math.h>
#include <string.h>

enum {
    SIZE_LIMIT = 100000000
}; /* no dimension of a language model comes near */

/* ---- config.json ---- */

typedef struct Config {
    const Json *json;
    const char *file;
} Config;

static const char *kind_name(const Json *value) {
    static const char *const names[] = {"null",     "false",    "true",     "a number",
                                        "a string", "an array", "an object"};
    return names[value->kind];
}

static void config_size(const Config *config, const char *key, size_t otherwise, size_t *out) {
    const Json *value = json_get(config->json, key);
    int64_t number = 0;
    if (value == NULL) {
        *out = otherwise;
        return;
    }
    if (!json_int64(value, &number) || number < 1 || number > SIZE_LIMIT) {
        fail(STATUS_INPUT, "%s: '%s': expected a whole number from 1 to %d, found %s",
                    config->file, key, (int)SIZE_LIMIT,
                    value->kind == JSON_NUMBER ? value->text : kind_name(value));
    }
    *out = (size_t)number;
}

/* A finite number above `above`. null_is: what null means; NAN: null is an error. */
static void config_number(const Config *config, const Json *value, const char *key, double above,
                            double null_is, double *out) {
    if (json_is(value, JSON_NULL) && !isnan(null_is)) {
        *out = null_is;
        return;
    }
    *out = json_is(value, JSON_NUMBER) ? json_double(value) : NAN;
    if (!isfinite(*out) || !(*out > above) || fabs(*out) > 1e30) {
        fail(STATUS_INPUT, "%s: '%s': expected a number above %g, found %s",
                    config->file, key, above,
                    value->kind == JSON_NUMBER ? value->text : kind_name(value));
    }
}

static void config_float(const Config *config, const char *key, double above, double otherwise,
                           double null_is, float *out) {
    const Json *value = json_get(config->json, key);
    double number = otherwise;
    if (value != NULL) {
        config_number(config, value, key, above, null_is, &number);
    }
    *out = (float)number;
}

static void config_bool(const Config *config, const char *key, bool otherwise, bool *out) {
    const Json *value = json_get(config->json, key);
    *out = value == NULL || value->kind == JSON_NULL ? otherwise : value->kind == JSON_TRUE;
    if (value != NULL && value->kind > JSON_TRUE) {
        fail(STATUS_INPUT, "%s: '%s': expected true or false, found %s", config->file,
                    key, kind_name(value));
    }
}

/* Settings that change the computation: each may be absent, null, or what leaves it as it is. */
static void config_refuse(const Config *config) {
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
    };
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        const Json *value = json_get(config->json, settings[i].key);
        if (value != NULL && value->kind != JSON_NULL && value->kind != settings[i].harmless) {
            fail(STATUS_INPUT, "%s: '%s' is set, which refsae does not implement",
                        config->file, settings[i].key);
        }
    }
    const Json *pruned = json_get(config->json, "pruned_heads");
    if (pruned != NULL && pruned->child != NULL) {
        fail(STATUS_INPUT,
                    "%s: 'pruned_heads' is set, which refsae does not implement", config->file);
    }
}

static void config_activation(const Config *config, const char *key, Activation otherwise,
                                Activation *out) {
    static const struct {
        const char *name;
        Activation kind;
    } known[] = {
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
    };
    const Json *value = json_get(config->json, key);
    *out = otherwise;
    if (value == NULL || value->kind == JSON_NULL) {
        return;
    }
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (json_text_is(value, known[i].name)) {
            *out = known[i].kind;
            return;
        }
    }
    fail(STATUS_INPUT, "%s: '%s': the activation %s is not supported", config->file,
                key, value->kind == JSON_STRING ? value->text : kind_name(value));
}

/* rope_parameters (transformers 5), rope_scaling (4, and before it where both stand), and the keys
 * of their own that 4 had. pct NULL: the model rotates whole heads. */
static void config_rope(const Config *config, const char *theta_key, float *theta, double *pct) {
    const Json *rope = json_get(config->json, "rope_scaling");
    const char *key = "rope_scaling";
    if (rope == NULL || rope->kind == JSON_NULL ||
        (rope->kind == JSON_OBJECT && rope->length == 0)) {
        rope = json_get(config->json, "rope_parameters");
        key = "rope_parameters";
    }
    if (rope != NULL && rope->kind != JSON_NULL && rope->kind != JSON_OBJECT) {
        fail(STATUS_INPUT, "%s: '%s': expected an object, found %s", config->file,
                    key, kind_name(rope));
    }
    for (const Json *c = json_is(rope, JSON_OBJECT) ? rope->child : NULL; c != NULL; c = c->next) {
        if (c->kind == JSON_OBJECT) {
            fail(STATUS_INPUT,
                        "%s: '%s': parameters by layer type ('%s') are not supported",
                        config->file, key, c->key);
        }
    }
    const Json *type = json_get(rope, "rope_type");
    type = type != NULL ? type : json_get(rope, "type");
    if (type != NULL && type->kind != JSON_NULL && !json_text_is(type, "default")) {
        fail(STATUS_INPUT, "%s: '%s': rope_type %s is not supported, only default",
                    config->file, key, type->kind == JSON_STRING ? type->text : kind_name(type));
    }

    const Json *value = json_get(rope, "rope_theta");
    value = value != NULL ? value : json_get(config->json, theta_key);
    double number = 10000;
    if (value != NULL) {
        config_number(config, value, theta_key, 0, NAN, &number);
    }
    *theta = (float)number;
    if (!(*theta >= 1e-30F)) {
        fail(STATUS_INPUT, "%s: '%s' is too small: %s", config->file, theta_key,
                    value->text);
    }
    if (pct != NULL) {
        value = json_get(rope, "partial_rotary_factor");
        value = value != NULL ? value : json_get(config->json, "rotary_pct");
        if (value != NULL) {
            config_number(config, value, "rotary_pct", 0, NAN, pct);
        }
    }
}

static void config_gemma2(const Config *file, LlmConfig *c) {
    c->rms_norm = c->gated = true;
    config_size(file, "vocab_size", 256000, &c->d_vocab);
    config_size(file, "hidden_size", 2304, &c->d_model);
    config_size(file, "intermediate_size", 9216, &c->d_mlp);
    config_size(file, "num_hidden_layers", 26, &c->n_layers);
    config_size(file, "num_attention_heads", 8, &c->n_heads);
    config_size(file, "num_key_value_heads", 4, &c->n_kv_heads);
    config_size(file, "head_dim", 256, &c->d_head);
    config_size(file, "max_position_embeddings", 8192, &c->n_ctx);
    config_float(file, "rms_norm_eps", -1e-300, 1e-6, NAN, &c->norm_eps);
    config_float(file, "attn_logit_softcapping", 0, 50, 0, &c->attn_softcap);
    config_float(file, "final_logit_softcapping", 0, 30, 0, &c->final_softcap);
    config_activation(file, "hidden_activation", ACT_GELU_TANH, &c->activation);
    config_rope(file, "rope_theta", &c->rope_theta, NULL);
    c->rotary_dim = c->d_head;

    const Json *value = json_get(file->json, "query_pre_attn_scalar");
    double scalar = 256;
    if (value != NULL) {
        config_number(file, value, "query_pre_attn_scalar", 0, NAN, &scalar);
    }
    c->attn_scale = (float)(1 / sqrt(scalar));
    c->embed_scale = (float)sqrt((double)c->d_model);
    c->window = 0;
    if (!json_is(json_get(file->json, "sliding_window"), JSON_NULL)) {
        config_size(file, "sliding_window", 4096, &c->window);
    }
}

/* The heads of gpt2 and gpt_neox share d_model among them. */
static void config_heads(const Config *file, LlmConfig *c) {
    if (c->d_model % c->n_heads != 0) {
        fail(STATUS_INPUT, "%s: hidden size %zu is not a multiple of %zu heads",
                    file->file, c->d_model, c->n_heads);
    }
    c->n_kv_heads = c->n_heads;
    c->d_head = c->d_model / c->n_heads;
    c->attn_scale = (float)(1 / sqrt((double)c->d_head));
}

/* n_embd, or hidden_size, which transformers takes for it. */
static void config_gpt2_size(const Config *file, const char *key, const char *alias,
                               size_t otherwise, size_t *out) {
    config_size(file, json_get(file->json, key) == NULL ? alias : key, otherwise, out);
}

static void config_gpt2(const Config *file, LlmConfig *c) {
    config_size(file, "vocab_size", 50257, &c->d_vocab);
    config_gpt2_size(file, "n_embd", "hidden_size", 768, &c->d_model);
    config_gpt2_size(file, "n_layer", "num_hidden_layers", 12, &c->n_layers);
    config_gpt2_size(file, "n_head", "num_attention_heads", 12, &c->n_heads);
    config_gpt2_size(file, "n_positions", "max_position_embeddings", 1024, &c->n_ctx);
    c->d_mlp = 4 * c->d_model;
    if (!json_is(json_get(file->json, "n_inner"), JSON_NULL)) {
        config_size(file, "n_inner", c->d_mlp, &c->d_mlp);
    }
    config_float(file, "layer_norm_epsilon", -1e-300, 1e-5, NAN, &c->norm_eps);
    config_activation(file, "activation_function", ACT_GELU_TANH, &c->activation);
    bool scaled = true;
    config_bool(file, "scale_attn_weights", true, &scaled);
    config_heads(file, c);
    c->attn_scale = scaled ? c->attn_scale : 1;
}

static void config_gpt_neox(const Config *file, LlmConfig *c) {
    config_size(file, "vocab_size", 50432, &c->d_vocab);
    config_size(file, "hidden_size", 6144, &c->d_model);
    config_size(file, "intermediate_size", 24576, &c->d_mlp);
    config_size(file, "num_hidden_layers", 44, &c->n_layers);
    config_size(file, "num_attention_heads", 64, &c->n_heads);
    config_size(file, "max_position_embeddings", 2048, &c->n_ctx);
    config_float(file, "layer_norm_eps", -1e-300, 1e-5, NAN, &c->norm_eps);
    config_bool(file, "use_parallel_residual", true, &c->parallel);
    config_activation(file, "hidden_act", ACT_GELU_ERF, &c->activation);
    config_heads(file, c);

    double pct = 0.25;
    config_rope(file, "rotary_emb_base", &c->rope_theta, &pct);
    double dim = floor((double)c->d_head * pct);
    if (pct > 1 || dim < 2 || fmod(dim, 2) != 0) {
        fail(STATUS_INPUT,
                    "%s: 'rotary_pct' %g of head size %zu: expected an even number of dimensions "
                    "from 2 to the head's",
                    file->file, pct, c->d_head);
    }
    c->rotary_dim = (size_t)dim;
}

static void config_check(const Config *file, const LlmConfig *c) {
    if (c->n_kv_heads > c->n_heads || c->n_heads % c->n_kv_heads != 0) {
        fail(STATUS_INPUT,
                    "%s: num_attention_heads %zu is not a multiple of num_key_value_heads %zu",
                    file->file, c->n_heads, c->n_kv_heads);
    }
    if (c->rotary_dim % 2 != 0) {
        fail(STATUS_INPUT, "%s: head_dim %zu is odd and cannot be rotated in halves",
                    file->file, c->d_head);
    }
    size_t width = 0;
    if (!size_mul(&width, c->n_heads, c->d_head) || !size_mul(&width, width, 3)) {
        fail(STATUS_INPUT, "%s: %zu heads of %zu are too many", file->file,
                    c->n_heads, c->d_head);
    }
}

/* An id, or -1 where there is none or it is outside the vocabulary. */
static int32_t token_id(const Json *value, size_t d_vocab) {
    int64_t id = -1;
    bool whole = value != NULL && json_int64(value, &id);
    return whole && id >= 0 && (uint64_t)id < d_vocab ? (int32_t)id : -1;
}

/* Where generation stops, and bos: generation_config.json first, then config.json, then the class.
 */
static void config_tokens(const Config *config, const char *directory, Llm *llm, Arena *scratch) {
    static const struct {
        int32_t bos, eos;
    } defaults[] = {{2, 1}, {50256, 50256}, {0, 2}}; /* by LlmKind */
    LlmConfig *c = &llm->config;
    const Json *generation = NULL;
    char *path = path_join(scratch, directory, "generation_config.json");
    if (path_exists(path)) {
        generation = json_read_file(scratch, path);
    }
    const Json *bos = json_get(config->json, "bos_token_id");
    bos = bos != NULL ? bos : json_get(generation, "bos_token_id");
    c->bos = bos != NULL ? token_id(bos, c->d_vocab) : defaults[c->kind].bos;
    c->bos = c->bos >= 0 && (size_t)c->bos < c->d_vocab ? c->bos : -1;

    const Json *eos = json_get(generation, "eos_token_id");
    eos = eos == NULL || eos->kind == JSON_NULL ? json_get(config->json, "eos_token_id") : eos;
    size_t room = json_is(eos, JSON_ARRAY) ? eos->length : 1;
    c->eos = arena_alloc(llm->arena, room + 1, sizeof *c->eos);
    if (eos == NULL) {
        c->eos[c->eos_count++] = defaults[c->kind].eos;
    }
    for (const Json *e = json_is(eos, JSON_ARRAY) ? eos->child : eos; e != NULL; e = e->next) {
        int32_t id = token_id(e, c->d_vocab);
        if (e->kind != JSON_NUMBER && e->kind != JSON_NULL) {
            fail(STATUS_INPUT, "%s: 'eos_token_id': expected a number, found %s",
                        json_get(generation, "eos_token_id") != NULL ? path : config->file,
                        kind_name(e));
        }
        if (id >= 0) {
            c->eos[c->eos_count++] = id;
        }
        if (!json_is(eos, JSON_ARRAY)) {
            break;
        }
    }
}

/* layer_types, or sliding in every even layer. */
static void config_layer_types(const Config *config, Llm *llm) {
    const LlmConfig *c = &llm->config;
    const Json *types = json_get(config->json, "layer_types");
    if (c->kind != LLM_GEMMA2) {
        return;
    }
    if (types == NULL || types->kind == JSON_NULL) {
        for (size_t layer = 0; layer < c->n_layers; layer += 2) {
            llm->layers[layer].sliding = c->window > 0;
        }
        return;
    }
    if (types->kind != JSON_ARRAY || types->length != c->n_layers) {
        fail(STATUS_INPUT, "%s: 'layer_types': expected an array of %zu names",
                    config->file, c->n_layers);
    }
    LlmLayer *layer = llm->layers;
    for (const Json *type = types->child; type != NULL; type = type->next, layer++) {
        bool sliding = json_text_is(type, "sliding_attention");
        if (!sliding && !json_text_is(type, "full_attention")) {
            fail(STATUS_INPUT, "%s: 'layer_types': %s is not supported",
                        config->file, type->kind == JSON_STRING ? type->text : kind_name(type));
        }
        layer->sliding = sliding && c->window > 0;
    }
}

static void config_read(const Config *config, LlmConfig *c) {
    static const char *const names[] = {"gemma2", "gpt2", "gpt_neox"};
    static void (*const readers[])(const Config *, LlmConfig *) = {config_gemma2, config_gpt2,
                                                                   config_gpt_neox};
    const Json *type = json_get(config->json, "model_type");
    memset(c, 0, sizeof *c);
    c->embed_scale = 1;
    for (int kind = 0; kind < 3; kind++) {
        if (json_text_is(type, names[kind])) {
            c->kind = (LlmKind)kind;
            config_refuse(config);
            readers[kind](config, c);
            config_check(config, c);
            return;
        }
    }
    if (config->json->kind != JSON_OBJECT || type == NULL) {
        fail(STATUS_INPUT, "%s: no 'model_type' in it", config->file);
    }
    fail(STATUS_INPUT,
                "%s: model_type %s is not one of the language models gemma2, gpt2, gpt_neox",
                config->file, type->kind == JSON_STRING ? type->text : kind_name(type));
}

/* ---- tensors ---- */

typedef struct Loader {
    Llm *llm;
    const char *prefix;
    int layer; /* of the names now asked for; -1: none */
} Loader;

/* "PREFIXlayers.3.NAME" into `name`; false if it does not fit, so that it cannot exist either. */
static bool tensor_name(char *name, size_t size, const Loader *loader, const char *suffix) {
    char layer[32] = "";
    if (loader->layer >= 0) {
        snprintf(layer, sizeof layer, "%s.%d.",
                 loader->llm->config.kind == LLM_GPT2 ? "h" : "layers", loader->layer);
    }
    int length = snprintf(name, size, "%s%s%s", loader->prefix, layer, suffix);
    return length >= 0 && (size_t)length < size;
}

static void load(const Loader *loader, const char *suffix, int rank, size_t rows, size_t cols,
                   Weight *weight) {
    char name[256];
    size_t shape[2] = {rows, cols};
    const Tensor *tensor = NULL;
    if (!tensor_name(name, sizeof name, loader, suffix)) {
        fail(STATUS_INPUT, "%s: name too long", suffix);
    }
    tensor = tensors_need(&loader->llm->store, name, rank, shape);
    *weight = (Weight){tensor->data, tensor->dtype};
    if (loader->layer >= 0) {
        LlmLayer *layer = &loader->llm->layers[loader->layer];
        layer->tensors[layer->tensor_count++] = tensor;
    }
}

static void load_norm(const Loader *loader, const char *weight, const char *bias, LlmNorm *norm) {
    size_t d = loader->llm->config.d_model;
    load(loader, weight, 1, d, 0, &norm->w);
    if (bias != NULL) {
        load(loader, bias, 1, d, 0, &norm->b);
    }
}

/* bias NULL: none. conv: Conv1D, stored [in, out]. */
static void load_matrix(const Loader *loader, const char *weight, const char *bias, size_t out,
                          size_t in, bool conv, Matrix *matrix) {
    *matrix = (Matrix){
        .row = conv ? 1 : (ptrdiff_t)in, .col = conv ? (ptrdiff_t)out : 1, .out = out, .in = in};
    load(loader, weight, 2, conv ? in : out, conv ? out : in, &matrix->w);
    if (bias != NULL) {
        load(loader, bias, 1, out, 0, &matrix->bias);
    }
}

static Weight weight_from(Weight weight, size_t element) {
    if (weight.data != NULL) {
        weight.data = (const unsigned char *)weight.data + element * dtype_size(weight.dtype);
    }
    return weight;
}

/* Outputs first .. first + count - 1 of a matrix. */
static Matrix matrix_rows(const Matrix *matrix, size_t first, size_t count) {
    Matrix part = *matrix;
    part.w = weight_from(matrix->w, first * (size_t)matrix->row);
    part.bias = weight_from(matrix->bias, first);
    part.out = count;
    return part;
}

Matrix llm_head_matrix(const Llm *llm, size_t layer, HookKind kind, size_t head) {
    const LlmLayer *l = &llm->layers[layer];
    size_t d_head = llm->config.d_head;
    if (kind == HOOK_Z) {
        Matrix part = l->o;
        part.w = weight_from(part.w, head * d_head * (size_t)part.col);
        part.bias = (Weight){NULL, DTYPE_F32};
        part.in = d_head;
        return part;
    }
    if (l->qkv.w.data != NULL) {
        size_t which = kind == HOOK_Q ? 0 : kind == HOOK_K ? 1 : 2;
        return matrix_rows(&l->qkv, (head * 3 + which) * d_head, d_head);
    }
    const Matrix *whole = kind == HOOK_Q ? &l->q : kind == HOOK_K ? &l->k : &l->v;
    return matrix_rows(whole, head * d_head, d_head);
}

static void load_gemma2(Loader *loader, const Config *file, LlmLayer *l) {
    const LlmConfig *c = &loader->llm->config;
    size_t d = c->d_model, query = c->n_heads * c->d_head, key = c->n_kv_heads * c->d_head;
    bool bias = false;
    config_bool(file, "attention_bias", false, &bias);
    load_norm(loader, "input_layernorm.weight", NULL, &l->ln1);
    load_norm(loader, "post_attention_layernorm.weight", NULL, &l->ln1_post);
    load_norm(loader, "pre_feedforward_layernorm.weight", NULL, &l->ln2);
    load_norm(loader, "post_feedforward_layernorm.weight", NULL, &l->ln2_post);
    load_matrix(loader, "self_attn.q_proj.weight", bias ? "self_attn.q_proj.bias" : NULL, query,
                    d, false, &l->q);
    load_matrix(loader, "self_attn.k_proj.weight", bias ? "self_attn.k_proj.bias" : NULL, key,
                    d, false, &l->k);
    load_matrix(loader, "self_attn.v_proj.weight", bias ? "self_attn.v_proj.bias" : NULL, key,
                    d, false, &l->v);
    load_matrix(loader, "self_attn.o_proj.weight", bias ? "self_attn.o_proj.bias" : NULL, d,
                    query, false, &l->o);
    load_matrix(loader, "mlp.gate_proj.weight", NULL, c->d_mlp, d, false, &l->pre);
    load_matrix(loader, "mlp.up_proj.weight", NULL, c->d_mlp, d, false, &l->linear);
    load_matrix(loader, "mlp.down_proj.weight", NULL, d, c->d_mlp, false, &l->out);
}

static void load_gpt2(Loader *loader, const Config *file, LlmLayer *l) {
    const LlmConfig *c = &loader->llm->config;
    size_t d = c->d_model;
    Matrix qkv;
    (void)file;
    load_norm(loader, "ln_1.weight", "ln_1.bias", &l->ln1);
    load_norm(loader, "ln_2.weight", "ln_2.bias", &l->ln2);
    load_matrix(loader, "attn.c_attn.weight", "attn.c_attn.bias", 3 * d, d, true, &qkv);
    l->q = matrix_rows(&qkv, 0, d);
    l->k = matrix_rows(&qkv, d, d);
    l->v = matrix_rows(&qkv, 2 * d, d);
    load_matrix(loader, "attn.c_proj.weight", "attn.c_proj.bias", d, d, true, &l->o);
    load_matrix(loader, "mlp.c_fc.weight", "mlp.c_fc.bias", c->d_mlp, d, true, &l->pre);
    load_matrix(loader, "mlp.c_proj.weight", "mlp.c_proj.bias", d, c->d_mlp, true, &l->out);
}

static void load_gpt_neox(Loader *loader, const Config *file, LlmLayer *l) {
    const LlmConfig *c = &loader->llm->config;
    size_t d = c->d_model;
    bool bias = true;
    config_bool(file, "attention_bias", true, &bias);
    load_norm(loader, "input_layernorm.weight", "input_layernorm.bias", &l->ln1);
    load_norm(loader, "post_attention_layernorm.weight", "post_attention_layernorm.bias",
                  &l->ln2);
    load_matrix(loader, "attention.query_key_value.weight",
                    bias ? "attention.query_key_value.bias" : NULL, 3 * d, d, false, &l->qkv);
    load_matrix(loader, "attention.dense.weight", bias ? "attention.dense.bias" : NULL, d, d,
                    false, &l->o);
    load_matrix(loader, "mlp.dense_h_to_4h.weight", "mlp.dense_h_to_4h.bias", c->d_mlp, d,
                    false, &l->pre);
    load_matrix(loader, "mlp.dense_4h_to_h.weight", "mlp.dense_4h_to_h.bias", d, c->d_mlp,
                       false, &l->out);
}

/* Head: a stored one, else, where the config ties it, the embedding. */
static void load_head(Loader *loader, const Config *file) {
    static const char *const names[] = {"lm_head.weight", "embed_out.weight"};
    Llm *llm = loader->llm;
    const LlmConfig *c = &llm->config;
    bool tied = false;
    loader->prefix = "";
    config_bool(file, "tie_word_embeddings", c->kind != LLM_GPT_NEOX, &tied);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (tensors_find(&llm->store, names[i]) != NULL) {
            load(loader, names[i], 2, c->d_vocab, c->d_model, &llm->head);
            return;
        }
    }
    if (!tied) {
        load(loader, names[0], 2, c->d_vocab, c->d_model, &llm->head);
        return;
    }
    llm->head = llm->embed;
}

static void load_all(Llm *llm, const Config *file) {
    static const char *const prefixes[] = {"model.", "transformer.", "gpt_neox.", ""};
    static const char *const embeds[] = {"embed_tokens.weight", "wte.weight", "embed_in.weight"};
    static const char *const finals[][2] = {{"norm.weight", NULL},
                                            {"ln_f.weight", "ln_f.bias"},
                                            {"final_layer_norm.weight", "final_layer_norm.bias"}};
    static void (*const loaders[])(Loader *, const Config *,
                                     LlmLayer *) = {load_gemma2, load_gpt2, load_gpt_neox};
    LlmConfig *c = &llm->config;
    /* If none fits, errors name tensors as the model's own class does. */
    Loader loader = {llm, prefixes[c->kind], -1};
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s%s", prefixes[i], embeds[c->kind]);
        if (tensors_find(&llm->store, name) != NULL) {
            loader.prefix = prefixes[i];
            break;
        }
    }
    const Json *cut = json_get(file->json, "tie_word_embeddings");
    char embed[64];
    snprintf(embed, sizeof embed, "%s%s", loader.prefix, embeds[c->kind]);
    bool only_head = tensors_find(&llm->store, embed) == NULL && !json_is(cut, JSON_FALSE) &&
                     c->kind != LLM_GPT_NEOX && tensors_find(&llm->store, "lm_head.weight") != NULL;
    if (only_head) { /* tied, and saved once under the head's name */
        load_head(&loader, file);
        llm->embed = llm->head;
        loader.prefix = prefixes[c->kind];
    } else {
        load(&loader, embeds[c->kind], 2, c->d_vocab, c->d_model, &llm->embed);
    }
    if (c->kind == LLM_GPT2) {
        load(&loader, "wpe.weight", 2, c->n_ctx, c->d_model, &llm->pos_embed);
    }

    if (c->n_layers > llm->store.count) { /* before memory is asked for them */
        fail(STATUS_INPUT, "%s: %zu layers, but %s has only %zu tensors", file->file,
                    c->n_layers, llm->store.path, llm->store.count);
    }
    llm->layers = arena_alloc(llm->arena, c->n_layers, sizeof *llm->layers);
    for (size_t layer = 0; layer < c->n_layers; layer++) {
        loader.layer = (int)layer;
        loaders[c->kind](&loader, file, &llm->layers[layer]);
    }
    loader.layer = -1;
    load(&loader, finals[c->kind][0], 1, c->d_model, 0, &llm->ln_final.w);
    if (finals[c->kind][1] != NULL) {
        load(&loader, finals[c->kind][1], 1, c->d_model, 0, &llm->ln_final.b);
    }
    load_head(&loader, file);
    config_layer_types(file, llm);
}

static void llm_read(Llm *llm, Arena *scratch, const char *directory) {
    llm->path = arena_copy(llm->arena, directory, strlen(directory));
    Config config = {NULL, path_join(scratch, directory, "config.json")};
    config.json = json_read_file(scratch, config.file);
    config_read(&config, &llm->config);
    config_tokens(&config, directory, llm, scratch);
    tensors_open(&llm->store, llm->arena, directory);
    load_all(llm, &config);
}

void llm_open(Llm *llm, Arena *arena, const char *directory) {
    Arena *scratch = arena_new();
    *llm = (Llm){.arena = arena};
    llm_read(llm, scratch, directory);
    arena_free(scratch);
}

/* ---- weights that are not finite ---- */

enum {
    SCAN_PARTS = 64
};

typedef struct Scan {
    const Tensor *tensor;
    bool bad[SCAN_PARTS];
} Scan;

static void scan_part(void *user, size_t part, int thread) {
    Scan *scan = user;
    size_t count = scan->tensor->count, step = count / SCAN_PARTS + 1;
    size_t end = (part + 1) * step < count ? (part + 1) * step : count;
    const unsigned char *data = scan->tensor->data;
    unsigned bad = 0;
    (void)thread;
    if (scan->tensor->dtype == DTYPE_F32) {
        for (size_t i = part * step; i < end; i++) {
            uint32_t bits;
            memcpy(&bits, data + 4 * i, sizeof bits);
            bad |= (bits & 0x7f800000U) == 0x7f800000U;
        }
    } else {
        unsigned exponent = scan->tensor->dtype == DTYPE_BF16 ? 0x7f80U : 0x7c00U;
        for (size_t i = part * step; i < end; i++) {
            uint16_t bits;
            memcpy(&bits, data + 2 * i, sizeof bits);
            bad |= (bits & exponent) == exponent;
        }
    }
    scan->bad[part] = bad != 0;
}

static void check_tensor(const LlmRun *run, const Tensor *tensor) {
    Scan scan = {.tensor = tensor};
    compute_parallel(run->compute, SCAN_PARTS, scan_part, &scan);
    for (size_t part = 0; part < SCAN_PARTS; part++) {
        if (scan.bad[part]) {
            fail(STATUS_INPUT, "%s: tensor '%s': holds NaN or infinity", tensor->file,
                        tensor->name);
        }
    }
}

/* The tensor that a weight was loaded from. */
static const Tensor *tensor_of(const Llm *llm, Weight weight) {
    for (size_t i = 0; i < llm->store.count; i++) {
        if (llm->store.tensors[i].data == weight.data && llm->store.tensors[i].count > 0) {
            return &llm->store.tensors[i];
        }
    }
    return NULL;
}

void llm_check_weight(const LlmRun *run, Weight weight) {
    const Tensor *tensor = weight.data != NULL ? tensor_of(run->llm, weight) : NULL;
    if (tensor != NULL) {
        check_tensor(run, tensor);
    }
}

void llm_check_layer(LlmRun *run, size_t layer) {
    if (run->checked[layer]) {
        return;
    }
    if (layer == run->llm->config.n_layers) {
        llm_check_weight(run, run->llm->ln_final.w);
        llm_check_weight(run, run->llm->ln_final.b);
    } else {
        const LlmLayer *l = &run->llm->layers[layer];
        for (size_t i = 0; i < l->tensor_count; i++) {
            check_tensor(run, l->tensors[i]);
        }
    }
    run->checked[layer] = true;
}
