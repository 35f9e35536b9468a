/* sae_load.h: SAEs of GemmaScope, SAELens, sparsify and dictionary_learning from their files, and
 * the search for them below a directory. Floor 8. */
#ifndef REFSAE_SAE_LOAD_H
#define REFSAE_SAE_LOAD_H

#include "sae.h"

typedef struct SaeOptions { /* what files leave open; from the command line */
    const char *hook;       /* --hook NAME; NULL: not given */
    double norm_factor;     /* --norm-factor; 0: not given */
    SaeCentre centre;       /* --centre */
    bool unit_decoder;      /* --unit-decoder */
    const char *dict_class; /* --dict-class, where dictionary_learning's config.json is missing */
    /* Of the SAEs below a directory those whose path below it matches (--pick GLOB), and those that
     * SAGE takes: of the residual stream (and hook_embed), q, k, v, z and blocks' outputs. */
    const char *pick;
    bool sage;
} SaeOptions;

/* One SAE: a params.npz, a directory in one of the formats, a file inside such a directory, or a
 * directory with exactly one SAE somewhere below it. options NULL: none given. An option settles
 * only what the file leaves open, and is refused where that is nothing (but --norm-factor); --hook
 * may say blocks.L.hook_... where the path gives the layer, and must agree with what is given. */
void sae_open(Sae *sae, Arena *arena, const char *path, const SaeOptions *options);

/* The SAEs below a directory (any format, any depth), by hook point. */
typedef struct SaeSet {
    Sae *saes;
    size_t count;
} SaeSet;

/* Opens those whose hook is `kind` (HOOK_KINDS: any) and whose layer is in layers (bool[n_layers];
 * NULL: all). Two for one hook point: STATUS_INPUT naming both, unless canonical picks one. */
void sae_set_open(SaeSet *set, Arena *arena, const char *directory, HookKind kind,
                  const bool *layers, size_t n_layers, bool canonical, const SaeOptions *options);
/* Where the SAEs below a directory are, in any format and whether or not they can be opened. */
const char **sae_list(Arena *arena, const char *directory, size_t *count);
const Sae *sae_set_find(const SaeSet *set, HookKind kind, int layer); /* NULL: none */

/* The library that a format is of, as shown to the user. */
const char *sae_source_name(SaeSource source);

#endif
