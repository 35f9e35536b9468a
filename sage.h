/* sage.h: SAGE (arXiv 2410.07456, on the evaluation of arXiv 2405.08366): attribute cross-sections,
 * supervised dictionaries, residual SAEs carried to sublayers, edits, tests and predicates.
 * Floor 10. */
#ifndef REFSAE_SAGE_H
#define REFSAE_SAGE_H

#include "base.h"
#include "hooks.h"
#include "kernels.h"
#include "llm.h"
#include "sae_load.h"
#include "task.h"

/* ---- what is asked and what is found ---- */

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
    SAGE_KS = 6,
    SAGE_UNION = 10 /* values of a union, at most */
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

/* ---- step 1: attribute cross-sections ---- */

/* m of a prompt from the logits[d_vocab] at its last position; only the answer's and the wrong
 * tokens' are read. */
double sage_metric(const float *logits, const SageForm *form);
/* gradient[d_vocab] += dm / dlogits[d_vocab]. */
void sage_metric_gradient(float *gradient, const float *logits, const SageForm *form);

/* *score grows by that of each prompt: a(x'), a(x) and dm/da(x), all [prompts, width]. */
void sage_score_add(double *score, const float *other, const float *clean, const float *gradient,
                    size_t prompts, size_t width);
/* The walk: nodes into order[max], each marked in walked[n_nodes] (false before); returns how many,
 * *carried is the share of all |score| that they have. */
size_t sage_walk(const double *score, size_t n_nodes, double share, size_t max, bool *walked,
                 size_t *order, double *carried);
/* Those of the walk that no other one screens off, in its order, into kept[n]; returns how many. */
size_t sage_screen(const SageNode *nodes, const size_t *order, size_t n, size_t *kept);
/* `count` nodes (or all there are) that were not walked, drawn without replacement. */
size_t sage_others(Random *random, const bool *walked, size_t n_nodes, size_t count,
                   size_t *others);
/* *effect grows by that of each prompt: m with the node patched, and m. */
void sage_effect_add(double *effect, const double *patched, const double *m, size_t prompts);
/* Of the nodes whose effect is not NaN; NaN: one of the two is constant. */
double sage_spearman(const double *score, const double *effect, size_t n);

/* ---- steps 2 to 4: a cross-section under test ---- */

/* Sides: the test prompts, and their counterfactuals in the attribute. */
enum {
    SAGE_CLEAN,
    SAGE_OTHER,
    SAGE_SIDES
};

/* What is active in an SAE on one side: prompt p's are entries start[p] .. start[p + 1] - 1. */
typedef struct SageCodes {
    size_t *start;
    uint32_t *feature; /* place in the site's union, ascending */
    float *value;
    double *factor, *shift; /* [prompts]: the SAE's normalisation undone */
} SageCodes;

typedef struct SageSite { /* an SAE at a named position */
    const Sae *sae;
    size_t position;
    SageCodes codes[SAGE_SIDES];
    size_t n_union, most; /* features active in some prompt; of one prompt, at most */
    uint32_t *feature;    /* [n_union]: number in the SAE, ascending */
    float *rows[2]; /* [n_union, d_in]: decoder rows, and as many random ones of equal norms */
    double *f1;     /* [n_union]: of the best predicate */
} SageSite;

typedef struct SageSubject { /* a node under test */
    const SageNode *node;
    SageSite *site;
    size_t width;
    float *train, *side[SAGE_SIDES];        /* [prompts, width]: activations */
    float *train_scale, *scale[SAGE_SIDES]; /* [prompts]: q, k, v: ln1's scale (not of training); z
                                               in Gemma-2: ln1_post's; NULL: no such norm */
    /* supervised dictionaries */
    double *mean;        /* [width]: of the training prompts */
    double *features[3]; /* [values, width]: mean, mse, weighted */
    double *w;           /* [attributes]: the weights of weighted */
    /* between node and stream */
    double *direct;   /* [width, d_model]: q, k, v: W diag(gamma) C; z: the inverse of `write` */
    double *constant; /* [width]: q, k, v: W beta + bias */
    double *write;    /* [d_model, width]: z to o, without a post-norm's scale */
    double *o_mean;   /* [d_model]: of what the node writes, o, over the training prompts */
    double *projected[2]; /* [n_union + 2, width]: `direct` of each of rows[0], rows[1]; behind them
                             of b_dec and of ones */
} SageSubject;

/* Ways to a reconstruction a^ of a node. */
typedef enum SageWay {
    SAGE_BY_MEAN,
    SAGE_BY_MSE,
    SAGE_BY_WEIGHTED,
    SAGE_BY_WEIGHTS,
    SAGE_BY_SPAN,
    SAGE_BY_ENCODER
} SageWay;

typedef struct SageParts { /* of a node at one prompt: a^ = base + sum_j c_j */
    size_t n;
    const uint32_t *feature; /* [n]: places in the site's union; NULL: supervised features */
    double *c;               /* [n, width] */
    double *base;            /* [width] */
} SageParts;

/* A sparse edit of a_s towards a_t, choice by choice. */
typedef struct SageSparse {
    size_t removals, additions, width;
    const double *c;   /* [removals + additions, width]: of a_s, then of a_t */
    double *squares;   /* [removals + additions]: |c|^2 */
    double *sum;       /* [width]: of the removals' c */
    double sum_square; /* |sum|^2 */
    bool *spent;       /* [removals + additions]: chosen, or not to be chosen */
    double *gap;       /* [width]: the edited activation - a_t */
    size_t choices;
    double magnitude;
} SageSparse;

bool sage_sparse_choose(SageSparse *edit);

typedef enum SageTest {
    SAGE_TARGET, /* a_t itself: what control is to bring about */
    SAGE_ABLATED,
    SAGE_SUFFICIENCY,
    SAGE_NECESSITY,
    SAGE_CONTROL
} SageTest;

typedef enum SageSubset {
    SAGE_ALL,
    SAGE_ABOVE, /* F1 >= t */
    SAGE_BELOW
} SageSubset;

/* One way to patch all nodes of a cross-section together. */
typedef struct SageEdit {
    SageMethod method;
    SageSubset subset;
    size_t f1; /* place of t in the options */
    SageTest test;
    size_t k;           /* of sage_ks: at most so many choices; SAGE_KS: the one supervised edit */
    float **values;     /* [subjects]: [test prompts, width] */
    double *magnitude;  /* [subjects, test prompts]; control alone */
    int32_t *predicted; /* [test prompts]; target and control alone */
    double m;           /* sum over test prompts */
} SageEdit;

typedef struct SageWork SageWork; /* scratch */

typedef struct SageSection { /* the cross-section of an attribute under test */
    const Compute *compute;
    const Llm *llm;
    const SageTask *task;
    const SageOptions *options;
    size_t attribute, n_train, n_test;
    SageSubject *subjects;
    SageSite *sites;
    size_t n_subjects, n_sites;
    SageWay writes;                /* for nodes that write: span or encoder */
    size_t n_values, *first_value; /* [attributes]: where an attribute's values begin among all */
    SageEdit *edits;
    size_t n_edits;
    double m_clean; /* sum over test prompts */
    int32_t *predicted_clean;
    SageWork *work;
} SageSection;

typedef struct SagePredicate {
    double f1;
    size_t attribute, n, values[SAGE_UNION]; /* n values: one, or a union */
    bool with_form;
    size_t form; /* value of the form attribute */
} SagePredicate;

typedef struct SagePoint {
    HookKind kind;
    int layer;
} SagePoint;

/* Where SAEs serve a node, the first first; returns how many. */
size_t sage_points(const LlmConfig *config, const SageNode *node, SagePoint points[3]);
/* NULL: none of the SAEs serves the node. */
const Sae *sage_node_sae(const SaeSet *saes, const LlmConfig *config, const SageNode *node);

/* All that follows writes to, once subjects have their activations and sites their codes. */
void sage_layout(SageSection *section, Arena *arena);
/* Decoder rows and random ones of a site. */
void sage_site_rows(const SageSection *section, SageSite *site);
/* The best predicate of a feature of the site; f1 -1: it is active in counterfactuals alone. */
SagePredicate sage_predicate(const SageSection *section, const SageSite *site, size_t feature);
/* Dictionaries and maps of every subject, and its fit. */
void sage_prepare(SageSection *section, SageFit *fits);
/* The values of every edit. */
void sage_edit(SageSection *section);
/* The figures of merit, from what the model said under every edit. */
void sage_judge(const SageSection *section, SageCross *cross);
/* Of the model as it is. */
double sage_accuracy(const SageSection *section);

#endif
