/* sae_dictionary.c: SAEs of dictionary_learning: ae.pt (a state dict) and config.json.
 *
 *   trainer.dict_class     tensors                                       x - b_dec   acts
 *   AutoEncoder            bias, encoder.*, decoder.weight               yes         ReLU
 *   AutoEncoderTopK        b_dec, encoder.*, decoder.weight, k           yes         k largest
 *   BatchTopKSAE           b_dec, encoder.*, decoder.weight, threshold   yes         > threshold
 *   JumpReluAutoEncoder    W_enc, b_enc, W_dec, b_dec, threshold         no          > threshold
 *   GatedAutoEncoder       decoder_bias, encoder.weight, decoder.weight,
 *                          r_mag, gate_bias, mag_bias                    yes         gated
 *
 * Easy to get wrong: encoder.weight is [d_sae, d_in] and decoder.weight [d_in, d_sae], but W_enc is
 * [d_in, d_sae]; thresholds are single numbers but JumpRelu's; AutoEncoderTopK has a threshold too
 * and does not use it; biases already are on the scale of activations (norm_factor only says what
 * that was). Sets from before the library wrote config.json have the class in their tensors' names
 * and the hook point in their folders (resid_out_layer3/10_32768/ae.pt). */
#include "sae_parts.h"

#include <math.h>
#include <string.h>

typedef enum DictClass {
    DICT_STANDARD,
    DICT_TOPK,
    DICT_BATCHTOPK,
    DICT_JUMPRELU,
    DICT_GATED,
    DICT_CLASSES
} DictClass;

static const char *const class_names[DICT_CLASSES] = {
    "AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder", "GatedAutoEncoder"};

/* ---- the hook point ---- */

bool sae_dictionary_site(const char *text, size_t length, HookKind *kind, int *layer) {
    static const struct {
        const char *word;
        HookKind kind;
    } sites[] = {{"resid_post", HOOK_RESID_POST}, {"resid_out", HOOK_RESID_POST},
                 {"resid_pre", HOOK_RESID_PRE},   {"resid_mid", HOOK_RESID_MID},
                 {"mlp_out", HOOK_MLP_OUT},       {"attn_out", HOOK_ATTN_OUT},
                 {"attention_out", HOOK_ATTN_OUT}};
    static const char word[] = "layer";
    for (size_t i = 0; i + sizeof word - 1 < length; i++) {
        size_t at = i + sizeof word - 1;
        at += memcmp(text + i, word, at - i) == 0 && strchr("_.-", text[at]) != NULL;
        if (memcmp(text + i, word, sizeof word - 1) != 0 || at >= length || text[at] < '0' ||
            text[at] > '9') {
            continue;
        }
        int number = 0;
        for (; at < length && text[at] >= '0' && text[at] <= '9' && number < 100000; at++) {
            number = 10 * number + (text[at] - '0');
        }
        *layer = number;
        break;
    }
    if (length == strlen("embed") && memcmp(text, "embed", length) == 0) {
        *kind = HOOK_EMBED;
        return true;
    }
    for (size_t i = 0; i < sizeof sites / sizeof sites[0]; i++) {
        size_t n = strlen(sites[i].word);
        for (size_t at = 0; at + n <= length; at++) {
            bool starts = at == 0 || strchr("_.-", text[at - 1]) != NULL;
            if (starts && memcmp(text + at, sites[i].word, n) == 0) {
                *kind = sites[i].kind;
                return true;
            }
        }
    }
    return false;
}

/* trainer.layer and submodule_name, a free text. Where there is none, the path says the site, or it
 * is the residual stream after the layer, as the library's own get_submodule has it. */
void sae_dictionary_identify(Candidate *c) {
    const Json *trainer = json_get(c->cfg, "trainer"), *layer = json_get(trainer, "layer");
    int64_t number;
    int named = -1;
    c->sae.model_name =
        sae_text(sae_setting(trainer, "lm_name", NULL, "", NULL, ""), NULL, c->cfg_file, "lm_name");
    const char *module = sae_text(sae_setting(trainer, "submodule_name", NULL, "", NULL, ""), NULL,
                                  c->cfg_file, "submodule_name");
    const char *io = sae_text(sae_setting(json_get(c->cfg, "buffer"), "io", NULL, "", NULL, ""),
                              "out", c->cfg_file, "io");
    if (json_is(layer, JSON_NUMBER) && json_int64(layer, &number) && number >= 0 &&
        number <= 100000) {
        c->layer = (int)number;
    }
    if (strcmp(io, "in_to_out") == 0) {
        fail(STATUS_INPUT, "%s: 'io' is 'in_to_out': transcoders are not supported", c->cfg_file);
    }
    if (strcmp(io, "out") != 0) {
        c->named =
            arena_format(c->sae.arena, "the input of %s", module != NULL ? module : "a module");
        return;
    }
    if (module == NULL || module[0] == 0) {
        return;
    }
    HookKind kind;
    int hook_layer;
    bool vision;
    size_t length = strlen(module);
    if (hook_parse(module, &kind, &hook_layer, &vision)) {
        c->named = module;
    } else if (sae_dictionary_site(module, length, &c->site, &named) ||
               sae_module_site(module, length, &c->site, &named)) {
        c->site_known = true;
        c->layer = c->layer < 0 ? named : c->layer;
    } else {
        c->named = module;
    }
}

/* ---- loading ---- */

static bool has(const Sae *sae, const char *name) {
    return tensors_find(&sae->store, name) != NULL;
}

/* What the settings say, else the tensors' names, else --dict-class. */
static DictClass class_find(const Candidate *c, const SaeOptions *options) {
    const Sae *sae = &c->sae;
    const Json *trainer = json_get(c->cfg, "trainer");
    const char *name = sae_text(sae_setting(trainer, "dict_class", NULL, "", NULL, ""), NULL,
                                c->cfg_file, "dict_class");
    if (name == NULL) {
        bool linear = has(sae, "encoder.weight") && has(sae, "decoder.weight");
        name = has(sae, "group_sizes")                      ? "MatryoshkaBatchTopKSAE"
               : has(sae, "decoder.bias")                   ? "AutoEncoderNew"
               : linear && has(sae, "r_mag")                ? "GatedAutoEncoder"
               : linear && has(sae, "bias")                 ? "AutoEncoder"
               : has(sae, "W_enc") && has(sae, "threshold") ? "JumpReluAutoEncoder"
               : linear && has(sae, "b_dec")                ? options->dict_class
                                                            : "";
        if (name == NULL) {
            fail(STATUS_INPUT,
                 "%s: its tensors may be an AutoEncoderTopK's or a BatchTopKSAE's, and no "
                 "config.json says which: give --dict-class NAME",
                 c->weights_file);
        }
        if (name[0] == 0) {
            fail(STATUS_INPUT, "%s: its tensors are not those of an SAE of dictionary_learning%s",
                 c->weights_file,
                 has(sae, "ae.encoder.weight") || has(sae, "ae.W_enc")
                     ? ", but of a training that was not finished"
                     : "");
        }
    }
    for (int i = 0; i < DICT_CLASSES; i++) {
        if (strcmp(name, class_names[i]) == 0) {
            return (DictClass)i;
        }
    }
    sae_refuse(c->cfg_file, "dict_class", name);
}

/* The single number in tensor `name`, which must be there. */
static double scalar(const Sae *sae, const char *name) {
    const Tensor *t = tensors_find(&sae->store, name);
    int64_t whole = 0;
    int32_t half = 0;
    double value = 0;
    if (t == NULL || t->count != 1) {
        fail(STATUS_INPUT, "%s: tensor '%s': expected a single number, %s", sae->store.path, name,
             t == NULL ? "not found" : "found several");
    }
    switch (t->dtype) {
    case DTYPE_F32:
    case DTYPE_BF16:
    case DTYPE_F16:
        return (double)weight_at((Weight){.data = t->data, .dtype = t->dtype}, 0);
    case DTYPE_F64:
        memcpy(&value, t->data, sizeof value);
        return value;
    case DTYPE_I64:
        memcpy(&whole, t->data, sizeof whole);
        return (double)whole;
    case DTYPE_I32:
        memcpy(&half, t->data, sizeof half);
        return (double)half;
    default:
        fail(STATUS_INPUT, "%s: tensor '%s': expected a number, found %s", sae->store.path, name,
             t->type);
    }
}

/* k from the tensors and from the settings: the library refuses two that differ, and so do we. */
static void topk_k(Candidate *c) {
    Sae *sae = &c->sae;
    const Json *said = sae_setting(json_get(c->cfg, "trainer"), "k", NULL, "", NULL, "");
    size_t k = sae_size(said, 0, c->cfg_file, "k");
    if (has(sae, "k")) {
        double stored = scalar(sae, "k");
        if (!(stored >= 0 && stored <= INT32_MAX) || (said != NULL && stored != (double)k)) {
            fail(STATUS_INPUT, "%s: tensor 'k' is %.9g, but 'k' is %zu in %s", c->weights_file,
                 stored, k, c->cfg_file);
        }
        k = (size_t)stored;
    } else if (said == NULL) {
        fail(STATUS_INPUT, "%s: neither a tensor 'k' nor 'k' in a config.json", c->weights_file);
    }
    sae->k = k;
}

/* A single threshold, for every feature. */
static void threshold_spread(Sae *sae) {
    double value = scalar(sae, "threshold");
    if (isnan(value)) {
        fail(STATUS_INPUT, "%s: tensor 'threshold' is not a number", sae->store.path);
    }
    float *values = arena_alloc(sae->arena, sae->d_sae, sizeof *values);
    for (size_t j = 0; j < sae->d_sae; j++) {
        values[j] = (float)value;
    }
    sae->threshold = (Weight){.data = values, .dtype = DTYPE_F32};
}

/* encoder.weight [d_sae, d_in] and decoder.weight [d_in, d_sae], as nn.Linear has them. */
static void linear_load(Sae *sae, const char *b_dec) {
    const Tensor *encoder = tensors_find(&sae->store, "encoder.weight");
    if (encoder == NULL || encoder->rank != 2) {
        fail(STATUS_INPUT, "%s: tensor 'encoder.weight': expected [d_sae, d_in], %s",
             sae->store.path, encoder == NULL ? "not found" : "found another rank");
    }
    sae->d_sae = encoder->shape[0];
    sae->d_in = encoder->shape[1];
    sae_sizes_check(sae);
    sae->w_enc = sae_matrix(sae, "encoder.weight", sae->d_sae, sae->d_in);
    sae->w_dec = sae_matrix(sae, "decoder.weight", sae->d_in, sae->d_sae);
    sae->enc_feature = (ptrdiff_t)sae->d_in;
    sae->enc_input = 1;
    sae->dec_feature = 1;
    sae->dec_input = (ptrdiff_t)sae->d_sae;
    sae->subtract_b_dec = true;
    sae->b_dec = sae_vector(sae, b_dec, sae->d_in, false);
}

/* AutoEncoder.normalize_decoder: decoder columns of length 1, encoder rows and b_enc times what
 * they had. As there, nothing changes if all lengths are within allclose's 1e-5 of 1. */
static void unit_decoder(Sae *sae) {
    size_t n = sae->d_sae, d = sae->d_in;
    float *norm = arena_alloc(sae->arena, n, sizeof *norm);
    double *sum = arena_alloc(sae->arena, n, sizeof *sum);
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j < n; j++) {
            double w = (double)weight_at(sae->w_dec, i * n + j);
            sum[j] += w * w;
        }
    }
    bool unit = true;
    for (size_t j = 0; j < n; j++) {
        norm[j] = (float)sqrt(sum[j]);
        unit = unit && fabsf(norm[j] - 1.0f) <= 1e-8f + 1e-5f;
        if (!(norm[j] > 0.0f) || isinf(norm[j])) {
            fail(STATUS_INPUT,
                 "%s: tensor 'decoder.weight': column %zu has length %g: --unit-decoder "
                 "cannot rescale it",
                 sae->store.path, j, (double)norm[j]);
        }
    }
    if (unit) {
        return;
    }
    float *enc = arena_alloc(sae->arena, n * d, sizeof *enc); /* both shapes were checked */
    float *dec = arena_alloc(sae->arena, n * d, sizeof *dec);
    float *b_enc = arena_alloc(sae->arena, n, sizeof *b_enc);
    weight_widen(enc, sae->w_enc, 0, n * d);
    for (size_t j = 0; j < n; j++) {
        for (size_t i = 0; i < d; i++) {
            enc[j * d + i] *= norm[j];
            dec[j * d + i] = weight_at(sae->w_dec, i * n + j) / norm[j];
        }
        b_enc[j] = weight_at(sae->b_enc, j) * norm[j];
    }
    sae->w_enc = (Weight){.data = enc, .dtype = DTYPE_F32};
    sae->w_dec = (Weight){.data = dec, .dtype = DTYPE_F32}; /* [d_sae, d_in] now */
    sae->dec_feature = (ptrdiff_t)d;
    sae->dec_input = 1;
    sae->b_enc = (Weight){.data = b_enc, .dtype = DTYPE_F32};
}

static void gated_load(Sae *sae) {
    sae->act = SAE_GATED;
    linear_load(sae, "decoder_bias");
    sae->b_gate = sae_vector(sae, "gate_bias", sae->d_sae, false);
    sae->b_mag = sae_vector(sae, "mag_bias", sae->d_sae, false);
    sae_mag_gain(sae);
}

void sae_dictionary_load(Candidate *c, const SaeOptions *options) {
    Sae *sae = &c->sae;
    DictClass class = class_find(c, options);
    sae->architecture = class_names[class];
    switch (class) {
    case DICT_STANDARD:
        sae->act = SAE_RELU;
        linear_load(sae, "bias");
        sae->b_enc = sae_vector(sae, "encoder.bias", sae->d_sae, false);
        if (options->unit_decoder) {
            unit_decoder(sae);
        }
        return;
    case DICT_TOPK:
        sae->act = SAE_TOPK;
        linear_load(sae, "b_dec");
        sae->b_enc = sae_vector(sae, "encoder.bias", sae->d_sae, false);
        topk_k(c);
        return;
    case DICT_BATCHTOPK:
        sae->act = SAE_BATCHTOPK;
        linear_load(sae, "b_dec");
        sae->b_enc = sae_vector(sae, "encoder.bias", sae->d_sae, false);
        threshold_spread(sae);
        return;
    case DICT_JUMPRELU:
        sae->act = SAE_JUMPRELU;
        sae_sizes_from(sae, "W_enc");
        sae_plain(sae, "W_enc", "W_dec");
        return;
    case DICT_GATED:
    case DICT_CLASSES:
        break;
    }
    gated_load(sae);
}
