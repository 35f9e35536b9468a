/* sage_run.h: what sage.c (finding cross-sections), sage_site.c (SAEs at positions) and sage_test.c
 * (dictionaries, projections, tests) share and nobody else sees. Floor 3. */
#ifndef REFSAE_SAGE_RUN_H
#define REFSAE_SAGE_RUN_H

#include "sage.h"

/* Part of an activation at a named position of every prompt, copied out of the pass or (write) into
 * it: values[prompt of the split * width]. head -1: the whole row. */
typedef struct Slice {
    HookKind kind;
    int layer, head;
    size_t position, width;
    bool gradient, write;
    float *values;
} Slice;

typedef struct Sage {
    const Compute *compute;
    const SageOptions *options;
    const Console *console;
    Llm llm;
    Tokenizer *tokenizer;
    SaeSet saes;
    SageTask task;
    SageResult result;
    Arena *arena; /* results and what lives as long */
    Arena *block; /* the run */
    LlmRun *run;
    size_t batch, longest, longest_list;
    int32_t *ids, *tail_ids;
    size_t *start, *last_row, *past, *tail_start;
    float *logits, *dlogits, *listed;
    double *m; /* [batch] */
    int32_t *predicted;
    float **streams; /* [n_layers]: hook_resid_pre of the current batch's clean prompts */
    float *tail_stream;
    const SageForm **forms; /* [batch] */
    LlmBatch whole;         /* the current batch */
    /* the current pass, for the hook: whole, or the rows that a patch can change */
    LlmBatch current;
    Slice *slices;
    size_t n_slices, first_prompt;
} Sage;

/* Takes prompts first .. first + n - 1 of a split as the current batch: as they are (attribute -1),
 * or their counterfactuals in an attribute. */
void sage_batch(Sage *sage, SageSplit split, int attribute, size_t first, size_t n);
/* Runs the batch with slices; then, m not NULL, m[n] of each prompt and, predicted not NULL, its
 * most probable token. m NULL: only as far as the slices reach. */
void sage_forward(Sage *sage, Slice *slices, size_t n_slices, double *m, int32_t *predicted);
/* Runs the batch layer by layer and keeps every layer's stream; m and predicted as above. */
void sage_streams(Sage *sage, double *m, int32_t *predicted);
/* The batch of the last sage_streams with slices written: what no patch reaches, the layers before
 * the first of them and the rows before the first patched one, is taken from there. */
void sage_patch(Sage *sage, Slice *slices, size_t n_slices, double *m, int32_t *predicted);
/* Captures slices over a whole split (attribute as in sage_batch). */
void sage_capture(Sage *sage, SageSplit split, int attribute, Slice *slices, size_t n_slices);

size_t sage_width(const Sage *sage, HookKind kind);
Slice sage_slice(const Sage *sage, const SageNode *node, float *values, bool write);
/* The place among n names of the one that *list, "a,b,c", begins with (n: none of them); *list goes
 * on to the next, NULL behind the last. */
size_t sage_list_next(const char **list, const char *const *names, size_t n);

/* ---- SAEs at positions (sage_site.c) ---- */

/* Sides: the test prompts, and their counterfactuals in the attribute. */
enum {
    CLEAN,
    OTHER
};

/* Of one side: prompt p's active features are entries start[p] .. start[p + 1] - 1. */
typedef struct Codes {
    size_t *start;
    uint32_t *feature; /* place in the site's union */
    float *value;
    double *factor, *shift; /* [prompts]: the SAE's normalisation undone */
} Codes;

typedef struct Site { /* an SAE at a named position */
    const Sae *sae;
    size_t position;
    Codes codes[2];
    size_t n_union, most; /* most: active features of a prompt */
    uint32_t *feature;    /* [n_union] ascending */
    float *rows[2]; /* [n_union, d_in]: decoder rows, and as many random ones of equal norms */
    double *f1;     /* [n_union] */
} Site;

/* Encodes x[test prompts, d_in] of one side and keeps what is active; then, both sides done, the
 * union of features with its rows; then F1 on the clean prompts, added to the interpretations of
 * the result. */
void sage_site_encode(Sage *sage, Site *site, int side, const float *x, Arena *arena);
void sage_site_union(Sage *sage, Site *site, Arena *arena);
void sage_site_interpret(Sage *sage, Site *site);

/* ---- sparse edits (sage_test.c) ---- */

typedef struct Contributions { /* of an SAE at a node, one prompt: a^ = base + sum of c */
    size_t n;
    const uint32_t *feature; /* [n]: places in the site's union, ascending */
    double *c;               /* [n, width] */
    double *base;            /* [width] */
} Contributions;

enum {
    WHOLE,
    ABOVE,
    BELOW
};

typedef struct Edit { /* of a_s towards a_t */
    const Contributions *from, *to;
    size_t width;
    const double *squares; /* [from->n + to->n]: |c|^2 */
    const double *sum;     /* [width]: of from's c */
    double sum_square;     /* |sum|^2 */
    const double *f1;      /* by place in the union */
    double threshold;
    int part; /* may be chosen: WHOLE: all; ABOVE: those of f1 >= threshold; BELOW: the others */
} Edit;

/* Greedy: of the features to take away (with their coefficients in a_s) or to add (with theirs in
 * a_t) the one that brings the edited activation nearest to a_t. gap[width] is edited - a_t and is
 * carried on; used[from->n + to->n]; magnitude grows by c . sum / |sum|^2 of what is taken away.
 * False: none helps. */
bool sage_edit_once(const Edit *e, double *gap, bool *used, double *magnitude);

/* ---- one attribute's cross-section (sage_test.c) ---- */

/* --projection: does it ask for the encoder where a node writes, and not first for the span? */
bool sage_test_options(const SageOptions *options);
/* Refuses a cross-section with a node that no SAE serves. */
void sage_test_check(const Sage *sage, size_t attribute);
/* Dictionaries, projections, tests and interpretations of one attribute's cross-section, once
 * checked. */
void sage_test_attribute(Sage *sage, size_t attribute);

#endif
