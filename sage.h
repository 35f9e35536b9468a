/* sage.h: SAGE (arXiv 2410.07456, on the evaluation of arXiv 2405.08366): attribute cross-sections,
 * supervised dictionaries, residual SAEs at sublayers, edits, tests, predicates. Floor 10. */
#ifndef REFSAE_SAGE_H
#define REFSAE_SAGE_H

#include "base.h"
#include "data.h"
#include "hooks.h"
#include "kernels.h"
#include "llm.h"
#include "sae_load.h"
#include "task.h"

/* ---- what is asked and what is found ---- */

typedef struct SageOptions {
    VlmOptions vlm;             /* bos -1: Gemma always, others if an SAE's cfg says prepend_bos */
    const char *task, *prompts; /* prompts NULL: drawn */
    const char *cross_sections; /* file; NULL: they are found */
    const char *nodes, *projection; /* "q,k,v,z", "auto" or a list */
    size_t n[SAGE_SPLITS];
    double share, f1[8];
    size_t max_nodes, n_f1;
} SageOptions;

typedef enum SageMethod {
    SAGE_NONE,
    SAGE_MEAN,
    SAGE_MSE,
    SAGE_WEIGHTED,
    SAGE_SAE,
    SAGE_NATIVE, /* where every node of the cross-section has an SAE of its own hook point */
    SAGE_RANDOM,
    SAGE_METHODS
} SageMethod;

enum {
    SAGE_KS = 6,
    SAGE_UNION = 10,       /* values of a union, at most */
    SAGE_THRESHOLDS = 19,  /* of F1: 0, 0.1 .. 1, and eight of --f1 */
    SAGE_RESAMPLES = 1000, /* of the test prompts, for intervals */
};
extern const size_t sage_ks[SAGE_KS]; /* 1, 2, 4, 8, 16, 32 features */
/* none, mean, mse, weighted, sae, native, random */
extern const char *const sage_method_names[SAGE_METHODS];
bool sage_supervised(SageMethod method);
/* sae, native, random: what is made of an SAE's features */
bool sage_of_features(SageMethod method);
/* Whether a method is tested at a threshold of SageResult.thresholds. */
bool sage_threshold_tested(const SageOptions *options, SageMethod method, double t);

typedef struct SageNode { /* a component at a named position */
    HookKind kind;        /* HOOK_Q, K, V, Z, ATTN_OUT, MLP_OUT */
    int layer, head;      /* head -1: the whole block; k, v: a key-value head */
    size_t position;      /* place in task->positions */
} SageNode;

/* q, k, v: reads the stream: its SAEs come by `weights`; else it writes: `span`, `encoder` */
bool sage_node_reads(const SageNode *node);

typedef struct SageFigure {  /* NaN: undefined, or spoiled by a low resolution */
    double value, low, high; /* with the interval that holds 95 % of its resamples */
} SageFigure;

/* Ways to a reconstruction a^ of a node. */
typedef enum SageWay {
    SAGE_BY_MEAN,
    SAGE_BY_MSE,
    SAGE_BY_WEIGHTED,
    SAGE_BY_WEIGHTS,
    SAGE_BY_SPAN,
    SAGE_BY_ENCODER,
    SAGE_BY_NATIVE,
    SAGE_WAYS
} SageWay;

typedef struct SageFit { /* of one node of a cross-section; NaN: does not apply */
    SageWay sae;         /* the way that the tests take */
    double r2[SAGE_WAYS], r2_stream[SAGE_WAYS];
    double *w; /* [n_attributes]: of the weighted dictionary */
} SageFit;

typedef struct SageCurve { /* what the first n nodes of the walk carry */
    size_t nodes;
    double share; /* NaN: patching all of them moves m too little */
} SageCurve;

typedef struct SageCross {
    const char *name;
    int attribute;          /* that it was found for; -1: given */
    size_t *nodes, n_nodes; /* places in SageResult.nodes, in the order of the walk */
    size_t *others, n_others;
    SageFit *fits; /* [n_nodes] */
    double share, spearman;
    SageCurve *curve;
    size_t n_curve;
    SageFigure m_ablated;
    double resolution;
    bool native;            /* it was tested */
    struct SageEdit *edits; /* as SageSection.edits */
} SageCross;

typedef struct SageInterpretation {
    HookKind kind;
    int layer;
    size_t position, feature;
    double f1, permuted; /* of the best predicate, and of the best by chance */
    size_t support;      /* test prompts in which the best predicate holds */
    const char *predicate;
} SageInterpretation;

typedef struct SageResult {
    const SageOptions *options;
    const Console *console;
    const SageTask *task;
    double accuracy, m_positive;
    SageFigure m_clean;
    double thresholds[SAGE_THRESHOLDS];
    size_t n_thresholds;
    SageNode *nodes; /* all */
    size_t n_nodes;
    double *score, *effect; /* [n_cross, n_nodes]; NaN where not measured */
    bool *chosen;           /* [n_cross, n_nodes] */
    SageCross *cross;
    size_t n_cross;
    SageInterpretation *interpretations;
    size_t n_interpretations;
} SageResult;

/* ---- step 1: attribute cross-sections ---- */

/* m from logits[d_vocab] at a prompt's last position; only answer's and wrong tokens' are read. */
double sage_metric(const float *logits, const SageForm *form);
/* gradient[d_vocab] += dm / dlogits[d_vocab]. */
void sage_metric_gradient(float *gradient, const float *logits, const SageForm *form);

/* *score grows by that of each prompt: a(x'), a(x) and dm/da(x), all [prompts, width]. */
void sage_score_add(double *score, const float *other, const float *clean, const float *gradient,
                    size_t prompts, size_t width);
/* All nodes in the order of the walk, into order[n_nodes]. */
void sage_order(const double *score, size_t n_nodes, size_t *order);
/* How many of them are walked; *carried is the share of all |score| that they have. */
size_t sage_walk(const double *score, const size_t *order, size_t n_nodes, double share, size_t max,
                 double *carried);
/* Those of the walk that no other one screens off, in its order, into kept[n]; returns how many. */
size_t sage_screen(const SageNode *nodes, const size_t *order, size_t n, size_t *kept);
/* `count` nodes (or all there are) that were not walked, drawn without replacement, rising. */
size_t sage_others(Random *random, const bool *walked, size_t n_nodes, size_t count,
                   size_t *others);
/* From m[prompts] with the node patched, and m as it is. */
double sage_effect(const double *patched, const double *m, size_t prompts);
/* Of the nodes whose effect is not NaN; NaN: one of the two is constant. */
double sage_spearman(const double *score, const double *effect, size_t n);
/* Share of what patching all nodes does, from sums of m over n prompts; NaN: that is too little. */
double sage_curve_share(double patched, double all, double clean);

/* ---- what features stand for ---- */

typedef struct SagePredicate {
    double f1;
    size_t support; /* prompts in which it holds */
    const SageKind *kind;
    size_t n, values[SAGE_UNION]; /* n values: one, or a union */
} SagePredicate;

/* The best predicate for what is active in the prompts of active[words]; scratch[words]. */
SagePredicate sage_predicate(const SageKinds *kinds, const uint64_t *active, uint64_t *scratch);

/* ---- steps 2 to 4: a cross-section under test ----
 * Prompts are numbered through: test prompt p is row p, its counterfactual in attribute a row
 * (1 + a) n_test + p; `rows` are these. Behind them stand the training prompts. */

typedef struct SageCode {
    uint32_t feature; /* place in the site's union */
    float value;
} SageCode;

typedef struct SageSite { /* an SAE at a named position */
    const Sae *sae;
    size_t position;
    const float *b_v; /* [d_in]: b_V, where it was folded away from z; NULL: none */
    bool native;      /* of a node's own hook point; else of the stream */
    size_t *start;    /* [rows + 1]: row r's are codes[start[r]] .. codes[start[r + 1] - 1] */
    SageCode *codes;  /* of a row by rising feature */
    size_t codes_room;
    double *factor, *shift; /* [rows]: the SAE's normalisation undone */
    size_t n_union, most;   /* features active in some row; of one row, at most */
    uint32_t *feature;      /* [n_union]: number in the SAE, ascending */
    double *rows[2];        /* [n_union + 2, d_in]: decoder; random, as long; behind b_dec, ones */
    uint64_t *active;       /* [n_union, words]: in which test prompts */
    double *value_f1;       /* [n_union, values]: of each value of each attribute */
    SagePredicate *best;    /* [n_union]; f1 -1: active in counterfactuals alone */
    double *permuted;       /* [n_union]: F1 of the best by chance */
} SageSite;

/* What a method makes a^ of at a node: c_j = coefficient_j row_j. */
typedef struct SageDictionary {
    double *rows; /* row_j: width values from rows[j stride] on */
    size_t stride;
    double *constant; /* [width]: of the base */
} SageDictionary;

typedef struct SageSubject { /* a node under test */
    const SageNode *node;
    SageSite *site, *native; /* native NULL: none */
    size_t width;
    float *a;       /* [rows + n_train, width]: activations */
    float *scale;   /* [the same]: q, k, v: ln1's; z in Gemma-2: ln1_post's; else 1 */
    double *mean;   /* [width]: of the training prompts */
    double *w;      /* [attributes]: the weights of weighted */
    double *write;  /* [d_model, width]: z to o, without a post-norm's scale; NULL: no z */
    double *o_mean; /* [d_model]: of what the node writes, o, over the training prompts */
    /* Rows of mean, mse, weighted: [values]; of sae, random, native: as the site's. */
    SageDictionary dictionary[SAGE_METHODS];
} SageSubject;

typedef struct SageParts { /* of a node in one row: a^ = base + sum_j c_j */
    size_t n;
    uint32_t *feature;   /* [n]: which rows of the dictionary, rising */
    double *coefficient; /* [n] */
    double *c;           /* [n, width] */
    double *base;        /* [width] */
} SageParts;

/* A sparse edit of a_s towards a_t, feature by feature. */
typedef struct SageSparse {
    size_t n, width;
    double *delta;   /* [n, width]: what moving a feature whole adds */
    double *weight;  /* [n]: its share of the reconstruction */
    double *squares; /* [n]: |delta|^2 */
    bool *taken;     /* [n] */
    double *gap;     /* [width]: the edited activation - a_t */
    double least;    /* a choice lowers |gap|^2 by more than this */
    size_t choices;
    double magnitude;
} SageSparse;

bool sage_sparse_choose(SageSparse *edit);

typedef enum SageTest {
    SAGE_UNTOUCHED, /* the model as it is */
    SAGE_TARGET,    /* a_t itself: what control is to bring about */
    SAGE_ABLATED,
    SAGE_SUFFICIENCY,
    SAGE_NECESSITY,
    SAGE_F1_SUFFICIENCY, /* without the features below a threshold */
    SAGE_F1_NECESSITY,   /* without those at or above it */
    SAGE_SUPERVISED,     /* from here on: control */
    SAGE_GREEDY,
    SAGE_AWARE
} SageTest;

/* One way to patch all nodes of a cross-section together. */
typedef struct SageEdit {
    SageMethod method;
    SageTest test;
    size_t attribute, at; /* control's; place of k in sage_ks, or of a threshold */
    /* What sage_judge finds; the last three of control, and of target, for no intervention. */
    SageFigure figure;    /* score (of target: that of no intervention), or figure of merit */
    SageFigure recovered; /* sufficiency alone */
    size_t features;      /* at or above the threshold; of F1 sufficiency alone */
    double magnitude;     /* the mean of its trial's */
    /* 0: no intervention, 1: the supervised edit; 0: that edit's magnitude, 1: all */
    double score_rescaled, magnitude_rescaled;
} SageEdit;

typedef struct SageTrial { /* of an edit */
    float **values;        /* [subjects]: [batch, width]; untouched: NULL */
    double *magnitudes;    /* [subjects, test prompts]; control alone */
    double *m;             /* [test prompts] */
    int32_t *predicted;    /* [test prompts]; untouched, target and control alone */
} SageTrial;

/* An edit that is there; the first two, untouched and ablated, always are. */
const SageEdit *sage_edit_find(const SageEdit *edits, SageTest test, SageMethod method,
                               size_t attribute, size_t at);

typedef struct SageWork SageWork; /* scratch */

typedef struct SageSection { /* a cross-section under test; up to `writes` the same for all */
    const Compute *compute;
    const Llm *llm;
    const SageTask *task;
    const SageResult *result; /* its options and thresholds */
    const SageKinds *kinds;
    size_t n_train, n_test, batch;
    SageWay writes; /* for nodes that write: span or encoder */
    SageSubject *subjects;
    SageSite *sites;
    size_t n_subjects, n_sites;
    bool native;                   /* every subject has an SAE of its own */
    size_t n_values, *first_value; /* [attributes]: where an attribute's values begin among all */
    SageEdit *edits;               /* the first is untouched */
    SageTrial *trials;             /* [n_edits] */
    size_t n_edits, first;         /* prompt of the batch whose values the edits have */
    SageWork *work;
} SageSection;

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
/* Decoder rows of a site, random ones, and what its features stand for. */
void sage_site_open(const SageSection *section, SageSite *site);
/* Dictionaries and maps of every subject, and its fit. */
void sage_prepare(SageSection *section, SageFit *fits);
/* The values of every edit for test prompts first .. first + n - 1, n <= batch. */
void sage_edit(SageSection *section, size_t first, size_t n);
/* The figures of every edit and of the cross-section, from what the model said under all. */
void sage_judge(SageSection *section, SageCross *cross);
/* Of the model as it is. */
double sage_accuracy(const SageSection *section);
double sage_positive(const SageSection *section);

#endif
