/* sae_load.c: SAE files: which format, which hook point, which conventions; and the search for SAEs
 * below a directory. The arithmetic is in sae.c.
 *
 *   found together                     source               conventions from
 *   params.npz                         GemmaScope           the path (site, layer, average_l0)
 *   cfg.json, sae_weights.safetensors  SAELens              cfg.json; 6.0 moved names to `metadata`
 *   cfg.json, sae.safetensors          EleutherAI sparsify  cfg.json; hook from the folder
 *   config.json, ae.pt                 dictionary_learning  config.json, else tensors and path
 *
 * First identify (settings and path only), then load (weights, refusals): a search can pass over
 * what is not wanted without opening it. */
#include "sae_load.h"
#include "checkpoint.h"
#include "elementary.h"
#include "json.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *sae_source_name(SaeSource source) {
    static const char *const names[] = {"GemmaScope", "SAELens", "SAELens before 6",
                                        "EleutherAI sparsify", "dictionary_learning"};
    return names[source];
}

/* An SAE where it was found: identified, its weights not yet opened. */
typedef struct SaeFound {
    Sae sae;
    const struct SaeFormat *format;
    const Json *cfg;      /* NULL: there is none */
    const char *cfg_file; /* names it in messages; where there is none, the weights */
    const char *weights_file;
    const char *below; /* path below the directory of the search */
    /* Its hook point: its name in the settings or a folder (NULL: none), or site and layer. */
    const char *named, *folder;
    int site;       /* a HookKind, or one of these two */
    int layer;      /* -1: not said */
    unsigned asked; /* options that its files leave something to */
} SaeFound;
enum {
    SITE_TRANSCODER = HOOK_KINDS,
    SITE_OPEN
};
enum {
    ASKED_HOOK = 1,
    ASKED_CENTRE = 2,
    ASKED_UNIT = 4,
    ASKED_CLASS = 8,
    ASKED_CANONICAL = 16,
    ASKED_PICK = 32
};

/* ---- the hook point: sites and layers in names of folders and modules ---- */

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), n = strlen(end);
    return length > n && strcmp(text + length - n, end) == 0;
}

static bool begins_word(const char *text, const char *at) {
    return at == text || strchr("-_. ", at[-1]) != NULL;
}

/* Which layer a component of a path or of a module's name says: layer_12, layers.12, h.12, and in
 * dictionary_learning's sets layer8; *after: what follows. -1: none. */
static int layer_in(SaeSource source, const char *text, const char **after) {
    static const char *const forms[] = {"layer%*1[_.-]%9[0-9]%n", "layers%*1[_.-]%9[0-9]%n",
                                        "h.%9[0-9]%n", "layer%9[0-9]%n"};
    const size_t known = source == SAE_DICTIONARY_LEARNING ? 4 : 3;
    char digits[10];
    int length;
    for (size_t f = 0; f < known; f++) {
        for (const char *at = text; *at != 0; at++) {
            if (begins_word(text, at) && sscanf(at, forms[f], digits, &length) == 1 &&
                atoi(digits) <= 100000) {
                *after = at + length;
                return atoi(digits);
            }
        }
    }
    return -1;
}

/* What begins a word; the last word, or behind scope any (gemma-scope-res-canonical). */
#define BEGINS(words) "{,*[-_. ]}{" words "}*"
#define WORD(words) "{{,*[-_. ]}{" words "},*scope*[-_. ]{" words "}[-_. ]*}"

/* The site that a component of the path or a module's name says, as the format's users write it;
 * after: what follows its layer, as in layers.12.mlp (NULL: it has none). */
static int site_in(SaeSource source, const char *name, const char *after) {
    static const struct {
        SaeSource source;
        const char *name, *after; /* NULL: not asked */
        int site;
    } sites[] = {{SAE_GEMMASCOPE, WORD("transcoder,transcoders"), NULL, SITE_TRANSCODER},
                 {SAE_GEMMASCOPE, WORD("embedding"), NULL, HOOK_EMBED},
                 {SAE_GEMMASCOPE, WORD("res,resid"), NULL, HOOK_RESID_POST},
                 {SAE_GEMMASCOPE, WORD("mlp"), NULL, HOOK_MLP_OUT},
                 {SAE_GEMMASCOPE, WORD("att,attn"), NULL, HOOK_Z},
                 {SAE_SPARSIFY, "{embed_tokens,embed_in,wte}", NULL, HOOK_EMBED},
                 {SAE_SPARSIFY, NULL, "", HOOK_RESID_POST},
                 {SAE_SPARSIFY, NULL, ".mlp", HOOK_MLP_OUT},
                 {SAE_SPARSIFY, NULL, ".{attention,attn,self_attn}", HOOK_ATTN_OUT},
                 {SAE_DICTIONARY_LEARNING, "embed", NULL, HOOK_EMBED},
                 {SAE_DICTIONARY_LEARNING, BEGINS("resid_post,resid_out"), NULL, HOOK_RESID_POST},
                 {SAE_DICTIONARY_LEARNING, BEGINS("resid_pre"), NULL, HOOK_RESID_PRE},
                 {SAE_DICTIONARY_LEARNING, BEGINS("resid_mid"), NULL, HOOK_RESID_MID},
                 {SAE_DICTIONARY_LEARNING, BEGINS("mlp_out"), NULL, HOOK_MLP_OUT},
                 {SAE_DICTIONARY_LEARNING, BEGINS("attn_out,attention_out"), NULL, HOOK_ATTN_OUT}};
    for (size_t i = 0; i < sizeof sites / sizeof sites[0]; i++) {
        const char *glob = sites[i].name != NULL ? sites[i].name : sites[i].after;
        const char *text = sites[i].name != NULL ? name : after;
        if (sites[i].source == source && text != NULL && glob_match(glob, text)) {
            return sites[i].site;
        }
    }
    return SITE_OPEN;
}

/* What the settings leave open, from the components of the SAE's whole path, the deepest first. */
static void path_read(SaeFound *c) {
    Sae *sae = &c->sae;
    bool site_open = c->site == SITE_OPEN, vision;
    int layer;
    HookKind kind;
    char here[4096] = "";
    sae->average_l0 = (double)NAN;
    if (sae->path[0] != '/' && getcwd(here, sizeof here) == NULL) {
        fail_errno(errno, sae->path, "cannot tell where this is");
    }
    char *path = path_join(sae->arena, here, sae->path);
    for (char *slash = path; slash != NULL;) {
        slash = strrchr(path, '/');
        const char *name = slash != NULL ? slash + 1 : path, *after = NULL;
        if (site_open && c->folder == NULL && hook_parse(name, &kind, &layer, &vision) && !vision) {
            c->folder = name;
        }
        int in = layer_in(sae->source, name, &after);
        bool first = c->layer < 0 && in >= 0;
        c->layer = first ? in : c->layer;
        if (c->site == SITE_OPEN) {
            c->site = site_in(sae->source, name, first ? after : NULL);
        }
        sae->width_16k |= strcmp(name, "width_16k") == 0;
        if (isnan(sae->average_l0) && strncmp(name, "average_l0_", 11) == 0 && name[11] >= '0' &&
            name[11] <= '9') {
            sae->average_l0 = strtod(name + 11, NULL);
        }
        if (slash != NULL) {
            *slash = 0;
        }
    }
}

/* Sets sae->hook and layer from a name (NULL: none); blocks.L. stands for path_layer. */
static bool hook_set(Sae *sae, const char *name, int path_layer) {
    bool vision;
    if (name != NULL && strncmp(name, "blocks.L.", 9) == 0 && path_layer >= 0) {
        name = arena_format(sae->arena, "blocks.%d.%s", path_layer, name + 9);
    }
    sae->hook_known = name != NULL && hook_parse(name, &sae->hook, &sae->layer, &vision) && !vision;
    return sae->hook_known;
}

/* What the settings say, else the path, else --hook, which must agree with any part they say. */
static void hook_find(SaeFound *c, const SaeOptions *options) {
    Sae *sae = &c->sae;
    path_read(c);
    if (hook_set(sae, c->named, -1)) {
        return;
    }
    if (c->site == SITE_TRANSCODER) {
        fail(STATUS_INPUT, "%s: transcoders are not supported", sae->path);
    }
    if (c->named == NULL && hook_set(sae, c->folder, -1)) {
        return;
    }
    bool open = c->site == SITE_OPEN && (sae->source == SAE_SPARSIFY || options->hook != NULL);
    if (c->named == NULL && (c->site == HOOK_EMBED || (c->layer >= 0 && !open))) {
        sae->hook = c->site == SITE_OPEN ? HOOK_RESID_POST : (HookKind)c->site;
        sae->layer = c->site == HOOK_EMBED ? -1 : c->layer;
        sae->hook_known = true;
        return;
    }
    c->asked |= ASKED_HOOK;
    if (options->hook != NULL && !hook_set(sae, options->hook, c->layer)) {
        fail(STATUS_INPUT, "--hook: '%s' is not the name of a hook point", options->hook);
    }
    char given[HOOK_NAME_MAX], said[HOOK_NAME_MAX];
    int site = c->named == NULL && c->site < HOOK_KINDS ? c->site : (int)sae->hook;
    hook_name(given, sae->hook, sae->layer, false, false);
    hook_name(said, (HookKind)site, c->layer >= 0 ? c->layer : sae->layer, false, false);
    if (sae->hook_known && strcmp(given, said) != 0) {
        fail(STATUS_INPUT, "%s: --hook %s: by its path or settings it would be %s", sae->path,
             given, said);
    }
}

/* ---- tensors ---- */

/* What a format calls an architecture, and its tensors. W_enc and W_dec lie as [d_sae, d_in] where
 * features are rows, else as [d_in, d_sae]. */
typedef struct SaeLayout {
    const char *name;
    SaeAct act;
    bool subtract_b_dec, enc_rows, dec_rows;
    const char *w_enc, *w_dec, *b_enc, *b_dec, *b_gate, *b_mag;
} SaeLayout;

static bool has(const Sae *sae, const char *name) {
    return tensors_find(&sae->store, name) != NULL;
}

static Weight of_floats(const float *values) {
    return (Weight){.data = values, .dtype = DTYPE_F32};
}

/* A vector[count], widened; finite unless `infinite` (a threshold that switches a feature off). */
static Weight vector_load(const Sae *sae, const char *name, size_t count, bool infinite) {
    const Tensor *tensor = tensors_need(&sae->store, name, 1, &count);
    float *values = arena_floats(sae->arena, count, 1);
    weight_widen(values, (Weight){.data = tensor->data, .dtype = tensor->dtype}, 0, count);
    for (size_t i = 0; i < count; i++) {
        if (isnan(values[i]) || (!infinite && isinf(values[i]))) {
            fail(STATUS_INPUT, "%s: tensor '%s': value %zu is not finite", tensor->file, name, i);
        }
    }
    return of_floats(values);
}

static Weight matrix_load(const Sae *sae, const char *name, bool rows, ptrdiff_t *feature,
                          ptrdiff_t *input) {
    size_t shape[2] = {rows ? sae->d_sae : sae->d_in, rows ? sae->d_in : sae->d_sae};
    const Tensor *tensor = tensors_need(&sae->store, name, 2, shape);
    *feature = rows ? (ptrdiff_t)sae->d_in : 1;
    *input = rows ? 1 : (ptrdiff_t)sae->d_sae;
    return (Weight){.data = tensor->data, .dtype = tensor->dtype};
}

static void sizes_check(const Sae *sae) {
    if (sae->d_in == 0 || sae->d_sae == 0 || sae->d_sae > UINT32_MAX) {
        fail(STATUS_INPUT, "%s: d_in is %zu and d_sae %zu",
             sae->store.settings != NULL ? sae->store.settings : sae->store.path, sae->d_in,
             sae->d_sae);
    }
}

/* Sizes that are still 0 come from the shape of W_enc. */
static void layout_load(Sae *sae, const SaeLayout *layout) {
    const Tensor *w_enc = tensors_find(&sae->store, layout->w_enc);
    if (w_enc == NULL) {
        fail(STATUS_INPUT, "%s: tensor '%s' is missing", sae->store.path, layout->w_enc);
    }
    if (w_enc->rank != 2) {
        fail(STATUS_INPUT, "%s: tensor '%s': expected %s, found rank %d", w_enc->file, w_enc->name,
             layout->enc_rows ? "[d_sae, d_in]" : "[d_in, d_sae]", w_enc->rank);
    }
    sae->act = layout->act;
    sae->architecture = layout->name;
    sae->subtract_b_dec = layout->subtract_b_dec;
    sae->d_in = sae->d_in != 0 ? sae->d_in : w_enc->shape[layout->enc_rows ? 1 : 0];
    sae->d_sae = sae->d_sae != 0 ? sae->d_sae : w_enc->shape[layout->enc_rows ? 0 : 1];
    sizes_check(sae);
    sae->w_enc =
        matrix_load(sae, layout->w_enc, layout->enc_rows, &sae->enc_feature, &sae->enc_input);
    sae->w_dec =
        matrix_load(sae, layout->w_dec, layout->dec_rows, &sae->dec_feature, &sae->dec_input);
    sae->b_dec = vector_load(sae, layout->b_dec, sae->d_in, false);
    if (sae->act == SAE_GATED) {
        sae->b_gate = vector_load(sae, layout->b_gate, sae->d_sae, false);
        sae->b_mag = vector_load(sae, layout->b_mag, sae->d_sae, false);
        Weight r_mag = vector_load(sae, "r_mag", sae->d_sae, false);
        float *gain = arena_floats(sae->arena, sae->d_sae, 1);
        for (size_t j = 0; j < sae->d_sae; j++) {
            gain[j] = exp_f32(weight_at(r_mag, j));
        }
        sae->mag_gain = gain;
    } else {
        sae->b_enc = vector_load(sae, layout->b_enc, sae->d_sae, false);
    }
}

/* |W_dec row| of each feature, summed in binary64. */
static double *decoder_lengths(const Sae *sae) {
    bool rows = sae->dec_input == 1;
    size_t outer = rows ? sae->d_sae : sae->d_in, inner = rows ? sae->d_in : sae->d_sae;
    double *length = arena_alloc(sae->arena, sae->d_sae, sizeof *length);
    for (size_t o = 0; o < outer; o++) {
        for (size_t i = 0; i < inner; i++) {
            double w = (double)weight_at(sae->w_dec, o * inner + i);
            length[rows ? o : i] += w * w;
        }
    }
    for (size_t j = 0; j < sae->d_sae; j++) {
        length[j] = sqrt(length[j]);
    }
    return length;
}

/* ---- GemmaScope ---- */

static void scaled_copy(Sae *sae, Weight *weight, float divisor, float factor) {
    size_t count = sae->d_in * sae->d_sae; /* both shapes were checked against the file */
    float *values = arena_floats(sae->arena, count, 1);
    weight_widen(values, *weight, 0, count);
    for (size_t i = 0; i < count; i++) {
        values[i] = values[i] / divisor * factor;
    }
    *weight = of_floats(values);
}

static void gemmascope_load(SaeFound *c, const SaeOptions *options) {
    static const SaeLayout layouts[] = {
        {"jumprelu", SAE_JUMPRELU, false, false, true, "W_enc", "W_dec", "b_enc", "b_dec", "", ""},
        {"jumprelu", SAE_JUMPRELU, false, false, true, "w_enc", "w_dec", "b_enc", "b_dec", "", ""}};
    Sae *sae = &c->sae;
    (void)options;
    sae->prepend_bos = true;
    layout_load(sae, &layouts[!has(sae, "W_enc") && has(sae, "w_enc")]);
    if (sae->hook_known && sae->hook == HOOK_EMBED) {
        /* Trained on embeddings before hook_embed's factor sqrt(d); SAELens corrects both, too. */
        float root = (float)sqrt((double)sae->d_in);
        scaled_copy(sae, &sae->w_enc, root, 1);
        scaled_copy(sae, &sae->w_dec, 1, root);
    }
}

/* ---- settings of SAELens and sparsify ---- */

static const Json *settings_read(Arena *arena, const char *path) {
    const Json *settings = json_read_file(arena, path);
    if (!json_is(settings, JSON_OBJECT)) {
        fail(STATUS_INPUT, "%s: expected a JSON object", path);
    }
    return settings;
}

/* null is as absent. */
static size_t size_setting(const Json *object, const char *key, size_t absent) {
    return json_set(object, key) == NULL ? absent : json_size(object, key, 0, 0, INT32_MAX);
}

static size_t size_needed(const Json *object, const char *key) {
    (void)json_need(object, key, JSON_NUMBER);
    return json_size(object, key, 0, 1, INT32_MAX);
}

static SaeCentre stated(const Json *object, const char *key) {
    bool yes = json_bool(object, key, false), no = !json_bool(object, key, true);
    return yes ? SAE_CENTRE_YES : no ? SAE_CENTRE_NO : SAE_CENTRE_UNKNOWN;
}

/* SAELens takes the later of two names of a setting: files in which they differ mean nothing. */
static const char *renamed_text(const SaeFound *c, const char *key, const char *older) {
    const char *text = json_text(c->cfg, key, NULL), *other = json_text(c->cfg, older, text);
    if (text != NULL && strcmp(text, other) != 0) {
        fail(STATUS_INPUT, "%s: '%s' is '%s', but '%s' is '%s'", c->cfg_file, key, text, older,
             other);
    }
    return other;
}

/* Since 6.0 what concerns the model is in `metadata`; before, it is beside all else, hook_point is
 * hook_name's older name, and an absent prepend_bos is true (null is false). */
static void saelens_identify(SaeFound *c) {
    Sae *sae = &c->sae;
    const Json *cfg = c->cfg, *meta = json_get(cfg, "metadata");
    const char *version = json_text(cfg, "sae_lens_version", NULL);
    version = version != NULL ? version : json_text(meta, "sae_lens_version", NULL);
    if (version == NULL || strtol(version, NULL, 10) < 6) {
        sae->source = SAE_SAELENS_OLD;
    }
    bool old = sae->source == SAE_SAELENS_OLD;
    const char *inside = json_text(meta, "hook_name", NULL);
    const char *beside = renamed_text(c, "hook_name", "hook_point");
    c->named = beside == NULL || (!old && inside != NULL) ? inside : beside;
    sae->model_name = json_text(meta, "model_name", json_text(cfg, "model_name", NULL));
    sae->prepend_bos =
        json_bool(old ? cfg : meta, "prepend_bos", old && json_get(cfg, "prepend_bos") == NULL);
    const Json *model = json_member(meta, "model_from_pretrained_kwargs", JSON_OBJECT);
    model = model != NULL ? model : json_member(cfg, "model_from_pretrained_kwargs", JSON_OBJECT);
    sae->centre = stated(model, "center_writing_weights");
    sae->fold_value_biases = stated(model, "fold_value_biases");
}

/* Refuses what is no SAE of one whole hook point. */
static void saelens_refuse(const SaeFound *c) {
    static const JsonName reshapes[] = {{"none", 0}, {"hook_z", 1}, {NULL, 0}};
    static const char *const heads[] = {"hook_head_index", "hook_point_head_index"};
    const Json *cfg = c->cfg, *meta = json_get(cfg, "metadata");
    const char *hook = c->named != NULL ? c->named : "";
    if (json_choice(cfg, "reshape_activations", 0, reshapes) == 1 && hook[0] != 0 &&
        !ends_with(hook, "_z")) {
        fail(STATUS_INPUT, "%s: 'reshape_activations' is 'hook_z', but the hook point is '%s'",
             c->cfg_file, hook);
    }
    for (int i = 0; i < 4; i++) {
        if (json_set(i < 2 ? cfg : meta, heads[i % 2]) != NULL) {
            fail(STATUS_INPUT, "%s: '%s' is set: an SAE of a single head is not supported",
                 c->cfg_file, heads[i % 2]);
        }
    }
    const char *out = json_text(meta, "hook_name_out", json_text(cfg, "hook_name_out", ""));
    if (out[0] != 0 && strcmp(out, hook) != 0) {
        fail(STATUS_INPUT, "%s: 'hook_name_out' is '%s': transcoders are not supported",
             c->cfg_file, out);
    }
}

/* Its architecture, and what of it the settings say. */
static SaeLayout saelens_layout(SaeFound *c) {
    static const JsonName acts[] = {{"standard", SAE_RELU},
                                    {"jumprelu", SAE_JUMPRELU},
                                    {"gated", SAE_GATED},
                                    {"topk", SAE_TOPK},
                                    {NULL, 0}};
    static const JsonName functions[] = {{"relu", SAE_RELU}, {"topk", SAE_TOPK}, {NULL, 0}};
    SaeLayout layout = {.dec_rows = true,
                        .w_enc = "W_enc",
                        .w_dec = "W_dec",
                        .b_enc = "b_enc",
                        .b_dec = "b_dec",
                        .b_gate = "b_gate",
                        .b_mag = "b_mag"};
    Sae *sae = &c->sae;
    const Json *cfg = c->cfg, *kwargs = json_get(cfg, "activation_fn_kwargs");
    bool old = sae->source == SAE_SAELENS_OLD;
    layout.name = old ? json_text(cfg, "architecture", "standard")
                      : json_need(cfg, "architecture", JSON_STRING)->text;
    if (strstr(layout.name, "batchtopk") != NULL) {
        fail(STATUS_INPUT,
             "%s: architecture '%s' is a training checkpoint: load the SAE that SAELens saves "
             "for inference, as jumprelu",
             c->cfg_file, layout.name);
    }
    sae->k = size_setting(cfg, "k", 100); /* SAELens' default */
    int function = json_choice(cfg, "activation_fn", SAE_RELU, functions);
    function = json_choice(cfg, "activation_fn_str", function, functions);
    if (old && renamed_text(c, "activation_fn", "activation_fn_str") != NULL &&
        function == SAE_TOPK) {
        layout.act = SAE_TOPK;
        layout.name = "topk";
        kwargs = json_need(cfg, "activation_fn_kwargs", JSON_OBJECT);
    } else {
        layout.act = (SaeAct)json_choice(cfg, "architecture", SAE_RELU, acts);
    }
    if (layout.act == SAE_TOPK) {
        sae->k = old && kwargs != NULL ? size_needed(kwargs, "k") : sae->k;
        sae->rescale_by_decoder_norm = json_bool(cfg, "rescale_acts_by_decoder_norm", false);
    }
    return layout;
}

/* normalize_activations; files of 2024-04 had a flag. */
static SaeNorm saelens_norm(const Json *cfg, bool old) {
    static const JsonName norms[] = {{"none", SAE_NORM_NONE},
                                     {"expected_average_only_in", SAE_NORM_EXPECTED},
                                     {"constant_norm_rescale", SAE_NORM_CONSTANT},
                                     {"layer_norm", SAE_NORM_LAYER},
                                     {NULL, 0}};
    const char *key = "normalize_activations";
    if (old && json_is(json_get(cfg, key), JSON_TRUE)) {
        return SAE_NORM_EXPECTED;
    }
    bool none = old && json_is(json_get(cfg, key), JSON_FALSE);
    return none ? SAE_NORM_NONE : (SaeNorm)json_choice(cfg, key, SAE_NORM_NONE, norms);
}

/* An old file's factor of finetuning: ignored when it is one everywhere, as SAELens does. */
static void saelens_scaling(SaeFound *c) {
    Sae *sae = &c->sae;
    if (!has(sae, "scaling_factor")) {
        return;
    }
    Weight factor = vector_load(sae, "scaling_factor", sae->d_sae, true);
    for (size_t j = 0; j < sae->d_sae; j++) {
        if (!(fabsf(weight_at(factor, j) - 1) <= 1e-8f + 1e-5f)) {
            fail(STATUS_INPUT,
                 "%s: tensor 'scaling_factor' is not 1 everywhere: finetuning_scaling_factor is "
                 "not supported",
                 c->weights_file);
        }
    }
}

/* A training checkpoint has the factor of expected_average_only_in beside it, not yet folded in. */
static float saelens_norm_factor(const SaeFound *c, const SaeOptions *options) {
    const Sae *sae = &c->sae;
    char *path = path_join(sae->arena, sae->path, "activation_scaler.json");
    const Json *scaler = path_exists(path) ? settings_read(sae->arena, path) : NULL;
    float given = (float)options->norm_factor, stored = 0;
    if (json_set(scaler, "scaling_factor") != NULL) {
        stored = (float)json_number(scaler, "scaling_factor", 0, FLT_MIN, FLT_MAX);
    }
    if (stored > 0 && given > 0 && stored != given) {
        fail(STATUS_INPUT, "%s: 'scaling_factor' is %.9g, but --norm-factor is %.9g", path,
             (double)stored, (double)given);
    }
    return stored > 0 ? stored : given;
}

/* |W_dec row|, for topk that chooses by it. Where inputs are scaled by one factor SAELens folds it
 * in (W_dec / factor) before it runs the SAE, so that f, too, is on the scale of activations. */
static void decoder_norms(Sae *sae) {
    double scale = sae->norm == SAE_NORM_EXPECTED ? (double)sae->norm_factor : 1;
    double *length = decoder_lengths(sae);
    float *norm = arena_floats(sae->arena, sae->d_sae, 1);
    for (size_t j = 0; j < sae->d_sae; j++) {
        norm[j] = (float)(length[j] / scale);
    }
    sae->dec_norm = norm;
}

/* As SAELens does: with a tensor that its architecture lacks, cfg.json is another SAE's. */
static void saelens_tensors_check(const SaeFound *c) {
    enum {
        GATED = 1 << SAE_GATED,
        UNGATED = GATED - 1,
        ALL = GATED | UNGATED
    };
    static const JsonName known[] = {
        /* and a bit for each SaeAct that has it */
        {"W_enc", ALL},          {"W_dec", ALL},     {"b_dec", ALL},
        {"scaling_factor", ALL}, {"b_enc", UNGATED}, {"b_gate", GATED},
        {"b_mag", GATED},        {"r_mag", GATED},   {"threshold", 1 << SAE_JUMPRELU}};
    for (size_t i = 0; i < c->sae.store.count; i++) {
        const char *name = c->sae.store.tensors[i].name;
        bool fits = false;
        for (size_t k = 0; k < sizeof known / sizeof known[0]; k++) {
            fits |= strcmp(name, known[k].name) == 0 && (known[k].value >> c->sae.act & 1) != 0;
        }
        if (!fits) {
            fail(STATUS_INPUT, "%s: tensor '%s': the architecture in %s, '%s', has none",
                 c->weights_file, name, c->cfg_file, c->sae.architecture);
        }
    }
}

static void saelens_load(SaeFound *c, const SaeOptions *options) {
    Sae *sae = &c->sae;
    SaeLayout layout = saelens_layout(c);
    saelens_refuse(c);
    sae->norm = saelens_norm(c->cfg, sae->source == SAE_SAELENS_OLD);
    sae->norm_factor = sae->norm == SAE_NORM_EXPECTED ? saelens_norm_factor(c, options) : 0;
    layout.subtract_b_dec = json_bool(c->cfg, "apply_b_dec_to_input", true);
    sae->d_in = size_needed(c->cfg, "d_in");
    sae->d_sae = size_needed(c->cfg, "d_sae");
    layout_load(sae, &layout);
    saelens_tensors_check(c);
    saelens_scaling(c);
}

static void sparsify_load(SaeFound *c, const SaeOptions *options) {
    static const SaeLayout layout = {.name = "topk",
                                     .act = SAE_TOPK,
                                     .subtract_b_dec = true,
                                     .enc_rows = true,
                                     .dec_rows = true,
                                     .w_enc = "encoder.weight",
                                     .w_dec = "W_dec",
                                     .b_enc = "encoder.bias",
                                     .b_dec = "b_dec"};
    static const JsonName activations[] = {{"topk", SAE_TOPK}, {NULL, 0}};
    static const char *const refused[] = {"signed", "skip_connection", "transcode"};
    Sae *sae = &c->sae;
    const Json *cfg = c->cfg;
    (void)options;
    json_choice(cfg, "activation", SAE_TOPK, activations);
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        if (json_bool(cfg, refused[i], false)) {
            fail(STATUS_INPUT, "%s: '%s' is set, which is not supported", c->cfg_file, refused[i]);
        }
    }
    if (has(sae, "W_skip")) {
        fail(STATUS_INPUT, "%s: tensor 'W_skip': skip_connection is not supported",
             c->weights_file);
    }
    sae->k = size_setting(cfg, "k", 32);
    sae->d_in = size_needed(cfg, "d_in");
    sae->d_sae = size_setting(cfg, "num_latents", 0);
    if (sae->d_sae == 0) {
        sae->d_sae = size_product(sae->d_in, size_setting(cfg, "expansion_factor", 32));
    }
    sizes_check(sae); /* here they are not the weights' to say */
    layout_load(sae, &layout);
}

/* ---- dictionary_learning ----
 * Easy to get wrong: thresholds are single numbers but JumpRelu's; AutoEncoderTopK has a threshold
 * too and does not use it; biases already are on the scale of activations (norm_factor only says
 * what that was). Sets from before the library wrote config.json have the class in their tensors'
 * names and the hook point in their folders (resid_out_layer3/10_32768/ae.pt). */

/* trainer.layer and submodule_name, a free text. Where there is none, the path says the site, or it
 * is the residual stream after the layer, as the library's own get_submodule has it. */
static void dictionary_identify(SaeFound *c) {
    const Json *trainer = json_get(c->cfg, "trainer");
    HookKind kind;
    int64_t number;
    int inside;
    bool vision;
    c->sae.model_name = json_text(trainer, "lm_name", NULL);
    const char *module = json_text(trainer, "submodule_name", NULL), *after = NULL;
    const char *io = json_text(json_get(c->cfg, "buffer"), "io", "out");
    if (json_int64(json_get(trainer, "layer"), &number) && number >= 0 && number <= 100000) {
        c->layer = (int)number;
    }
    if (strcmp(io, "in_to_out") == 0) {
        fail(STATUS_INPUT, "%s: 'io' is 'in_to_out': transcoders are not supported", c->cfg_file);
    }
    if (strcmp(io, "out") != 0) {
        c->named =
            arena_format(c->sae.arena, "the input of %s", module != NULL ? module : "a module");
    } else if (module != NULL && module[0] != 0) {
        int layer = layer_in(SAE_SPARSIFY, module, &after); /* a separator is asked for */
        c->site = site_in(SAE_DICTIONARY_LEARNING, module, NULL);
        if (c->site == SITE_OPEN && after != NULL) {
            c->site = site_in(SAE_SPARSIFY, module, after);
        }
        if (c->site == SITE_OPEN || hook_parse(module, &kind, &inside, &vision)) {
            c->named = module;
        }
        c->layer = c->layer < 0 && c->site != SITE_OPEN ? layer : c->layer;
    }
}

#define LINEAR true, true, false, "encoder.weight", "decoder.weight", "encoder.bias"

static const SaeLayout dictionary_classes[] = {
    {"AutoEncoder", SAE_RELU, LINEAR, "bias", "", ""},
    {"AutoEncoderTopK", SAE_TOPK, LINEAR, "b_dec", "", ""},
    {"BatchTopKSAE", SAE_BATCHTOPK, LINEAR, "b_dec", "", ""},
    {"GatedAutoEncoder", SAE_GATED, LINEAR, "decoder_bias", "gate_bias", "mag_bias"},
    {"JumpReluAutoEncoder", SAE_JUMPRELU, false, false, true, "W_enc", "W_dec", "b_enc", "b_dec",
     "", ""}};

/* What the settings say, else the tensors' names, else --dict-class. */
static const SaeLayout *dictionary_class(SaeFound *c, const SaeOptions *options) {
    const Sae *sae = &c->sae;
    const char *name = json_text(json_get(c->cfg, "trainer"), "dict_class", NULL);
    if (name == NULL) {
        bool linear = has(sae, "encoder.weight") && has(sae, "decoder.weight");
        name = has(sae, "group_sizes")                      ? "MatryoshkaBatchTopKSAE"
               : has(sae, "decoder.bias")                   ? "AutoEncoderNew"
               : linear && has(sae, "r_mag")                ? "GatedAutoEncoder"
               : linear && has(sae, "bias")                 ? "AutoEncoder"
               : has(sae, "W_enc") && has(sae, "threshold") ? "JumpReluAutoEncoder"
               : linear && has(sae, "b_dec")                ? options->dict_class
                                                            : "";
        c->asked |= name == options->dict_class ? ASKED_CLASS : 0;
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
    for (size_t i = 0; i < sizeof dictionary_classes / sizeof *dictionary_classes; i++) {
        if (strcmp(name, dictionary_classes[i].name) == 0) {
            return &dictionary_classes[i];
        }
    }
    fail(STATUS_INPUT, "%s: dict_class '%s' is not supported", c->cfg_file, name);
}

/* The single number in tensor `name`, which must be there. */
static double scalar_load(const Sae *sae, const char *name) {
    const Tensor *t = tensors_find(&sae->store, name);
    if (t == NULL || t->count != 1) {
        fail(STATUS_INPUT, "%s: tensor '%s': expected a single number, %s", sae->store.path, name,
             t == NULL ? "not found" : "found several");
    }
    if (t->dtype <= DTYPE_F16) {
        return (double)weight_at((Weight){.data = t->data, .dtype = t->dtype}, 0);
    }
    if (t->dtype == DTYPE_I32) {
        int32_t whole;
        memcpy(&whole, t->data, sizeof whole);
        return (double)whole;
    }
    if (t->dtype != DTYPE_I64) {
        fail(STATUS_INPUT, "%s: tensor '%s': expected F32, BF16, F16, I64 or I32, found %s",
             sae->store.path, name, t->type);
    }
    int64_t whole;
    memcpy(&whole, t->data, sizeof whole);
    return (double)whole;
}

/* k from the tensors and from the settings: the library refuses two that differ, and so do we. */
static size_t dictionary_k(const SaeFound *c) {
    const Json *trainer = json_get(c->cfg, "trainer");
    size_t unsaid = (size_t)INT32_MAX + 1, said = size_setting(trainer, "k", unsaid);
    if (has(&c->sae, "k")) {
        double stored = scalar_load(&c->sae, "k");
        if (!(stored >= 1 && stored <= (double)c->sae.d_sae) || floor(stored) < stored) {
            fail(STATUS_INPUT, "%s: tensor 'k': expected a whole number from 1 to %zu, found %.9g",
                 c->weights_file, c->sae.d_sae, stored);
        }
        if (said != unsaid && stored != (double)said) {
            fail(STATUS_INPUT, "%s: tensor 'k' is %.9g, but 'k' is %zu in %s", c->weights_file,
                 stored, said, c->cfg_file);
        }
        return (size_t)stored;
    }
    if (said == unsaid) {
        fail(STATUS_INPUT, "%s: neither a tensor 'k' nor 'k' in a config.json", c->weights_file);
    }
    return said;
}

/* A single threshold, for every feature. */
static Weight threshold_spread(const Sae *sae) {
    double value = scalar_load(sae, "threshold");
    if (isnan(value)) {
        fail(STATUS_INPUT, "%s: tensor 'threshold' is not a number", sae->store.path);
    }
    float *values = arena_floats(sae->arena, sae->d_sae, 1);
    for (size_t j = 0; j < sae->d_sae; j++) {
        values[j] = (float)value;
    }
    return of_floats(values);
}

/* AutoEncoder.normalize_decoder: decoder columns of length 1, encoder rows and b_enc times what
 * they had. As there, nothing changes if all lengths are within allclose's 1e-5 of 1. */
static void unit_decoder(Sae *sae) {
    size_t n = sae->d_sae, d = sae->d_in;
    float *norm = arena_floats(sae->arena, n, 1);
    double *length = decoder_lengths(sae);
    bool unit = true;
    for (size_t j = 0; j < n; j++) {
        norm[j] = (float)length[j];
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
    float *enc = arena_floats(sae->arena, n, d);
    float *dec = arena_floats(sae->arena, n, d);
    float *b_enc = arena_floats(sae->arena, n, 1);
    weight_widen(enc, sae->w_enc, 0, n * d);
    for (size_t j = 0; j < n; j++) {
        for (size_t i = 0; i < d; i++) {
            enc[j * d + i] *= norm[j];
            dec[j * d + i] = weight_at(sae->w_dec, i * n + j) / norm[j];
        }
        b_enc[j] = weight_at(sae->b_enc, j) * norm[j];
    }
    sae->w_enc = of_floats(enc);
    sae->w_dec = of_floats(dec); /* [d_sae, d_in] now */
    sae->dec_feature = (ptrdiff_t)d;
    sae->dec_input = 1;
    sae->b_enc = of_floats(b_enc);
}

static void dictionary_load(SaeFound *c, const SaeOptions *options) {
    Sae *sae = &c->sae;
    layout_load(sae, dictionary_class(c, options));
    c->asked |= sae->act == SAE_RELU ? ASKED_UNIT : 0;
    if (sae->act == SAE_RELU && options->unit_decoder) {
        unit_decoder(sae);
    } else if (sae->act == SAE_TOPK) {
        sae->k = dictionary_k(c);
    } else if (sae->act == SAE_BATCHTOPK) {
        sae->threshold = threshold_spread(sae);
    }
}

/* ---- every format ---- */

typedef struct SaeFormat {
    const char *weights, *cfg;
    const char *any; /* how other files that may be its weights end; NULL: none */
    SaeSource source;
    void (*identify)(SaeFound *c); /* NULL: by the path alone */
    void (*load)(SaeFound *c, const SaeOptions *options);
} SaeFormat;

static const SaeFormat sae_formats[] = {
    {"params.npz", NULL, ".npz", SAE_GEMMASCOPE, NULL, gemmascope_load},
    {"sae_weights.safetensors", "cfg.json", NULL, SAE_SAELENS, saelens_identify, saelens_load},
    {"sae.safetensors", "cfg.json", NULL, SAE_SPARSIFY, NULL, sparsify_load},
    {"ae.pt", "config.json", ".pt", SAE_DICTIONARY_LEARNING, dictionary_identify, dictionary_load},
};
enum {
    SAE_FORMATS = sizeof sae_formats / sizeof sae_formats[0]
};

/* The SAE in `directory`, whose weights are `weights`; options NULL: its place alone. */
static SaeFound found_start(Arena *arena, const SaeFormat *format, const char *directory,
                            const char *weights, const char *cfg, const char *below,
                            const SaeOptions *options) {
    SaeFound c = {.format = format, .below = below, .site = SITE_OPEN, .layer = -1};
    Sae *sae = &c.sae;
    *sae = (Sae){.arena = arena, .source = format->source, .layer = -1};
    sae->path = arena_copy(arena, directory, strlen(directory));
    c.weights_file = c.cfg_file = path_join(arena, directory, weights);
    if (options == NULL) {
        return c;
    }
    /* GemmaScope and dictionary_learning's older sets have no settings. */
    const char *cfg_file = cfg != NULL ? path_join(arena, directory, cfg) : NULL;
    if (cfg != NULL && (sae->source != SAE_DICTIONARY_LEARNING || path_exists(cfg_file))) {
        c.cfg_file = cfg_file;
        c.cfg = settings_read(arena, cfg_file);
    }
    if (format->identify != NULL) {
        format->identify(&c);
    }
    if (sae->centre == SAE_CENTRE_UNKNOWN) {
        c.asked |= ASKED_CENTRE;
        sae->centre = options->centre;
    }
    hook_find(&c, options);
    return c;
}

static void found_load(SaeFound *c, const SaeOptions *options) {
    Sae *sae = &c->sae;
    tensors_open(&sae->store, sae->arena, c->weights_file);
    sae->store.settings = c->cfg != NULL ? c->cfg_file : NULL;
    c->format->load(c, options);
    if (sae->act == SAE_JUMPRELU) {
        sae->threshold = vector_load(sae, "threshold", sae->d_sae, true);
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
    const SaeOptions *options;
    SaeFound *found;
    size_t count, capacity;
    struct Seen {
        dev_t device;
        ino_t inode;
    } *seen; /* directories, so that links can neither loop nor show an SAE twice */
    size_t seen_count, seen_capacity;
} Search;

/* Depth first, in order of names; below: the path from where the search began. */
static void search_directory(Search *s, const char *directory, const char *below) {
    struct stat info;
    if (!path_is_directory(directory)) {
        return;
    }
    if (stat(directory, &info) != 0) {
        fail_errno(errno, directory, "cannot read this directory");
    }
    for (size_t i = 0; i < s->seen_count; i++) {
        if (s->seen[i].device == info.st_dev && s->seen[i].inode == info.st_ino) {
            return;
        }
    }
    s->seen = arena_grow(s->arena, s->seen, &s->seen_capacity, s->seen_count + 1, sizeof *s->seen);
    s->seen[s->seen_count++] = (struct Seen){info.st_dev, info.st_ino};
    const char *pick = s->options != NULL ? s->options->pick : NULL;
    size_t count;
    char **names = path_list(s->arena, directory, &count);
    for (size_t i = 0; i < count; i++) {
        char *path = path_join(s->arena, directory, names[i]);
        for (size_t f = 0; f < SAE_FORMATS; f++) {
            if (strcmp(names[i], sae_formats[f].weights) != 0 || path_is_directory(path) ||
                (pick != NULL && !glob_match(pick, below))) {
                continue;
            }
            s->found = arena_grow(s->arena, s->found, &s->capacity, s->count + 1, sizeof *s->found);
            s->found[s->count++] = found_start(s->arena, &sae_formats[f], directory, names[i],
                                               sae_formats[f].cfg, below, s->options);
        }
        search_directory(s, path, path_join(s->arena, below, names[i]));
    }
}

/* options NULL: where they are, alone. */
static Search search_run(Arena *arena, const char *directory, const SaeOptions *options) {
    Search s = {.arena = arena, .options = options};
    path_need_directory(directory);
    search_directory(&s, directory, "");
    if (s.count == 0) {
        fail(STATUS_INPUT,
             "%s: no SAE below it%s (params.npz, sae_weights.safetensors, sae.safetensors or "
             "ae.pt)",
             directory, options != NULL && options->pick != NULL ? " that --pick matches" : "");
    }
    return s;
}

/* Gemma-2-2B, residual stream, 16k: the SAEs that GemmaScope calls canonical, layers 0 to 25. */
static bool is_canonical(const Sae *sae) {
    static const short l0[26] = {105, 102, 141, 59, 124, 68, 70, 69, 71, 73, 77, 80, 82,
                                 84,  84,  78,  78, 77,  74, 73, 71, 70, 72, 75, 73, 116};
    return sae->source == SAE_GEMMASCOPE && sae->hook == HOOK_RESID_POST && sae->width_16k &&
           sae->layer < 26 && sae->average_l0 == (double)l0[sae->layer];
}

static bool is_wanted(const Sae *sae, HookKind kind, bool sage, const bool *layers,
                      size_t n_layers) {
    static const HookKind taken[] = {HOOK_RESID_PRE, HOOK_RESID_MID, HOOK_RESID_POST, HOOK_EMBED,
                                     HOOK_Q,         HOOK_K,         HOOK_V,          HOOK_Z,
                                     HOOK_ATTN_OUT,  HOOK_MLP_OUT};
    bool good = !sage;
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) {
        good |= sae->hook == taken[i];
    }
    if ((kind != HOOK_KINDS && sae->hook != kind) || !good) {
        return false;
    }
    return layers == NULL || ((size_t)sae->layer < n_layers && layers[sae->layer]);
}

/* By layer, then kind. */
static int hook_order(const void *a, const void *b) {
    const Sae *x = &((const SaeFound *)a)->sae, *y = &((const SaeFound *)b)->sae;
    return x->layer != y->layer ? (x->layer < y->layer ? -1 : 1) : (int)x->hook - (int)y->hook;
}

/* Of `count` for one hook point the only one, or the only canonical one. */
static SaeFound *choose(SaeFound *same, size_t count, bool canonical, const char *directory) {
    SaeFound *chosen = NULL;
    size_t fit = 0;
    for (size_t i = 0; i < count; i++) {
        if (count == 1 || (canonical && is_canonical(&same[i].sae))) {
            chosen = &same[i];
            fit++;
        }
    }
    if (fit == 1) {
        return chosen;
    }
    fail(STATUS_INPUT, "%s: %zu SAEs for %s, among them '%s' and '%s': name one with --pick GLOB%s",
         directory, count, HOOK_NAME(same->sae.hook, same->sae.layer), same[0].below, same[1].below,
         same->sae.source == SAE_GEMMASCOPE && !canonical ? " or take --canonical" : "");
}

/* ---- the interface ---- */

static const SaeOptions no_options;

/* asked: by any of the SAEs opened. */
static void options_check(unsigned asked, const SaeOptions *o, bool canonical, const char *path) {
    const struct {
        unsigned bit;
        const char *name;
        bool given;
    } of[] = {{ASKED_HOOK, "hook", o->hook != NULL},
              {ASKED_CENTRE, "centre", o->centre != SAE_CENTRE_UNKNOWN},
              {ASKED_UNIT, "unit-decoder", o->unit_decoder},
              {ASKED_CLASS, "dict-class", o->dict_class != NULL},
              {ASKED_PICK, "pick", o->pick != NULL},
              {ASKED_CANONICAL, "canonical", canonical}};
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        if (of[i].given && (asked & of[i].bit) == 0) {
            fail(STATUS_INPUT, "%s: --%s has no effect on what is read here", path, of[i].name);
        }
    }
}

void sae_set_open(SaeSet *set, Arena *arena, const char *directory, HookKind kind,
                  const bool *layers, size_t n_layers, bool canonical, const SaeOptions *options) {
    options = options != NULL ? options : &no_options;
    Search s = search_run(arena, directory, options);
    size_t wanted = 0;
    unsigned asked = ASKED_PICK;
    for (size_t i = 0; i < s.count; i++) {
        SaeFound *c = &s.found[i];
        if (!c->sae.hook_known) {
            fail(STATUS_INPUT, "%s: %s%s%s: give --hook NAME", c->sae.path,
                 c->named != NULL ? "its hook point '" : "no hook point in its settings or path",
                 c->named != NULL ? c->named : "", c->named != NULL ? "' is not known" : "");
        }
        if (is_wanted(&c->sae, kind, options->sage, layers, n_layers)) {
            s.found[wanted++] = *c;
        }
    }
    if (wanted == 0) {
        fail(STATUS_INPUT, "%s: none of %zu SAE%s below it is %s", directory, s.count,
             plural(s.count),
             options->sage ? "of the residual stream or a node"
                           : "for a hook point and layer asked for");
    }
    qsort(s.found, wanted, sizeof *s.found, hook_order);
    *set = (SaeSet){.saes = arena_alloc(arena, wanted, sizeof *set->saes)};
    for (size_t i = 0, end; i < wanted; i = end) {
        for (end = i + 1; end < wanted && hook_order(&s.found[i], &s.found[end]) == 0;) {
            end++;
        }
        SaeFound *c = choose(&s.found[i], end - i, canonical, directory);
        found_load(c, options);
        sae_norm_check(&c->sae);
        asked |= c->asked | (is_canonical(&c->sae) ? ASKED_CANONICAL : 0);
        set->saes[set->count++] = c->sae;
    }
    options_check(asked, options, canonical, directory);
}

const char **sae_list(Arena *arena, const char *directory, size_t *count) {
    Search s = search_run(arena, directory, NULL);
    const char **paths = arena_alloc(arena, s.count, sizeof *paths);
    for (size_t i = 0; i < s.count; i++) {
        paths[i] = s.found[i].sae.path;
    }
    qsort(paths, s.count, sizeof *paths, compare_natural);
    *count = s.count;
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

/* The SAE that `path` itself is: its directory, or a file of it; else the only one below. */
static SaeFound find_one(Arena *arena, const char *path, const SaeOptions *options) {
    const char *directory = path, *name = NULL, *slash = strrchr(path, '/');
    if (!path_exists(path)) {
        fail(STATUS_INPUT, "%s: no such file or directory", path);
    }
    if (!path_is_directory(path)) {
        name = slash != NULL ? slash + 1 : path;
        directory = path_parent(arena, path);
    }
    for (size_t f = 0; f < SAE_FORMATS; f++) {
        const SaeFormat *format = &sae_formats[f];
        const char *cfg = format->cfg, *weights = format->weights;
        if (name != NULL && format->any != NULL && ends_with(name, format->any)) {
            weights = name; /* checkpoints/ae_1000.pt: its settings are one folder above */
            bool inside =
                strcmp(directory, "checkpoints") == 0 || ends_with(directory, "/checkpoints");
            cfg = cfg != NULL && inside ? "../config.json" : cfg;
        } else if (name != NULL && strcmp(name, weights) != 0 &&
                   (cfg == NULL || strcmp(name, cfg) != 0)) {
            continue;
        }
        if (path_exists(path_join(arena, directory, weights))) {
            return found_start(arena, format, directory, weights, cfg, "", options);
        }
    }
    if (name != NULL) {
        fail(STATUS_INPUT,
             "%s: not an SAE: expected params.npz, cfg.json with sae_weights.safetensors or "
             "sae.safetensors, or ae.pt",
             path);
    }
    Search s = search_run(arena, directory, options);
    if (s.count > 1) {
        fail(STATUS_INPUT, "%s: %zu SAEs below it, among them '%s' and '%s': name one of them",
             directory, s.count, s.found[0].below, s.found[1].below);
    }
    s.found[0].asked |= ASKED_PICK;
    return s.found[0];
}

void sae_open(Sae *sae, Arena *arena, const char *path, const SaeOptions *options) {
    options = options != NULL ? options : &no_options;
    SaeFound found = find_one(arena, path, options);
    found_load(&found, options);
    options_check(found.asked, options, false, path);
    *sae = found.sae;
}
