/* sae_load.c: SAE files: which format, which hook point, which conventions; and the search for SAEs
 * below a directory. The arithmetic is in sae.c.
 *
 *   found together                     source               conventions from
 *   params.npz                         GemmaScope           the path (site, layer, average_l0)
 *   cfg.json, sae_weights.safetensors  SAELens              cfg.json; 6.0 moved names to `metadata`
 *   cfg.json, sae.safetensors          EleutherAI sparsify  cfg.json; hook from the folder
 *   config.json, ae.pt                 dictionary_learning  sae_dictionary.c
 *
 * First identify (settings and path only), then load (weights, refusals): a search can pass over
 * what is not wanted without opening it. */
#include "checkpoint.h"
#include "elementary.h"
#include "sae_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct {
    const char *weights, *cfg;
    SaeSource source;
} sae_formats[] = {
    {"params.npz", NULL, SAE_GEMMASCOPE},
    {"sae_weights.safetensors", "cfg.json", SAE_SAELENS},
    {"sae.safetensors", "cfg.json", SAE_SPARSIFY},
    {"ae.pt", "config.json", SAE_DICTIONARY_LEARNING},
};
enum {
    SAE_FORMATS = sizeof sae_formats / sizeof sae_formats[0]
};

const char *sae_source_name(SaeSource source) {
    static const char *const names[] = {"GemmaScope", "SAELens", "SAELens before 6",
                                        "EleutherAI sparsify", "dictionary_learning"};
    return names[source];
}

/* ---- settings ---- */

static bool is_set(const Json *value) {
    return value != NULL && !json_is(value, JSON_NULL);
}

const Json *sae_setting(const Json *a, const char *key_a, const Json *b, const char *key_b,
                        const Json *c, const char *key_c) {
    const Json *value = json_get(a, key_a);
    if (!is_set(value)) {
        value = json_get(b, key_b);
    }
    if (!is_set(value)) {
        value = json_get(c, key_c);
    }
    return is_set(value) ? value : NULL;
}

static bool as_bool(const Json *value, bool absent, const char *file, const char *key) {
    if (value != NULL && !json_is(value, JSON_TRUE) && !json_is(value, JSON_FALSE)) {
        fail(STATUS_INPUT, "%s: '%s' must be true or false", file, key);
    }
    return value != NULL ? json_is(value, JSON_TRUE) : absent;
}

size_t sae_size(const Json *value, size_t absent, const char *file, const char *key) {
    int64_t number = 0;
    if (value == NULL) {
        return absent;
    }
    if (!json_int64(value, &number) || number < 0 || number > INT32_MAX) {
        fail(STATUS_INPUT, "%s: '%s' must be a whole number from 0 to 2^31 - 1", file, key);
    }
    return (size_t)number;
}

const char *sae_text(const Json *value, const char *absent, const char *file, const char *key) {
    if (value != NULL && !json_is(value, JSON_STRING)) {
        fail(STATUS_INPUT, "%s: '%s' must be a string", file, key);
    }
    return value != NULL ? value->text : absent;
}

void sae_refuse(const char *file, const char *key, const char *value) {
    fail(STATUS_INPUT, "%s: %s '%s' is not supported", file, key, value);
}

/* Refuses `key` if it is set to something Python calls true. */
static void refuse_if_set(const Json *cfg, const char *key, const char *file) {
    const Json *value = json_get(cfg, key);
    bool zero = json_is(value, JSON_NUMBER) && json_double(value) == 0;
    bool empty = (json_is(value, JSON_STRING) || json_is(value, JSON_ARRAY) ||
                  json_is(value, JSON_OBJECT)) &&
                 value->length == 0;
    if (!is_set(value) || json_is(value, JSON_FALSE) || zero || empty) {
        return;
    }
    fail(STATUS_INPUT, "%s: '%s' is set, which is not supported", file, key);
}

/* ---- the hook point ---- */

static bool digit(char c) {
    return c >= '0' && c <= '9';
}

/* The number after `prefix` and one of `separators` in text[length]; *end: after it. -1: none. */
static int number_after(const char *text, size_t length, const char *prefix, const char *separators,
                        const char **end) {
    size_t n = strlen(prefix);
    for (size_t i = 0; i + n + 1 < length; i++) {
        bool starts = i == 0 || strchr("-_. ", text[i - 1]) != NULL;
        if (!starts || memcmp(text + i, prefix, n) != 0 ||
            strchr(separators, text[i + n]) == NULL || !digit(text[i + n + 1])) {
            continue;
        }
        int number = 0;
        size_t j = i + n + 1;
        for (; j < length && digit(text[j]); j++) {
            if (number > 100000) {
                return -1;
            }
            number = number * 10 + (text[j] - '0');
        }
        *end = text + j;
        return number;
    }
    return -1;
}

/* Which layer a component of the path names: layer_12, layers.12, h.12. */
static int component_layer(const char *text, size_t length, const char **end) {
    int layer = number_after(text, length, "layer", "_.-", end);
    if (layer < 0) {
        layer = number_after(text, length, "layers", "_.-", end);
    }
    if (layer < 0) {
        layer = number_after(text, length, "h", ".", end);
    }
    return layer;
}

static bool text_equals(const char *text, size_t length, const char *word) {
    return strlen(word) == length && memcmp(text, word, length) == 0;
}

static const struct {
    const char *word;
    HookKind kind; /* HOOK_KINDS: a transcoder */
} sae_sites[] = {{"res", HOOK_RESID_POST},   {"resid", HOOK_RESID_POST},
                 {"mlp", HOOK_MLP_OUT},      {"att", HOOK_Z},
                 {"attn", HOOK_Z},           {"embedding", HOOK_EMBED},
                 {"transcoder", HOOK_KINDS}, {"transcoders", HOOK_KINDS}};

/* GemmaScope's site in a component of the path: the last word of it (gemma-scope-2b-pt-res, mlp),
 * or any word of one that says scope (gemma-scope-2b-pt-res-canonical). */
static bool component_site(const char *text, size_t length, HookKind *kind) {
    bool scope = false, found = false;
    for (size_t i = 0; i + 5 <= length; i++) {
        scope = scope || memcmp(text + i, "scope", 5) == 0;
    }
    for (size_t start = 0; start < length;) {
        size_t end = start;
        while (end < length && strchr("-_. ", text[end]) == NULL) {
            end++;
        }
        for (size_t i = 0; i < sizeof sae_sites / sizeof sae_sites[0]; i++) {
            if ((scope || end == length) &&
                text_equals(text + start, end - start, sae_sites[i].word)) {
                *kind = sae_sites[i].kind;
                found = true;
            }
        }
        start = end + 1;
    }
    return found;
}

/* sparsify names a module of the model: what follows layers.12. */
static bool module_site(const char *text, size_t length, HookKind *kind) {
    static const struct {
        const char *name;
        HookKind kind;
    } modules[] = {{"", HOOK_RESID_POST},
                   {".mlp", HOOK_MLP_OUT},
                   {".attention", HOOK_ATTN_OUT},
                   {".attn", HOOK_ATTN_OUT},
                   {".self_attn", HOOK_ATTN_OUT}};
    for (size_t i = 0; i < sizeof modules / sizeof modules[0]; i++) {
        if (text_equals(text, length, modules[i].name)) {
            *kind = modules[i].kind;
            return true;
        }
    }
    return false;
}

bool sae_module_site(const char *text, size_t length, HookKind *kind, int *layer) {
    const char *after = NULL;
    int found = component_layer(text, length, &after);
    if (found < 0 || !module_site(after, (size_t)(text + length - after), kind)) {
        return false;
    }
    *layer = found;
    return true;
}

typedef struct PathFinds {
    bool hook_known; /* a component that is a hook name */
    HookKind hook;
    int hook_layer;
    int layer; /* -1: none */
    bool site_known, embedding, width_16k;
    HookKind site;
    double average_l0; /* NaN: none */
} PathFinds;

/* Reads the components of a path, the deepest first; what is found already stays. */
static void path_read(PathFinds *finds, const char *path, SaeSource source) {
    for (size_t end = strlen(path); end > 0;) {
        size_t start = end;
        while (start > 0 && path[start - 1] != '/') {
            start--;
        }
        const char *text = path + start, *after = NULL;
        size_t length = end - start;
        end = start > 0 ? start - 1 : 0;
        if (length == 0 || length >= HOOK_NAME_MAX) {
            continue;
        }
        char name[HOOK_NAME_MAX];
        memcpy(name, text, length);
        name[length] = 0;
        bool vision = false;
        if (!finds->hook_known && hook_parse(name, &finds->hook, &finds->hook_layer, &vision)) {
            finds->hook_known = !vision;
        }
        int layer = component_layer(text, length, &after);
        if (finds->layer < 0 && layer >= 0) {
            finds->layer = layer;
            if (source == SAE_SPARSIFY) {
                finds->site_known =
                    module_site(after, (size_t)(text + length - after), &finds->site);
            }
        }
        if (source == SAE_DICTIONARY_LEARNING && !finds->site_known) {
            int named = -1;
            finds->site_known = sae_dictionary_site(text, length, &finds->site, &named);
            finds->layer = finds->layer < 0 ? named : finds->layer;
            finds->embedding = finds->site_known && finds->site == HOOK_EMBED;
        }
        if (source == SAE_SPARSIFY) {
            finds->embedding = finds->embedding || text_equals(text, length, "embed_tokens") ||
                               text_equals(text, length, "embed_in") ||
                               text_equals(text, length, "wte");
        } else if (source == SAE_GEMMASCOPE && !finds->site_known) {
            finds->site_known = component_site(text, length, &finds->site);
            finds->embedding = finds->site_known && finds->site == HOOK_EMBED;
        }
        finds->width_16k = finds->width_16k || text_equals(text, length, "width_16k");
        if (isnan(finds->average_l0) && length > 11 && memcmp(text, "average_l0_", 11) == 0 &&
            digit(text[11])) {
            finds->average_l0 = strtod(name + 11, NULL);
        }
    }
}

/* Sets sae->hook and layer from a name; blocks.L. stands for the layer of the path. */
static bool hook_set(Sae *sae, const char *name, int path_layer) {
    char full[HOOK_NAME_MAX];
    HookKind kind;
    int layer;
    bool vision;
    if (strncmp(name, "blocks.L.", 9) == 0 && path_layer >= 0) {
        snprintf(full, sizeof full, "blocks.%d.%.64s", path_layer, name + 9);
        name = full;
    }
    if (!hook_parse(name, &kind, &layer, &vision) || vision) {
        return false;
    }
    sae->hook = kind;
    sae->layer = layer;
    sae->hook_known = true;
    return true;
}

/* What the settings say, else the path, else --hook. */
static void hook_find(Candidate *c, const SaeOptions *options) {
    Sae *sae = &c->sae;
    const char *named = c->named;
    PathFinds finds = {.layer = -1, .average_l0 = (double)NAN};
    path_read(&finds, sae->path, sae->source);
    char here[4096];
    if (sae->path[0] != '/' && getcwd(here, sizeof here) != NULL) {
        path_read(&finds, here, sae->source);
    }
    sae->average_l0 = finds.average_l0;
    sae->width_16k = finds.width_16k;
    if (named != NULL && hook_set(sae, named, -1)) {
        return;
    }
    finds.layer = c->layer >= 0 ? c->layer : finds.layer;
    if (c->site_known) {
        finds.hook_known = false;
        finds.site_known = true;
        finds.site = c->site;
        finds.embedding = c->site == HOOK_EMBED;
    }
    HookKind site = finds.site_known ? finds.site : HOOK_RESID_POST;
    bool open = !finds.site_known && (sae->source == SAE_SPARSIFY || options->hook != NULL);
    bool usable = finds.layer >= 0 && site != HOOK_KINDS && site != HOOK_EMBED && !open;
    if (sae->source == SAE_GEMMASCOPE && site == HOOK_KINDS) {
        fail(STATUS_INPUT, "%s: transcoders are not supported", sae->path);
    }
    if (named == NULL && finds.hook_known) {
        sae->hook = finds.hook;
        sae->layer = finds.hook_layer;
        sae->hook_known = true;
    } else if (named == NULL && finds.embedding) {
        sae->hook = HOOK_EMBED;
        sae->layer = -1;
        sae->hook_known = true;
    } else if (named == NULL && usable) {
        sae->hook = site;
        sae->layer = finds.layer;
        sae->hook_known = true;
    } else if (options->hook != NULL && !hook_set(sae, options->hook, finds.layer)) {
        fail(STATUS_INPUT, "--hook: '%s' is not the name of a hook point", options->hook);
    }
}

/* ---- identifying ---- */

static void identify_saelens(Candidate *c) {
    Sae *sae = &c->sae;
    const Json *cfg = c->cfg, *meta = json_get(cfg, "metadata");
    const char *file = c->cfg_file;
    const char *version =
        sae_text(sae_setting(cfg, "sae_lens_version", meta, "sae_lens_version", NULL, ""), NULL,
                 file, "sae_lens_version");
    if (version == NULL || strtol(version, NULL, 10) < 6) {
        sae->source = SAE_SAELENS_OLD;
    }
    c->named = sae_text(sae->source == SAE_SAELENS
                            ? sae_setting(meta, "hook_name", cfg, "hook_name", NULL, "")
                            : sae_setting(cfg, "hook_name", cfg, "hook_point", meta, "hook_name"),
                        NULL, file, "hook_name");
    sae->model_name = sae_text(sae_setting(meta, "model_name", cfg, "model_name", NULL, ""), NULL,
                               file, "model_name");
    sae->prepend_bos = as_bool(sae_setting(meta, "prepend_bos", cfg, "prepend_bos", NULL, ""),
                               false, file, "prepend_bos");
    const Json *model = sae_setting(meta, "model_from_pretrained_kwargs", cfg,
                                    "model_from_pretrained_kwargs", NULL, "");
    const struct {
        const char *key;
        SaeCentre *state;
    } states[] = {{"center_writing_weights", &sae->centre},
                  {"fold_value_biases", &sae->fold_value_biases}};
    for (size_t i = 0; i < 2; i++) {
        const Json *value = sae_setting(model, states[i].key, NULL, "", NULL, "");
        bool yes = as_bool(value, false, file, states[i].key);
        if (value != NULL) {
            *states[i].state = yes ? SAE_CENTRE_YES : SAE_CENTRE_NO;
        }
    }
}

static void identify(Candidate *c, const SaeOptions *options) {
    Sae *sae = &c->sae;
    sae->centre = sae->fold_value_biases = SAE_CENTRE_UNKNOWN;
    sae->layer = c->layer = -1;
    if (sae->source == SAE_DICTIONARY_LEARNING && !path_exists(c->cfg_file)) {
        c->cfg_file = c->weights_file; /* its older sets have no settings */
    } else if (c->cfg_file != NULL) {
        c->cfg = json_read_file(sae->arena, c->cfg_file);
        if (!json_is(c->cfg, JSON_OBJECT)) {
            fail(STATUS_INPUT, "%s: expected a JSON object", c->cfg_file);
        }
    }
    if (sae->source == SAE_SAELENS) {
        identify_saelens(c);
    } else if (sae->source == SAE_DICTIONARY_LEARNING) {
        sae_dictionary_identify(c);
    } else if (sae->source == SAE_GEMMASCOPE) {
        sae->prepend_bos = true;
    }
    if (options->centre != SAE_CENTRE_UNKNOWN && sae->centre == SAE_CENTRE_UNKNOWN) {
        sae->centre = options->centre;
    }
    hook_find(c, options);
}

/* A candidate for the SAE in `directory`, whose weights are `weights`; options NULL: its place
 * alone. */
static void candidate_start(Candidate *c, Arena *arena, const char *directory, const char *weights,
                            const char *cfg, SaeSource source, const char *below,
                            const SaeOptions *options) {
    memset(c, 0, sizeof *c);
    c->sae.arena = arena;
    c->sae.source = source;
    c->sae.path = arena_copy(arena, directory, strlen(directory));
    c->below = arena_copy(arena, below, strlen(below));
    c->weights_file = path_join(arena, directory, weights);
    c->cfg_file = cfg != NULL ? path_join(arena, directory, cfg) : NULL;
    if (options != NULL) {
        identify(c, options);
    }
}

/* ---- loading ---- */

Weight sae_vector(const Sae *sae, const char *name, size_t count, bool infinite) {
    const Tensor *tensor = tensors_need(&sae->store, name, 1, &count);
    float *values = arena_alloc(sae->arena, count, sizeof *values);
    weight_widen(values, (Weight){.data = tensor->data, .dtype = tensor->dtype}, 0, count);
    for (size_t i = 0; i < count; i++) {
        if (isnan(values[i]) || (!infinite && isinf(values[i]))) {
            fail(STATUS_INPUT, "%s: tensor '%s': value %zu is not finite", tensor->file, name, i);
        }
    }
    return (Weight){.data = values, .dtype = DTYPE_F32};
}

Weight sae_matrix(const Sae *sae, const char *name, size_t rows, size_t cols) {
    const Tensor *tensor = tensors_need(&sae->store, name, 2, (size_t[]){rows, cols});
    return (Weight){.data = tensor->data, .dtype = tensor->dtype};
}

void sae_plain(Sae *sae, const char *w_enc, const char *w_dec) {
    sae->w_enc = sae_matrix(sae, w_enc, sae->d_in, sae->d_sae);
    sae->w_dec = sae_matrix(sae, w_dec, sae->d_sae, sae->d_in);
    sae->enc_feature = 1;
    sae->enc_input = (ptrdiff_t)sae->d_sae;
    sae->dec_feature = (ptrdiff_t)sae->d_in;
    sae->dec_input = 1;
    sae->b_dec = sae_vector(sae, "b_dec", sae->d_in, false);
    if (sae->act != SAE_GATED) {
        sae->b_enc = sae_vector(sae, "b_enc", sae->d_sae, false);
    }
    if (sae->act == SAE_JUMPRELU) {
        sae->threshold = sae_vector(sae, "threshold", sae->d_sae, true);
    }
}

void sae_sizes_check(const Sae *sae) {
    if (sae->d_in == 0 || sae->d_sae == 0 || sae->d_sae > UINT32_MAX) {
        fail(STATUS_INPUT, "%s: d_in is %zu and d_sae %zu", sae->path, sae->d_in, sae->d_sae);
    }
}

void sae_sizes_from(Sae *sae, const char *name) {
    const Tensor *tensor = tensors_find(&sae->store, name);
    if (tensor == NULL) {
        fail(STATUS_INPUT, "%s: tensor '%s' is missing", sae->store.path, name);
    }
    if (tensor->rank != 2) {
        fail(STATUS_INPUT, "%s: tensor '%s': expected [d_in, d_sae], found rank %d", tensor->file,
             name, tensor->rank);
    }
    sae->d_in = sae->d_in != 0 ? sae->d_in : tensor->shape[0];
    sae->d_sae = sae->d_sae != 0 ? sae->d_sae : tensor->shape[1];
    sae_sizes_check(sae);
}

static void scaled_copy(Sae *sae, Weight *weight, float divisor, float factor) {
    size_t count = sae->d_in * sae->d_sae; /* both shapes were checked against the file */
    float *values = arena_alloc(sae->arena, count, sizeof *values);
    weight_widen(values, *weight, 0, count);
    for (size_t i = 0; i < count; i++) {
        values[i] = values[i] / divisor * factor;
    }
    *weight = (Weight){.data = values, .dtype = DTYPE_F32};
}

static void load_gemmascope(Candidate *c) {
    Sae *sae = &c->sae;
    bool lower =
        tensors_find(&sae->store, "W_enc") == NULL && tensors_find(&sae->store, "w_enc") != NULL;
    sae->act = SAE_JUMPRELU;
    sae->architecture = "jumprelu";
    sae_sizes_from(sae, lower ? "w_enc" : "W_enc");
    sae_plain(sae, lower ? "w_enc" : "W_enc", lower ? "w_dec" : "W_dec");
    if (sae->hook_known && sae->hook == HOOK_EMBED) {
        /* Trained on embeddings before the factor sqrt(d), which hook_embed has; SAELens' loader
         * corrects it in the same two places. */
        float root = (float)sqrt((double)sae->d_in);
        scaled_copy(sae, &sae->w_enc, root, 1);
        scaled_copy(sae, &sae->w_dec, 1, root);
    }
}

static void saelens_norm(Candidate *c, const SaeOptions *options) {
    Sae *sae = &c->sae;
    const Json *value = json_get(c->cfg, "normalize_activations");
    const char *name = "none";
    if (json_is(value, JSON_TRUE)) {
        name = "expected_average_only_in"; /* files of 2024-04 had a flag */
    } else if (is_set(value) && !json_is(value, JSON_FALSE)) {
        name = sae_text(value, NULL, c->cfg_file, "normalize_activations");
    }
    if (strcmp(name, "none") == 0) {
        sae->norm = SAE_NORM_NONE;
    } else if (strcmp(name, "expected_average_only_in") == 0) {
        sae->norm = SAE_NORM_EXPECTED;
        sae->norm_factor = (float)options->norm_factor;
    } else if (strcmp(name, "constant_norm_rescale") == 0) {
        sae->norm = SAE_NORM_CONSTANT;
    } else if (strcmp(name, "layer_norm") == 0) {
        sae->norm = SAE_NORM_LAYER;
    } else {
        sae_refuse(c->cfg_file, "normalize_activations", name);
    }
}

/* What a SAELens cfg.json can ask for that is no SAE of one whole hook point. */
static void saelens_refusals(const Candidate *c, const Json *meta) {
    const Json *cfg = c->cfg;
    const char *file = c->cfg_file;
    const char *text = sae_text(sae_setting(cfg, "reshape_activations", NULL, "", NULL, ""), "none",
                                file, "reshape_activations");
    if (strcmp(text, "none") != 0 && strcmp(text, "hook_z") != 0) {
        sae_refuse(file, "reshape_activations", text);
    }
    const Json *head =
        sae_setting(meta, "hook_head_index", cfg, "hook_head_index", cfg, "hook_point_head_index");
    if (head != NULL) {
        fail(STATUS_INPUT, "%s: 'hook_head_index' is set: an SAE of a single head is not supported",
             file);
    }
    text = sae_text(sae_setting(meta, "hook_name_out", cfg, "hook_name_out", NULL, ""), "", file,
                    "hook_name_out");
    const char *hook = sae_text(sae_setting(meta, "hook_name", cfg, "hook_name", cfg, "hook_point"),
                                "", file, "hook_name");
    if (text[0] != 0 && strcmp(text, hook) != 0) {
        fail(STATUS_INPUT, "%s: 'hook_name_out' is '%s': transcoders are not supported", file,
             text);
    }
}

static void saelens_architecture(Candidate *c) {
    Sae *sae = &c->sae;
    const Json *cfg = c->cfg;
    const char *file = c->cfg_file;
    bool old = sae->source == SAE_SAELENS_OLD;
    const char *name = sae_text(sae_setting(cfg, "architecture", NULL, "", NULL, ""),
                                old ? "standard" : NULL, file, "architecture");
    if (name == NULL) {
        fail(STATUS_INPUT, "%s: 'architecture' is missing", file);
    }
    const Json *k = json_get(cfg, "k");
    if (old) {
        const char *fn =
            sae_text(sae_setting(cfg, "activation_fn_str", cfg, "activation_fn", NULL, ""), "relu",
                     file, "activation_fn");
        const Json *kwargs_k = json_get(json_get(cfg, "activation_fn_kwargs"), "k");
        if (strcmp(fn, "topk") == 0) {
            if (!is_set(kwargs_k)) {
                fail(STATUS_INPUT,
                     "%s: 'activation_fn' is topk, but 'activation_fn_kwargs' has no 'k'", file);
            }
            name = "topk";
        } else if (strcmp(fn, "relu") != 0) {
            sae_refuse(file, "activation_fn", fn);
        }
        k = is_set(kwargs_k) ? kwargs_k : k;
    }
    sae->architecture = name;
    if (strcmp(name, "standard") == 0) {
        sae->act = SAE_RELU;
    } else if (strcmp(name, "jumprelu") == 0) {
        sae->act = SAE_JUMPRELU;
    } else if (strcmp(name, "gated") == 0) {
        sae->act = SAE_GATED;
    } else if (strcmp(name, "topk") == 0) {
        sae->act = SAE_TOPK;
        sae->k = sae_size(is_set(k) ? k : NULL, 100, file, "k"); /* SAELens' default */
        sae->rescale_by_decoder_norm =
            as_bool(sae_setting(cfg, "rescale_acts_by_decoder_norm", NULL, "", NULL, ""), false,
                    file, "rescale_acts_by_decoder_norm");
    } else if (strstr(name, "batchtopk") != NULL) {
        fail(STATUS_INPUT,
             "%s: architecture '%s' is a training checkpoint: load the SAE that SAELens saves "
             "for inference, as jumprelu",
             file, name);
    } else {
        sae_refuse(file, "architecture", name);
    }
}

/* An old file's factor of finetuning: ignored when it is one everywhere, as SAELens does. */
static void saelens_scaling(Candidate *c) {
    Sae *sae = &c->sae;
    if (tensors_find(&sae->store, "scaling_factor") == NULL) {
        return;
    }
    Weight factor = sae_vector(sae, "scaling_factor", sae->d_sae, true);
    for (size_t j = 0; j < sae->d_sae; j++) {
        if (!(fabsf(weight_at(factor, j) - 1) <= 1e-8f + 1e-5f)) {
            fail(STATUS_INPUT,
                 "%s: tensor 'scaling_factor' is not 1 everywhere: finetuning_scaling_factor is "
                 "not supported",
                 c->weights_file);
        }
    }
}

void sae_mag_gain(Sae *sae) {
    Weight r_mag = sae_vector(sae, "r_mag", sae->d_sae, false);
    float *gain = arena_alloc(sae->arena, sae->d_sae, sizeof *gain);
    for (size_t j = 0; j < sae->d_sae; j++) {
        gain[j] = exp_f32(weight_at(r_mag, j));
    }
    sae->mag_gain = gain;
}

static void load_saelens(Candidate *c, const SaeOptions *options) {
    Sae *sae = &c->sae;
    const char *file = c->cfg_file;
    saelens_architecture(c);
    saelens_refusals(c, json_get(c->cfg, "metadata"));
    saelens_norm(c, options);
    sae->subtract_b_dec = as_bool(sae_setting(c->cfg, "apply_b_dec_to_input", NULL, "", NULL, ""),
                                  true, file, "apply_b_dec_to_input");
    sae->d_in = sae_size(sae_setting(c->cfg, "d_in", NULL, "", NULL, ""), 0, file, "d_in");
    sae->d_sae = sae_size(sae_setting(c->cfg, "d_sae", NULL, "", NULL, ""), 0, file, "d_sae");
    sae_sizes_from(sae, "W_enc");
    sae_plain(sae, "W_enc", "W_dec");
    saelens_scaling(c);
    if (sae->act == SAE_GATED) {
        sae->b_gate = sae_vector(sae, "b_gate", sae->d_sae, false);
        sae->b_mag = sae_vector(sae, "b_mag", sae->d_sae, false);
        sae_mag_gain(sae);
    }
}

static void load_sparsify(Candidate *c) {
    Sae *sae = &c->sae;
    const Json *cfg = c->cfg;
    const char *file = c->cfg_file;
    const char *activation =
        sae_text(sae_setting(cfg, "activation", NULL, "", NULL, ""), "topk", file, "activation");
    if (strcmp(activation, "topk") != 0) {
        sae_refuse(file, "activation", activation);
    }
    refuse_if_set(cfg, "signed", file);
    refuse_if_set(cfg, "skip_connection", file);
    refuse_if_set(cfg, "transcode", file);
    if (tensors_find(&sae->store, "W_skip") != NULL) {
        fail(STATUS_INPUT, "%s: tensor 'W_skip': skip_connection is not supported",
             c->weights_file);
    }
    sae->act = SAE_TOPK;
    sae->architecture = "topk";
    sae->subtract_b_dec = true;
    sae->k = sae_size(sae_setting(cfg, "k", NULL, "", NULL, ""), 32, file, "k");
    sae->d_in = sae_size(sae_setting(cfg, "d_in", NULL, "", NULL, ""), 0, file, "d_in");
    sae->d_sae =
        sae_size(sae_setting(cfg, "num_latents", NULL, "", NULL, ""), 0, file, "num_latents");
    size_t expansion = sae_size(sae_setting(cfg, "expansion_factor", NULL, "", NULL, ""), 32, file,
                                "expansion_factor");
    if (sae->d_sae == 0 && !size_mul(&sae->d_sae, sae->d_in, expansion)) {
        fail(STATUS_INPUT, "%s: 'expansion_factor' is too large", file);
    }
    sae_sizes_check(sae);
    sae->w_enc = sae_matrix(sae, "encoder.weight", sae->d_sae, sae->d_in);
    sae->w_dec = sae_matrix(sae, "W_dec", sae->d_sae, sae->d_in);
    sae->enc_feature = sae->dec_feature = (ptrdiff_t)sae->d_in;
    sae->enc_input = sae->dec_input = 1;
    sae->b_enc = sae_vector(sae, "encoder.bias", sae->d_sae, false);
    sae->b_dec = sae_vector(sae, "b_dec", sae->d_in, false);
}

/* |W_dec row|, for topk that chooses by it. Where inputs are scaled by one factor SAELens folds it
 * in (W_dec / factor) before it runs the SAE, so that f, too, is on the scale of activations. */
static void decoder_norms(Sae *sae) {
    double scale =
        sae->norm == SAE_NORM_EXPECTED && sae->norm_factor > 0 ? (double)sae->norm_factor : 1;
    float *norm = arena_alloc(sae->arena, sae->d_sae, sizeof *norm);
    for (size_t j = 0; j < sae->d_sae; j++) {
        double sum = 0;
        for (size_t i = 0; i < sae->d_in; i++) {
            double w = (double)weight_at(sae->w_dec,
                                         j * (size_t)sae->dec_feature + i * (size_t)sae->dec_input);
            sum += w * w;
        }
        norm[j] = (float)(sqrt(sum) / scale);
    }
    sae->dec_norm = norm;
}

static void load(Candidate *c, const SaeOptions *options) {
    Sae *sae = &c->sae;
    tensors_open(&sae->store, sae->arena, c->weights_file);
    if (sae->source == SAE_GEMMASCOPE) {
        load_gemmascope(c);
    } else if (sae->source == SAE_SPARSIFY) {
        load_sparsify(c);
    } else if (sae->source == SAE_DICTIONARY_LEARNING) {
        sae_dictionary_load(c, options);
    } else {
        load_saelens(c, options);
    }
    if (sae->act == SAE_TOPK && (sae->k == 0 || sae->k > sae->d_sae)) {
        fail(STATUS_INPUT, "%s: 'k' is %zu, but must be from 1 to d_sae, %zu", c->cfg_file, sae->k,
             sae->d_sae);
    }
    if (sae->rescale_by_decoder_norm) {
        decoder_norms(sae);
    }
}

/* ---- searching ---- */

typedef struct Search {
    Arena *arena; /* of the caller, who wants what is found */
    Candidate *candidates;
    size_t count, capacity;
    struct Place {
        const char *path, *below;
    } *pending;
    size_t pending_count, pending_capacity;
    struct Seen {
        dev_t device;
        ino_t inode;
    } *seen; /* directories, so that links can neither loop nor show an SAE twice */
    size_t seen_count, seen_capacity;
} Search;

static void search_push(Search *s, const char *path, const char *below) {
    struct stat info;
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode)) {
        return;
    }
    for (size_t i = 0; i < s->seen_count; i++) {
        if (s->seen[i].device == info.st_dev && s->seen[i].inode == info.st_ino) {
            return;
        }
    }
    s->seen = arena_grow(s->arena, s->seen, &s->seen_capacity, s->seen_count + 1, sizeof *s->seen);
    s->pending = arena_grow(s->arena, s->pending, &s->pending_capacity, s->pending_count + 1,
                            sizeof *s->pending);
    s->seen[s->seen_count++] = (struct Seen){info.st_dev, info.st_ino};
    s->pending[s->pending_count++] = (struct Place){path, below};
}

static void search_directory(Search *s, struct Place at, const SaeOptions *options) {
    size_t count;
    char **names = path_list(s->arena, at.path, &count);
    for (size_t i = 0; i < count; i++) {
        char *path = path_join(s->arena, at.path, names[i]);
        char *below = at.below[0] != 0 ? arena_format(s->arena, "%s/%s", at.below, names[i])
                                       : arena_copy(s->arena, names[i], strlen(names[i]));
        for (size_t f = 0; f < SAE_FORMATS; f++) {
            if (strcmp(names[i], sae_formats[f].weights) != 0 || path_is_directory(path) ||
                (options != NULL && options->pick != NULL &&
                 !glob_match(options->pick, at.below))) {
                continue;
            }
            s->candidates = arena_grow(s->arena, s->candidates, &s->capacity, s->count + 1,
                                       sizeof *s->candidates);
            candidate_start(&s->candidates[s->count], s->arena, at.path, sae_formats[f].weights,
                            sae_formats[f].cfg, sae_formats[f].source, at.below, options);
            s->count++;
        }
        search_push(s, path, below);
    }
}

static Search search_run(Arena *arena, const char *directory, const SaeOptions *options) {
    Search s = {.arena = arena};
    if (!path_is_directory(directory)) {
        fail(STATUS_INPUT, "%s: not a directory", directory);
    }
    search_push(&s, directory, "");
    while (s.pending_count > 0) {
        search_directory(&s, s.pending[--s.pending_count], options);
    }
    if (s.count == 0) {
        fail(STATUS_INPUT,
             "%s: no SAE below it%s (params.npz, sae_weights.safetensors, sae.safetensors or "
             "ae.pt)",
             directory, options != NULL && options->pick != NULL ? " that --pick matches" : "");
    }
    return s;
}

/* Gemma-2-2B, residual stream, 16k: the SAEs that GemmaScope calls canonical, layers 0 to 25. */
static const short canonical_l0[26] = {105, 102, 141, 59, 124, 68, 70, 69, 71, 73, 77, 80, 82,
                                       84,  84,  78,  78, 77,  74, 73, 71, 70, 72, 75, 73, 116};

static bool is_canonical(const Sae *sae) {
    return sae->source == SAE_GEMMASCOPE && sae->hook == HOOK_RESID_POST && sae->width_16k &&
           sae->layer >= 0 && sae->layer < 26 &&
           sae->average_l0 == (double)canonical_l0[sae->layer];
}

static bool same_hook(const Sae *a, const Sae *b) {
    return a->hook == b->hook && a->layer == b->layer;
}

static bool is_of_stream(const Sae *sae) {
    return sae->hook == HOOK_RESID_PRE || sae->hook == HOOK_RESID_MID ||
           sae->hook == HOOK_RESID_POST || sae->hook == HOOK_EMBED;
}

static bool is_wanted(const Sae *sae, HookKind kind, bool stream, const bool *layers,
                      size_t n_layers) {
    if ((kind != HOOK_KINDS && sae->hook != kind) || (stream && !is_of_stream(sae))) {
        return false;
    }
    return layers == NULL || sae->layer < 0 ||
           ((size_t)sae->layer < n_layers && layers[sae->layer]);
}

/* Whether candidate i is the one for its hook point: alone there, or the canonical one. */
static bool choose(const Search *s, size_t i, const bool *wanted, bool canonical,
                   const char *directory) {
    const Candidate *c = &s->candidates[i], *other = NULL;
    size_t found = 1, canonicals = is_canonical(&c->sae);
    for (size_t j = 0; j < s->count; j++) {
        if (j != i && wanted[j] && same_hook(&s->candidates[j].sae, &c->sae)) {
            other = other == NULL ? &s->candidates[j] : other;
            found++;
            canonicals += is_canonical(&s->candidates[j].sae);
        }
    }
    if (found == 1 || (canonical && canonicals == 1)) {
        return found == 1 || is_canonical(&c->sae);
    }
    char name[HOOK_NAME_MAX];
    hook_name(name, c->sae.hook, c->sae.layer, false, false);
    fail(STATUS_INPUT, "%s: %zu SAEs for %s, among them '%s' and '%s': name one with --pick GLOB%s",
         directory, found, name, c->below, other->below,
         c->sae.source == SAE_GEMMASCOPE && !canonical ? " or take --canonical" : "");
}

static void set_insert(SaeSet *set, const Candidate *c) {
    size_t at = set->count++;
    for (; at > 0; at--) {
        const Sae *before = &set->saes[at - 1];
        if (before->layer < c->sae.layer ||
            (before->layer == c->sae.layer && before->hook < c->sae.hook)) {
            break;
        }
        set->saes[at] = set->saes[at - 1];
    }
    set->saes[at] = c->sae;
}

static void set_fill(SaeSet *set, Search *s, const char *directory, HookKind kind,
                     const bool *layers, size_t n_layers, bool canonical,
                     const SaeOptions *options) {
    bool *wanted = arena_alloc(s->arena, s->count, sizeof *wanted);
    bool *keep = arena_alloc(s->arena, s->count, sizeof *keep);
    set->saes = arena_alloc(s->arena, s->count, sizeof *set->saes);
    for (size_t i = 0; i < s->count; i++) {
        const Candidate *c = &s->candidates[i];
        if (!c->sae.hook_known) {
            fail(STATUS_INPUT, "%s: %s%s%s: give --hook NAME", c->sae.path,
                 c->named != NULL ? "its hook point '" : "no hook point in its settings or path",
                 c->named != NULL ? c->named : "", c->named != NULL ? "' is not known" : "");
        }
        wanted[i] = is_wanted(&c->sae, kind, options->stream, layers, n_layers);
    }
    for (size_t i = 0; i < s->count; i++) {
        keep[i] = wanted[i] && choose(s, i, wanted, canonical, directory);
    }
    for (size_t i = 0; i < s->count; i++) {
        Candidate *c = &s->candidates[i];
        if (!keep[i]) {
            continue;
        }
        load(c, options);
        if (c->sae.norm == SAE_NORM_EXPECTED && !(c->sae.norm_factor > 0)) {
            fail(STATUS_INPUT,
                 "%s: normalize_activations is expected_average_only_in and its factor is not in "
                 "the files: give --norm-factor X",
                 c->cfg_file);
        }
        set_insert(set, c);
    }
    if (set->count == 0) {
        fail(STATUS_INPUT, "%s: none of the %zu SAEs below it is %s", directory, s->count,
             options->stream ? "of the residual stream" : "for a hook point and layer asked for");
    }
}

/* ---- the interface ---- */

static const SaeOptions no_options;

void sae_set_open(SaeSet *set, Arena *arena, const char *directory, HookKind kind,
                  const bool *layers, size_t n_layers, bool canonical, const SaeOptions *options) {
    options = options != NULL ? options : &no_options;
    memset(set, 0, sizeof *set);
    Search search = search_run(arena, directory, options);
    set_fill(set, &search, directory, kind, layers, n_layers, canonical, options);
}

/* Layer 10 after layer 2: runs of digits compare as numbers. */
static int path_order(const void *a, const void *b) {
    const char *x = *(char *const *)a, *y = *(char *const *)b;
    while (*x != 0 && *y != 0) {
        size_t m = strspn(x, "0123456789"), n = strspn(y, "0123456789");
        if (m != n && m > 0 && n > 0) {
            return m < n ? -1 : 1;
        }
        if (*x != *y) {
            break;
        }
        x++, y++;
    }
    return (int)(unsigned char)*x - (int)(unsigned char)*y;
}

char **sae_list(Arena *arena, const char *directory, size_t *count) {
    Search search = search_run(arena, directory, NULL);
    char **paths = arena_alloc(arena, search.count, sizeof *paths);
    for (size_t i = 0; i < search.count; i++) {
        paths[i] =
            arena_copy(arena, search.candidates[i].sae.path, strlen(search.candidates[i].sae.path));
    }
    qsort(paths, search.count, sizeof *paths, path_order);
    *count = search.count;
    return paths;
}

const Sae *sae_set_find(const SaeSet *set, HookKind kind, int layer) {
    for (size_t i = 0; i < set->count; i++) {
        if (set->saes[i].hook == kind && set->saes[i].layer == layer) {
            return &set->saes[i];
        }
    }
    return NULL;
}

/* The only SAE somewhere below a directory. */
static void open_below(Candidate *c, Arena *arena, const char *directory,
                       const SaeOptions *options) {
    Search search = search_run(arena, directory, options);
    if (search.count > 1) {
        fail(STATUS_INPUT, "%s: %zu SAEs below it, among them '%s' and '%s': name one of them",
             directory, search.count, search.candidates[0].below, search.candidates[1].below);
    }
    *c = search.candidates[0];
}

/* The SAE that `path` itself is: its directory, or a file of it. */
static void open_here(Candidate *c, Arena *arena, const char *path, const SaeOptions *options) {
    const char *directory = path, *name = NULL;
    if (!path_is_directory(path)) {
        const char *slash = strrchr(path, '/');
        name = slash != NULL ? slash + 1 : path;
        directory = slash == NULL   ? "."
                    : slash == path ? "/"
                                    : arena_copy(arena, path, (size_t)(slash - path));
        if (!path_exists(path)) {
            fail(STATUS_INPUT, "%s: no such file or directory", path);
        }
    }
    size_t length = name != NULL ? strlen(name) : 0;
    if (length > 4 && strcmp(name + length - 4, ".npz") == 0) {
        candidate_start(c, arena, directory, name, NULL, SAE_GEMMASCOPE, "", options);
        return;
    }
    if (length > 3 && strcmp(name + length - 3, ".pt") == 0) { /* ae.pt, checkpoints/ae_1000.pt */
        const char *last = strrchr(directory, '/');
        bool checkpoint = strcmp(last != NULL ? last + 1 : directory, "checkpoints") == 0;
        candidate_start(c, arena, directory, name, checkpoint ? "../config.json" : "config.json",
                        SAE_DICTIONARY_LEARNING, "", options);
        return;
    }
    for (size_t f = 0; f < SAE_FORMATS; f++) {
        const char *cfg = sae_formats[f].cfg, *weights = sae_formats[f].weights;
        if (name != NULL && strcmp(name, weights) != 0 && (cfg == NULL || strcmp(name, cfg) != 0)) {
            continue;
        }
        const char *file = path_join(arena, directory, weights);
        if (path_exists(file)) {
            candidate_start(c, arena, directory, weights, cfg, sae_formats[f].source, "", options);
            return;
        }
    }
    if (name != NULL) {
        fail(STATUS_INPUT,
             "%s: not an SAE: expected params.npz, cfg.json with sae_weights.safetensors or "
             "sae.safetensors, or ae.pt",
             path);
    }
    open_below(c, arena, path, options);
}

void sae_open(Sae *sae, Arena *arena, const char *path, const SaeOptions *options) {
    options = options != NULL ? options : &no_options;
    Candidate candidate;
    open_here(&candidate, arena, path, options);
    load(&candidate, options);
    *sae = candidate.sae;
}
