/* hooks.h: the one mechanism for reading, replacing and differentiating activations, and the
 * TransformerLens names of the points. Floor 2. */
#ifndef REFSAE_HOOKS_H
#define REFSAE_HOOKS_H

#include "base.h"

/* Order: as the forward pass reaches them. */
typedef enum HookKind {
    HOOK_PIXEL_VALUES, /* vision only */
    HOOK_EMBED,
    HOOK_POS_EMBED,
    HOOK_LN_PRE_SCALE, /* vision only: pre_layrnorm */
    HOOK_LN_PRE_NORMALIZED,
    HOOK_RESID_PRE,
    HOOK_LN1_SCALE,
    HOOK_LN1_NORMALIZED,
    HOOK_Q,
    HOOK_K,
    HOOK_V,
    HOOK_ROT_Q,
    HOOK_ROT_K,
    HOOK_ATTN_SCORES,
    HOOK_PATTERN,
    HOOK_Z,
    HOOK_RESULT,
    HOOK_LN1_POST_SCALE,
    HOOK_LN1_POST_NORMALIZED,
    HOOK_ATTN_OUT,
    HOOK_RESID_MID,
    HOOK_LN2_SCALE,
    HOOK_LN2_NORMALIZED,
    HOOK_PRE,
    HOOK_PRE_LINEAR,
    HOOK_POST,
    HOOK_LN2_POST_SCALE,
    HOOK_LN2_POST_NORMALIZED,
    HOOK_MLP_OUT,
    HOOK_RESID_POST,
    HOOK_LN_FINAL_SCALE,
    HOOK_LN_FINAL_NORMALIZED,
    HOOK_LOGITS,
    HOOK_KINDS
} HookKind;

/* Where the model is. data is float[shape[0], shape[1], ...], row-major. Rows are tokens of all
 * sequences of the batch, one after another; attn_scores and pattern come one sequence at a time
 * ([heads, T, keys], `sequence` says which). */
typedef struct HookPoint {
    HookKind kind;
    int layer; /* -1 where there is none */
    bool vision;
    bool gradient; /* data is d metric / d this point */
    size_t sequence;
    int rank;
    size_t shape[3];
} HookPoint;

typedef struct Hooks {
    /* May read data, and in forward overwrite it: what follows uses what it leaves. In backward it
     * may overwrite the gradient too. A failure ends the pass. */
    void (*call)(void *user, const HookPoint *point, float *data);
    /* Which points are called; costly ones (result) are computed only then. NULL: none. */
    bool (*wants)(void *user, HookKind kind, int layer, bool gradient);
    void *user;
} Hooks;

/* False when hooks is NULL. */
bool hooks_want(const Hooks *hooks, HookKind kind, int layer, bool gradient);
/* Calls the hooks with the point if they want it. */
void hooks_show(const Hooks *hooks, HookPoint point, float *data);
/* The same, of a point of rank 3; whether they left other values there. */
bool hooks_change(const Hooks *hooks, HookPoint point, float *data);

enum {
    HOOK_NAME_MAX = 96
};
/* Into name, which it returns: "blocks.3.attn.hook_z", "vision.blocks.0.hook_resid_pre", "logits";
 * gradients end in ".grad"; of a layer below 0 "blocks.*.attn.hook_z". */
char *hook_name(char name[HOOK_NAME_MAX], HookKind kind, int layer, bool vision, bool gradient);
/* Of the language model; it lives as long as the block of code in which it stands. */
#define HOOK_NAME(kind, layer) hook_name((char[HOOK_NAME_MAX]){0}, kind, layer, false, false)
/* Finds the point of a name (without .grad); false: no such name. */
bool hook_parse(const char *name, HookKind *kind, int *layer, bool *vision);
/* Ascending as a pass reaches them: the vision tower, the language model, block by block; behind
 * them gradients, the other way round. Of kind, layer, vision and gradient. */
int64_t hook_place(const HookPoint *point);
enum {
    HOOK_INPUTS_MAX = 8
};
/* Sizes by a letter: T rows, d d_model, h heads, g key-value heads, k d_head, m d_mlp, v
 * vocabulary, c channels and s side of the image, 1 one. */
typedef struct HookModel {
    bool vision, absent[HOOK_KINDS];
    size_t n_layers, size['v' + 1];
} HookModel;

/* Every point of a model with its shape, in the order of the pass. Returns their number. */
size_t hook_points(Arena *arena, const HookModel *model, HookPoint **list);

/* The points from which one is computed directly, in the order of the pass; of a gradient the
 * gradients of what it feeds. n_layers: language model, tower (0: none). Returns their number. */
size_t hook_inputs(const HookPoint *of, const int n_layers[2], HookPoint inputs[HOOK_INPUTS_MAX]);
/* Not every model has it, or it is seldom dumped: its own inputs may then stand for it. */
bool hook_optional(HookKind kind);
/* Shell-like: * any run of characters (dots too), ? one, [abc] a set, {a,b} alternatives. */
bool glob_match(const char *pattern, const char *name);
/* Those of a list, separated by commas outside of braces and sets; NULL behind the last. */
const char **glob_list(Arena *arena, const char *globs);

#endif
