/* sae_parts.h: what the loaders of SAEs share: sae_load.c and sae_dictionary.c. */
#ifndef REFSAE_SAE_PARTS_H
#define REFSAE_SAE_PARTS_H

#include "json.h"
#include "sae_load.h"

typedef struct Candidate {
    Sae sae;
    const Json *cfg;      /* NULL: there is none */
    const char *cfg_file; /* names it in messages; where there is none, the weights */
    const char *weights_file;
    const char *below; /* path below the directory of the search */
    /* What the settings say of the hook point: a name, or a site and a layer. */
    const char *named; /* NULL: they name none */
    HookKind site;
    bool site_known;
    int layer; /* -1: not said */
} Candidate;

/* ---- settings ---- */

/* The first of up to three settings that is there and not null; NULL: none. */
const Json *sae_setting(const Json *a, const char *key_a, const Json *b, const char *key_b,
                        const Json *c, const char *key_c);
const char *sae_text(const Json *value, const char *absent, const char *file, const char *key);
/* 0 to 2^31 - 1. */
size_t sae_size(const Json *value, size_t absent, const char *file, const char *key);
REFSAE_NORETURN void sae_refuse(const char *file, const char *key, const char *value);

/* The site and layer in a module's name, as in model.layers.12.mlp. */
bool sae_module_site(const char *text, size_t length, HookKind *kind, int *layer);

/* ---- weights ---- */

/* A vector of `count` values, widened; finite unless `infinite` (a threshold that switches a
 * feature off). */
Weight sae_vector(const Sae *sae, const char *name, size_t count, bool infinite);
Weight sae_matrix(const Sae *sae, const char *name, size_t rows, size_t cols);
/* W_enc [d_in, d_sae] and W_dec [d_sae, d_in], b_dec, and b_enc unless gated. */
void sae_plain(Sae *sae, const char *w_enc, const char *w_dec);
void sae_mag_gain(Sae *sae); /* exp(r_mag) */
void sae_sizes_check(const Sae *sae);
/* Sizes that are still 0, from the shape of matrix `name` ([d_in, d_sae]). */
void sae_sizes_from(Sae *sae, const char *name);

/* ---- sae_dictionary.c ---- */

void sae_dictionary_identify(Candidate *c);
void sae_dictionary_load(Candidate *c, const SaeOptions *options);
/* The site in a name that dictionary_learning's users give modules and folders: resid_post_layer_8,
 * mlp_out_layer1, embed; *layer is set if the name has one. */
bool sae_dictionary_site(const char *text, size_t length, HookKind *kind, int *layer);

#endif
