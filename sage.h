/* sage.h: SAGE (arXiv 2410.07456, on the evaluation of arXiv 2405.08366): tasks, attribute
 * cross-sections, supervised dictionaries, residual SAEs carried to sublayers, and the tests.
 * Floor 3. */
#ifndef REFSAE_SAGE_H
#define REFSAE_SAGE_H

#include "llm.h"
#include "sae.h"
#include "task.h"

/* ---- what the passes find (report.c writes it) ---- */

typedef struct SageOptions {
    const char *llm, *saes, *task, *out, *prompts; /* prompts NULL: drawn */
    const char *nodes, *projection;                /* "q,k,v,z", "auto" or a list */
    size_t n[SAGE_SPLITS];
    double share, f1[8];
    size_t max_nodes, n_f1;
    int bos; /* --bos: 1 yes, 0 no, -1: Gemma always, others if an SAE's cfg says prepend_bos */
    bool canonical;
    SaeOptions sae;
    uint64_t seed;
} SageOptions;

typedef enum SageMethod {
    SAGE_NONE,
    SAGE_MEAN,
    SAGE_MSE,
    SAGE_WEIGHTED,
    SAGE_SAE,
    SAGE_RANDOM,
    SAGE_METHODS
} SageMethod;

enum {
    SAGE_KS = 6
};
extern const size_t sage_ks[SAGE_KS]; /* 1, 2, 4, 8, 16, 32 features */
/* none, mean, mse, weighted, sae, random */
extern const char *const sage_method_names[SAGE_METHODS];

typedef struct SageNode { /* a component at a named position */
    HookKind kind;        /* HOOK_Q, K, V, Z, ATTN_OUT, MLP_OUT */
    int layer, head;      /* head -1: the whole block; k, v: a key-value head */
    size_t position;      /* place in task->positions */
} SageNode;

/* q, k, v: reads the stream, so that its SAEs come by `weights`; else it writes to it: `span` and
 * `encoder` */
bool sage_node_reads(const SageNode *node);

typedef struct SageControl {
    double score, magnitude;
    double rescaled; /* (magnitude - s) / (1 - s), s the supervised edit's */
} SageControl;

typedef struct SageTests {
    double sufficiency, necessity;
    SageControl control[SAGE_KS]; /* none, sae, random */
    SageControl supervised;       /* mean, mse, weighted */
} SageTests;

typedef struct SageFit { /* of one node of a cross-section; NaN: does not apply */
    double mean, mse, weighted, sae, weights, span, encoder;
    double *w; /* [n_attributes]: of the weighted dictionary */
} SageFit;

typedef struct SageCross {  /* of one attribute */
    size_t *nodes, n_nodes; /* places in SageResult.nodes, in the order of the walk */
    size_t *others, n_others;
    SageFit *fits; /* [n_nodes] */
    double share, spearman;
    SageTests tests[SAGE_METHODS];
    SageTests (*f1)[2][2]; /* [n_f1][sae, random][above, below] */
} SageCross;

typedef struct SageInterpretation {
    HookKind kind;
    int layer;
    size_t position, feature;
    double f1;
    const char *predicate;
} SageInterpretation;

typedef struct SageResult {
    const SageOptions *options;
    const Console *console;
    const SageTask *task;
    double accuracy, m_clean;
    SageNode *nodes; /* all */
    size_t n_nodes;
    double *score, *effect; /* [n_attributes, n_nodes]; effect NaN where not measured */
    bool *chosen;           /* [n_attributes, n_nodes] */
    SageCross *cross;       /* [n_attributes] */
    SageInterpretation *interpretations;
    size_t n_interpretations;
    const char **sae_names; /* "blocks.3.hook_resid_pre: PATH (format)" of those used */
    size_t n_saes;
} SageResult;

/* Bytes of the block that the passes run in, for prompts of up to `longest` tokens. */
size_t sage_memory(const Compute *compute, const Llm *llm, size_t longest);
void sage_run(const Compute *compute, const SageOptions *options, const Console *console);

#endif
