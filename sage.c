/* sage.c: SAGE (arXiv 2410.07456), the evaluation of SAEs that arXiv 2405.08366 brought in, made
 * automatic, in the order of the papers. Notation, throughout:
 *
 *   x, x'      a prompt, and its counterfactual: one attribute changed and nothing else
 *   a, a'      the activation of a node (a component at a named position) on them
 *   v_i        the value of attribute i in a prompt
 *   f_j, d_j   codes and decoder rows of an SAE (of the residual stream, but for `native`)
 *   a^         a reconstruction of a, always base + sum_j c_j: c_j is what feature j contributes
 *   abar       the mean of a over the training prompts
 *
 * Activations are binary32, all else is binary64; sums run over prompts in their order. */
#include "sage.h"
#include "elementary.h"
#include "linalg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const size_t sage_ks[SAGE_KS] = {1, 2, 4, 8, 16, 32};
const char *const sage_method_names[SAGE_METHODS] = {"none", "mean",   "mse",   "weighted",
                                                     "sae",  "native", "random"};

bool sage_supervised(SageMethod method) {
    return method == SAGE_MEAN || method == SAGE_MSE || method == SAGE_WEIGHTED;
}

bool sage_of_features(SageMethod method) {
    return method == SAGE_SAE || method == SAGE_NATIVE || method == SAGE_RANDOM;
}

/* The sweep over thresholds is of SAEs; random directions are held against them where asked. */
bool sage_threshold_tested(const SageOptions *options, SageMethod method, double t) {
    bool asked = false;
    for (size_t i = 0; i < options->n_f1; i++) {
        asked |= options->f1[i] == t;
    }
    return method == SAGE_RANDOM ? asked : sage_of_features(method);
}

/* Eigenvalues at or below this share of the largest count as zero, so that an attribute that moves
 * nothing gets weight 0; so does the square of a sum, of its parts' squares. */
static const double dictionary_cutoff = 1e-10;
/* The same for singular values of decoder rows and of W_O, which are binary32. */
static const double span_cutoff = 1e-6;
/* A choice of a sparse edit lowers the squared distance by more than this share of |a_s|^2. */
static const double edit_cutoff = 1e-10;
/* A denominator of a rescaled figure at or below it is 0. */
static const double rescale_cutoff = 1e-9;
/* What moves m by less than this share of |m_clean| says nothing about what moves it; and where the
 * model as it is answers as the target in more than so many prompts, no edit differs from none. */
static const double least_resolution = 0.1, most_agreement = 0.9;

/* All scratch; sage_layout, at the end of this file, says how much. */
typedef struct ThreadWork {
    SageParts clean, other;          /* of a prompt, and of its counterfactual */
    double *sum, *edited, magnitude; /* [width]: of clean's c_j; what an edit comes to */
    SageSparse sparse;               /* of a greedy edit */
    bool *taken[2];                  /* [most]: by an aware edit, of clean and of other */
    double *o[2], *columns, *solve;  /* [d_model], [most, d_model] */
    uint64_t *bits[2];               /* [words] */
} ThreadWork;

struct SageWork {
    ThreadWork *thread;
    double *gram, *rhs, *solve; /* [values, values], [values, width] */
    double *direct, *columns;   /* [d_head, d_model] */
    float *recon;               /* [test prompts, width] */
    uint32_t *which;            /* [1 + SAGE_RESAMPLES, test prompts]: all of them, and resamples */
    double *clean, *ablated, *samples; /* [1 + SAGE_RESAMPLES]: sums of m; a figure */
};

static double dot_of(const double *a, const double *b, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

/* ==== the metric ====
 *
 *   m = log p(answer) - log p(wrong)    at the last position (2405.08366, 2)
 *
 * The probability of a list of tokens is the sum over it. The softmax's normaliser cancels: the log
 * of a list's probability is taken as log sum exp of its logits, of one token as its logit. */

/* sum exp(logit - highest) over a list of tokens */
static double list_sum(const float *logits, const int32_t *ids, size_t n, float *highest) {
    double sum = 0.0;
    *highest = logits[ids[0]];
    for (size_t i = 1; i < n; i++) {
        *highest = logits[ids[i]] > *highest ? logits[ids[i]] : *highest;
    }
    for (size_t i = 0; i < n; i++) {
        sum += (double)exp_f32(logits[ids[i]] - *highest);
    }
    return sum;
}

/* log sum exp of the logits of a list; of one token its logit */
static double list_logit(const float *logits, const int32_t *ids, size_t n) {
    float highest;
    double sum = list_sum(logits, ids, n, &highest);
    return (double)highest + (n > 1 ? (double)log_f32((float)sum) : 0.0);
}

/* m = list_logit(answer) - list_logit(wrong) */
double sage_metric(const float *logits, const SageForm *form) {
    return list_logit(logits, form->answer, form->n_answer) -
           list_logit(logits, form->wrong, form->n_wrong);
}

/* dm / dlogit of a token of a list = + (answer) or - (wrong) its share of the list's probability */
void sage_metric_gradient(float *gradient, const float *logits, const SageForm *form) {
    for (int side = 0; side < 2; side++) {
        const int32_t *ids = side == 0 ? form->answer : form->wrong;
        size_t n = side == 0 ? form->n_answer : form->n_wrong;
        float highest;
        double sum = list_sum(logits, ids, n, &highest);
        for (size_t i = 0; i < n; i++) {
            float share = (float)((double)exp_f32(logits[ids[i]] - highest) / sum);
            gradient[ids[i]] += side == 0 ? share : -share;
        }
    }
}

/* ==== step 1: attribute cross-sections ==== */

/* Attribution patching: what patching a node from the counterfactual would do to m, to first order,
 * from one forward on x' and one forward and backward on x, whatever the number of nodes.
 *
 *   score(node) = mean over training prompts of (a' - a) . dm/da (x)
 *
 * This adds the sum over the prompts of a batch; the mean is taken behind the last. */
void sage_score_add(double *score, const float *other, const float *clean, const float *gradient,
                    size_t prompts, size_t width) {
    for (size_t p = 0; p < prompts; p++) {
        double dot = 0.0;
        for (size_t k = p * width; k < (p + 1) * width; k++) {
            dot += ((double)other[k] - (double)clean[k]) * (double)gradient[k];
        }
        *score += dot;
    }
}

/* The order of the walk: nodes in falling |score|, equal ones as they stand. */
void sage_order(const double *score, size_t n_nodes, size_t *order) {
    for (size_t i = 0, at; i < n_nodes; i++) {
        for (at = i; at > 0 && fabs(score[order[at - 1]]) < fabs(score[i]); at--) {
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
}

/* The walk takes nodes until
 *
 *   sum over the walked |score| >= share * sum over all |score|    or they number `max` */
size_t sage_walk(const double *score, const size_t *order, size_t n_nodes, double share, size_t max,
                 double *carried) {
    double total = 0.0, sum = 0.0;
    size_t n = 0;
    for (size_t i = 0; i < n_nodes; i++) {
        total += fabs(score[i]);
    }
    while (n < max && n < n_nodes && sum < share * total) {
        sum += fabs(score[order[n++]]);
    }
    *carried = total > 0.0 ? sum / total : 0.0;
    return n;
}

/* Screening off: node a is left out if b, which was walked too, carries it on: the z of a q's head,
 * the attn_out of a q or z, at the same layer and position. */
static bool screens_off(const SageNode *a, const SageNode *b) {
    if (a->layer != b->layer || a->position != b->position) {
        return false;
    }
    return (a->kind == HOOK_Q && b->kind == HOOK_Z && a->head == b->head) ||
           ((a->kind == HOOK_Q || a->kind == HOOK_Z) && b->kind == HOOK_ATTN_OUT);
}

/* The cross-section: those of the walked that none of the walked screens off. */
size_t sage_screen(const SageNode *nodes, const size_t *order, size_t n, size_t *kept) {
    size_t n_kept = 0;
    for (size_t i = 0; i < n; i++) {
        bool out = false;
        for (size_t j = 0; j < n; j++) {
            out |= screens_off(&nodes[order[i]], &nodes[order[j]]);
        }
        if (!out) {
            kept[n_kept++] = order[i];
        }
    }
    return n_kept;
}

/* Random others: node i of those that were not walked is taken with probability
 * (how many are still needed) / (how many are left), so that every set is equally likely. */
size_t sage_others(Random *random, const bool *walked, size_t n_nodes, size_t count,
                   size_t *others) {
    size_t left = 0, n = 0;
    for (size_t i = 0; i < n_nodes; i++) {
        left += walked[i] ? 0 : 1;
    }
    size_t need = left < count ? left : count;
    for (size_t i = 0; i < n_nodes && n < need; i++) {
        if (!walked[i] && random_below(random, left--) < need - n) {
            others[n++] = i;
        }
    }
    return n;
}

/* What patching does in truth, one node at a time:
 *
 *   effect(node) = mean over training prompts of m(x with a' patched in) - m(x) */
double sage_effect(const double *patched, const double *m, size_t prompts) {
    double sum = 0.0;
    for (size_t p = 0; p < prompts; p++) {
        sum += patched[p] - m[p];
    }
    return sum / (double)prompts;
}

/* Rank of node i among those whose effect was measured, ties at their mean rank. */
static double rank_of(const double *x, const double *effect, size_t n, size_t i) {
    double below = 0.0, equal = 0.0;
    for (size_t j = 0; j < n; j++) {
        below += !isnan(effect[j]) && x[j] < x[i] ? 1.0 : 0.0;
        equal += !isnan(effect[j]) && x[j] == x[i] ? 1.0 : 0.0;
    }
    return below + (equal + 1.0) / 2.0;
}

/* Spearman's rank correlation of score and effect: Pearson's, of ranks. */
double sage_spearman(const double *score, const double *effect, size_t n) {
    double measured = 0.0, xy = 0.0, xx = 0.0, yy = 0.0;
    for (size_t i = 0; i < n; i++) {
        measured += isnan(effect[i]) ? 0.0 : 1.0;
    }
    for (size_t i = 0; i < n; i++) {
        if (!isnan(effect[i])) {
            double x = rank_of(score, effect, n, i) - (measured + 1.0) / 2.0;
            double y = rank_of(effect, effect, n, i) - (measured + 1.0) / 2.0;
            xy += x * y;
            xx += x * x;
            yy += y * y;
        }
    }
    return xx > 0.0 && yy > 0.0 ? xy / sqrt(xx * yy) : NAN;
}

/* How many nodes carry an attribute is not the walk's to say: with the first n of them patched
 * together, in test prompts,
 *
 *   share(n) = (m_n - m_clean) / (m_all - m_clean) */
double sage_curve_share(double patched, double all, double clean) {
    return fabs(all - clean) >= least_resolution * fabs(clean) ? (patched - clean) / (all - clean)
                                                               : NAN;
}

/* ==== step 2: supervised dictionaries (2405.08366, 4.1, A.6) ====
 *
 *   a^_p = abar + sum_i u(i, v_i(p)),    u [values, width]: one feature a value of an attribute
 *
 * from the training activations A of a node. */

/* Test prompts and their counterfactuals; the training prompts follow. */
static size_t rows_of(const SageSection *s) {
    return s->n_test * (1 + s->task->n_attributes);
}

/* The row of u that serves prompt p in attribute a. */
static size_t value_row(const SageSection *s, SageSplit split, size_t p, size_t a) {
    return s->first_value[a] + s->task->prompts[split][p].values[a];
}

/* mean: u(i, v) = mean of a over prompts with v_i = v, minus abar; 0 for a value without prompts */
static void dictionary_mean(const SageSection *s, SageSubject *node) {
    size_t d = node->width;
    const float *train = node->a + rows_of(s) * d;
    double *features = node->dictionary[SAGE_MEAN].rows;
    for (size_t i = 0; i < d; i++) {
        for (size_t p = 0; p < s->n_train; p++) {
            node->mean[i] += (double)train[p * d + i];
        }
        node->mean[i] /= (double)s->n_train;
    }
    for (size_t a = 0, row = 0; a < s->task->n_attributes; a++) {
        for (size_t end = row + s->task->attributes[a].count; row < end; row++) {
            double count = 0.0, *u = features + row * d;
            for (size_t p = 0; p < s->n_train; p++) {
                bool has = value_row(s, SAGE_TRAIN, p, a) == row;
                count += has ? 1.0 : 0.0;
                for (size_t i = 0; has && i < d; i++) {
                    u[i] += (double)train[p * d + i];
                }
            }
            for (size_t i = 0; count > 0.0 && i < d; i++) {
                u[i] = u[i] / count - node->mean[i];
            }
        }
    }
}

/* mse: U = (C^T C)^+ C^T (A - abar), C [prompts, values] the one-hot matrix of attribute values */
static void dictionary_mse(const SageSection *s, SageSubject *node) {
    size_t d = node->width, n = s->n_values, n_attributes = s->task->n_attributes;
    const float *train = node->a + rows_of(s) * d;
    double *gram = s->work->gram, *rhs = s->work->rhs;
    memset(gram, 0, n * n * sizeof(double));
    memset(rhs, 0, n * d * sizeof(double));
    for (size_t p = 0; p < s->n_train; p++) {
        for (size_t a = 0; a < n_attributes; a++) {
            size_t row = value_row(s, SAGE_TRAIN, p, a);
            for (size_t b = 0; b < n_attributes; b++) {
                gram[row * n + value_row(s, SAGE_TRAIN, p, b)] += 1.0;
            }
            for (size_t i = 0; i < d; i++) {
                rhs[row * d + i] += (double)train[p * d + i] - node->mean[i];
            }
        }
    }
    symmetric_solve(node->dictionary[SAGE_MSE].rows, gram, rhs, n, d, dictionary_cutoff,
                    s->work->solve);
}

/* weighted (SAGE's): w_i u(i, v) with the mean features u and
 *
 *   w = argmin sum_p |a_p - abar - sum_i w_i u(i, v_i(p))|^2
 *
 * whose normal equations are (sum_p u_i . u_j) w = sum_p u_i . (a_p - abar) */
static void dictionary_weighted(const SageSection *s, SageSubject *node) {
    size_t d = node->width, n = s->task->n_attributes;
    const float *train = node->a + rows_of(s) * d;
    double *gram = s->work->gram, *rhs = s->work->rhs;
    const double *mean_features = node->dictionary[SAGE_MEAN].rows;
    memset(gram, 0, n * n * sizeof(double));
    memset(rhs, 0, n * sizeof(double));
    for (size_t p = 0; p < s->n_train; p++) {
        for (size_t a = 0; a < n; a++) {
            const double *u = mean_features + value_row(s, SAGE_TRAIN, p, a) * d;
            for (size_t b = 0; b < n; b++) {
                const double *other = mean_features + value_row(s, SAGE_TRAIN, p, b) * d;
                for (size_t i = 0; i < d; i++) {
                    gram[a * n + b] += u[i] * other[i];
                }
            }
            for (size_t i = 0; i < d; i++) {
                rhs[a] += u[i] * ((double)train[p * d + i] - node->mean[i]);
            }
        }
    }
    symmetric_solve(node->w, gram, rhs, n, 1, dictionary_cutoff, s->work->solve);
    for (size_t a = 0; a < n; a++) {
        size_t first = s->first_value[a] * d, count = s->task->attributes[a].count * d;
        for (size_t k = first; k < first + count; k++) {
            node->dictionary[SAGE_WEIGHTED].rows[k] = node->w[a] * mean_features[k];
        }
    }
}

/* ==== step 3: SAEs of the residual stream, carried to the nodes ==== */

bool sage_node_reads(const SageNode *node) {
    return node->kind == HOOK_Q || node->kind == HOOK_K || node->kind == HOOK_V;
}

/* Which SAE serves a node: that of the stream right before it reads, or right after it writes.
 *
 *   q, k, v of layer L     resid_pre L, else resid_post L - 1 (the same tensor); at L = 0 the
 *                          embedding, unless learned positions are added to it
 *   z, attn_out            resid_mid L (not in a parallel block), resid_post L, resid_pre L + 1
 *   mlp_out                resid_post L, resid_pre L + 1 */
size_t sage_points(const LlmConfig *config, const SageNode *node, SagePoint points[3]) {
    int l = node->layer, last = (int)config->n_layers - 1;
    size_t n = 0;
    if (sage_node_reads(node)) {
        points[n++] = (SagePoint){HOOK_RESID_PRE, l};
        if (l > 0) {
            points[n++] = (SagePoint){HOOK_RESID_POST, l - 1};
        } else if (config->rotary_dim > 0) {
            points[n++] = (SagePoint){HOOK_EMBED, -1};
        }
        return n;
    }
    if (node->kind != HOOK_MLP_OUT && !config->parallel) {
        points[n++] = (SagePoint){HOOK_RESID_MID, l};
    }
    points[n++] = (SagePoint){HOOK_RESID_POST, l};
    if (l < last) {
        points[n++] = (SagePoint){HOOK_RESID_PRE, l + 1};
    }
    return n;
}

/* The SAE of the first of these points that has one; NULL: none serves the node. */
const Sae *sage_node_sae(const SaeSet *saes, const LlmConfig *config, const SageNode *node) {
    SagePoint points[3];
    const Sae *sae = NULL;
    size_t n = sage_points(config, node, points);
    for (size_t i = 0; i < n && sae == NULL; i++) {
        sae = sae_set_find(saes, points[i].kind, points[i].layer);
    }
    return sae;
}

/* ---- between a node and the stream ---- */

static void matrix_row(const Matrix *m, size_t o, double *row) {
    for (size_t i = 0; i < m->in; i++) {
        row[i] = (double)weight_at(m->w, (size_t)((ptrdiff_t)o * m->row + (ptrdiff_t)i * m->col));
    }
}

/* Element i of a vector; 0 where there is none. */
static double vector_at(Weight vector, size_t i) {
    return vector.data != NULL ? (double)weight_at(vector, i) : 0.0;
}

static double norm_gain(const Llm *llm, const Norm *norm, size_t i) {
    double w = (double)weight_at(norm->w, i);
    return llm->config.kind == LLM_GEMMA2 ? 1.0 + w : w;
}

/* q, k, v read x by their norm and weights, affine once the norm's scale is frozen:
 *
 *   direct x / scale + constant,    direct = W diag(gamma) C,    constant = W beta + bias
 *
 * C takes the mean away (LayerNorm; RMSNorm: C = 1, beta = 0). */
static void read_map(const SageSection *s, const SageSubject *node, double *constant) {
    size_t d = s->llm->config.d_model, layer = (size_t)node->node->layer;
    Matrix w = llm_head_matrix(s->llm, layer, node->node->kind, (size_t)node->node->head);
    const Norm *ln = &s->llm->layers[layer].ln1;
    for (size_t o = 0; o < node->width; o++) {
        double *row = s->work->direct + o * d, mean = 0.0;
        matrix_row(&w, o, row);
        constant[o] = vector_at(w.bias, o);
        for (size_t i = 0; i < d; i++) {
            constant[o] += row[i] * vector_at(ln->b, i);
            row[i] *= norm_gain(s->llm, ln, i);
            mean += row[i];
        }
        for (size_t i = 0; i < d && !s->llm->config.rms_norm; i++) {
            row[i] -= mean / (double)d;
        }
    }
}

/* z writes o = write z to the stream: W_O, its bias left out; in Gemma-2 diag(gamma) W_O / scale by
 * the post-norm, whose scale is left to what follows; without its mean if the SAE's stream is
 * centred. z comes back from o by least squares: direct = write^+. */
static void write_map(const SageSection *s, const SageSubject *node) {
    size_t d = s->llm->config.d_model, n = node->width, layer = (size_t)node->node->layer;
    Matrix w = llm_head_matrix(s->llm, layer, HOOK_Z, (size_t)node->node->head);
    const Norm *post = &s->llm->layers[layer].ln1_post;
    double *columns = s->work->columns;
    for (size_t o = 0; o < d; o++) {
        matrix_row(&w, o, node->write + o * n);
        for (size_t i = 0; i < n && post->w.data != NULL; i++) {
            node->write[o * n + i] *= norm_gain(s->llm, post, o);
        }
    }
    for (size_t i = 0; i < n; i++) {
        double mean = 0.0;
        for (size_t o = 0; o < d; o++) {
            mean += node->write[o * n + i] / (double)d;
        }
        for (size_t o = 0; o < d; o++) {
            node->write[o * n + i] -= node->site->sae->centre == SAE_CENTRE_YES ? mean : 0.0;
            columns[i * d + o] = node->write[o * n + i];
        }
    }
    pseudo_inverse(s->work->direct, columns, d, n, span_cutoff, s->work->solve);
}

/* o[d_model]: write a / scale of a z, else a, without its mean if the SAE's stream is centred. */
static void written(const SageSubject *node, const float *a, float scale, double *o, size_t d) {
    double mean = 0.0;
    bool z = node->write != NULL;
    for (size_t i = 0; i < d; i++) {
        o[i] = z ? 0.0 : (double)a[i];
        for (size_t k = 0; z && k < node->width; k++) {
            o[i] += node->write[i * node->width + k] * (double)a[k];
        }
        o[i] /= (double)scale;
        mean += o[i] / (double)d;
    }
    for (size_t i = 0; i < d && !z && node->site->sae->centre == SAE_CENTRE_YES; i++) {
        o[i] -= mean;
    }
}

/* obar = mean over training prompts of o */
static void written_mean(const SageSection *s, SageSubject *node) {
    size_t d = s->llm->config.d_model;
    double *o = s->work->thread[0].o[0];
    for (size_t p = 0; p < s->n_train; p++) {
        size_t row = rows_of(s) + p;
        written(node, node->a + row * node->width, node->scale[row], o, d);
        for (size_t i = 0; i < d; i++) {
            node->o_mean[i] += o[i];
        }
    }
    for (size_t i = 0; i < d; i++) {
        node->o_mean[i] /= (double)s->n_train;
    }
}

/* ---- decoder rows, and random ones ---- */

typedef struct Call { /* what a parallel loop is about */
    const SageSection *section;
    SageSite *site;
    SageSubject *node;
    SageWay way;
    size_t count; /* prompts */
} Call;

/* Random direction j of the method `random`: normals j d_in .. of one long row, drawn in pairs. */
static void random_row(uint64_t seed, const Sae *sae, size_t j, double *row) {
    uint64_t layer = (uint64_t)(sae->layer < 0 ? 0 : sae->layer);
    Random random = random_start(seed, RANDOM_SAGE_DECODER + (layer << 32));
    size_t from = j * sae->d_in;
    float draw[2];
    for (size_t at = from; at < from + sae->d_in; at++) {
        if (at == from || at % 2 == 0) {
            random.position = at / 2 * 2;
            random_normals(&random, draw);
        }
        row[at - from] = (double)draw[at % 2];
    }
}

/* d_j of feature u of the union, and a random row of the same norm; a choice by decoder norm
 * divides both. Behind them b_dec, and ones, for what an SAE that normalises shifts a row by. */
static void site_row(void *user, size_t u, int thread) {
    const Call *call = user;
    const SageSite *site = call->site;
    const Sae *sae = site->sae;
    size_t d = sae->d_in;
    double *real = site->rows[0] + u * d, *random = site->rows[1] + u * d;
    (void)thread;
    if (u >= site->n_union) {
        for (size_t i = 0; i < d; i++) {
            real[i] = random[i] = u == site->n_union ? vector_at(sae->b_dec, i) : 1.0;
        }
        return;
    }
    size_t j = site->feature[u];
    float norm = sae->rescale_by_decoder_norm ? sae->dec_norm[j] : 1.0f;
    for (size_t i = 0; i < d; i++) {
        real[i] = (double)weight_at(
            sae->w_dec, (size_t)((ptrdiff_t)j * sae->dec_feature + (ptrdiff_t)i * sae->dec_input));
    }
    random_row(call->section->result->options->vlm.seed, sae, j, random);
    double length = sqrt(dot_of(random, random, d)),
           factor = length > 0.0 ? sqrt(dot_of(real, real, d)) / length : 0.0;
    for (size_t i = 0; i < d; i++) { /* in binary32, as weights are */
        real[i] = (double)((float)real[i] / norm);
        random[i] = (double)((float)(random[i] * factor) / norm);
    }
}

/* direct d_j of row u of the site */
static void project_row(void *user, size_t u, int thread) {
    const Call *call = user;
    const SageSubject *node = call->node;
    size_t d = node->site->sae->d_in;
    (void)thread;
    for (int random = 0; random < 2; random++) {
        double *row = node->dictionary[random == 1 ? SAGE_RANDOM : SAGE_SAE].rows + u * node->width;
        for (size_t o = 0; o < node->width; o++) {
            row[o] =
                dot_of(call->section->work->direct + o * d, node->site->rows[random] + u * d, d);
        }
    }
}

/* What features of its SAEs are to a node. A head has its part of every row of a native SAE. */
static void dictionaries_of_features(const SageSection *s, SageSubject *node) {
    size_t d = s->llm->config.d_model, head = (size_t)node->node->head;
    double *constant = node->dictionary[SAGE_SAE].constant;
    Call call = {.section = s, .node = node};
    if (sage_node_reads(node->node)) {
        read_map(s, node, constant);
    } else {
        if (node->write != NULL) {
            write_map(s, node);
        }
        written_mean(s, node);
        for (size_t k = 0; k < node->width; k++) {
            constant[k] = node->write != NULL ? dot_of(s->work->direct + k * d, node->o_mean, d)
                                              : node->o_mean[k];
        }
    }
    if (node->dictionary[SAGE_SAE].rows != node->site->rows[0]) {
        compute_parallel(s->compute, node->site->n_union + 2, project_row, &call);
    }
    for (size_t k = 0; node->native != NULL && node->native->b_v != NULL && k < node->width; k++) {
        node->dictionary[SAGE_NATIVE].constant[k] =
            (double)node->native->b_v[head * node->width + k];
    }
}

/* ---- projections ---- */

/* weights, for q, k, v: the features of x^ = factor (sum_j f_j d_j + b_dec) + shift (factor and
 * shift undo an SAE's normalisation) pass through the node's map with scale at its true value:
 *
 *   c_j = f_j factor / scale direct d_j
 *   base = (factor direct b_dec + shift direct 1) / scale + constant
 *
 * native, SAGE's control: an SAE of the node's own hook point, whose rows are the node's as they
 * are, at scale 1 and with b_V for the constant where the SAE reads z without it. */
static void project_codes(const SageSite *site, const SageDictionary *dictionary, size_t row,
                          double scale, size_t width, SageParts *out) {
    double factor = site->factor[row], shift = site->shift[row];
    const double *b_dec = dictionary->rows + site->n_union * dictionary->stride,
                 *one = b_dec + dictionary->stride;
    for (size_t j = 0; j < out->n; j++) {
        out->coefficient[j] = (double)site->codes[site->start[row] + j].value * factor / scale;
    }
    for (size_t k = 0; k < width; k++) {
        out->base[k] = (factor * b_dec[k] + shift * one[k]) / scale + dictionary->constant[k];
    }
}

/* span: the orthogonal projection of o - obar onto the span of the active decoder rows
 *
 *   coefficient = argmin |o - obar - sum_j coefficient_j d_j|, of least norm
 *
 * An SAE's factor would multiply every d_j of a prompt alike, which moves no span. */
static void project_span(const double *rows, const double *o, size_t d, SageParts *out,
                         ThreadWork *work) {
    for (size_t j = 0; j < out->n; j++) {
        for (size_t i = 0; i < d; i++) {
            work->columns[out->n <= d ? j * d + i : i * out->n + j] = rows[out->feature[j] * d + i];
        }
    }
    least_squares(out->coefficient, work->columns, o, d, out->n, span_cutoff, work->solve);
}

/* encoder: the encoder's own reading of what was written, w_j its column
 *
 *   coefficient_j = w_j . (o - obar)
 *
 * w_j acts on the stream as it is: o would enter divided by the SAE's factor and d_j come back
 * multiplied by it, which cancels, and a code by decoder norm has the norm that its row lost
 * (site_row). An SAE's scaling, folded into its weights or not, changes nothing. */
static void project_encoder(const SageSite *site, const double *o, SageParts *out) {
    const Sae *sae = site->sae;
    for (size_t j = 0; j < out->n; j++) {
        size_t feature = site->feature[out->feature[j]];
        double sum = 0.0;
        for (size_t i = 0; i < sae->d_in; i++) {
            ptrdiff_t at = (ptrdiff_t)feature * sae->enc_feature + (ptrdiff_t)i * sae->enc_input;
            sum += o[i] * (double)weight_at(sae->w_enc, (size_t)at);
        }
        sum *= sae->mag_gain != NULL ? (double)sae->mag_gain[feature] : 1.0;
        sum *= sae->rescale_by_decoder_norm ? (double)sae->dec_norm[feature] : 1.0;
        out->coefficient[j] = sum;
    }
}

/* For z, attn_out and mlp_out: o^ = obar + sum_j coefficient_j d_j of what the node writes to the
 * stream; back at the node, a z by least squares and its post-norm's scale,
 *
 *   c_j = coefficient_j scale direct d_j,    base = scale direct obar
 *
 * and a block output as it is. */
static void project_written(const SageSection *s, const SageSubject *node, SageMethod method,
                            SageWay way, size_t row, SageParts *out, ThreadWork *work) {
    size_t d = s->llm->config.d_model;
    double scale = (double)node->scale[row], *o = work->o[0];
    written(node, node->a + row * node->width, node->scale[row], o, d);
    for (size_t i = 0; i < d; i++) {
        o[i] -= node->o_mean[i];
    }
    if (way == SAGE_BY_SPAN) {
        project_span(node->site->rows[method == SAGE_RANDOM], o, d, out, work);
    } else {
        project_encoder(node->site, o, out);
    }
    for (size_t j = 0; j < out->n; j++) {
        out->coefficient[j] *= scale;
    }
    for (size_t k = 0; k < node->width; k++) {
        out->base[k] = node->dictionary[method].constant[k] * scale;
    }
}

/* ==== reconstructions ==== */

static const SageSite *site_of(const SageSubject *node, SageMethod method) {
    return method == SAGE_NATIVE ? node->native : node->site;
}

/* How a method comes to a^ at a node. */
static SageWay way_of(const SageSection *s, const SageSubject *node, SageMethod method) {
    return sage_supervised(method)       ? (SageWay)(method - SAGE_MEAN + SAGE_BY_MEAN)
           : method == SAGE_NATIVE       ? SAGE_BY_NATIVE
           : sage_node_reads(node->node) ? SAGE_BY_WEIGHTS
                                         : s->writes;
}

/* The parts of a^ of a row. supervised: c_i = u(i, v_i(p)), base = abar */
static void parts_of(const SageSection *s, const SageSubject *node, SageMethod method, SageWay way,
                     size_t row, SageParts *out, ThreadWork *work) {
    const SageDictionary *dictionary = &node->dictionary[method];
    const SageSite *site = site_of(node, method);
    bool supervised = sage_supervised(method);
    size_t width = node->width;
    out->n = supervised ? s->task->n_attributes : site->start[row + 1] - site->start[row];
    for (size_t j = 0; j < out->n; j++) {
        out->feature[j] = supervised ? (uint32_t)value_row(s, SAGE_TEST, row, j)
                                     : site->codes[site->start[row] + j].feature;
        out->coefficient[j] = 1.0;
    }
    if (supervised) {
        memcpy(out->base, dictionary->constant, width * sizeof(double));
    } else if (way == SAGE_BY_WEIGHTS || way == SAGE_BY_NATIVE) {
        double scale = way == SAGE_BY_WEIGHTS ? (double)node->scale[row] : 1.0;
        project_codes(site, dictionary, row, scale, width, out);
    } else {
        project_written(s, node, method, way, row, out, work);
    }
    for (size_t j = 0; j < out->n; j++) {
        const double *d_j = dictionary->rows + out->feature[j] * dictionary->stride;
        for (size_t k = 0; k < width; k++) {
            out->c[j * width + k] = out->coefficient[j] * d_j[k];
        }
    }
}

/* sum_j c_j: a^ - base */
static void sum_parts(const SageParts *parts, double *sum, size_t width) {
    for (size_t i = 0; i < width; i++) {
        sum[i] = 0.0;
        for (size_t j = 0; j < parts->n; j++) {
            sum[i] += parts->c[j * width + i];
        }
    }
}

/* Whose dictionary a way takes. */
static const SageMethod way_methods[SAGE_WAYS] = {SAGE_MEAN, SAGE_MSE, SAGE_WEIGHTED, SAGE_SAE,
                                                  SAGE_SAE,  SAGE_SAE, SAGE_NATIVE};

static void recon_row(void *user, size_t p, int thread) {
    const Call *call = user;
    const SageSection *s = call->section;
    size_t width = call->node->width;
    ThreadWork *work = &s->work->thread[thread];
    parts_of(s, call->node, way_methods[call->way], call->way, p, &work->clean, work);
    sum_parts(&work->clean, work->sum, width);
    for (size_t i = 0; i < width; i++) {
        s->work->recon[p * width + i] = (float)(work->clean.base[i] + work->sum[i]);
    }
}

/* r2 = 1 - sum |a - a^|^2 / sum |a - abar|^2    over the test prompts; beside it the same of what
 * the node writes, o(a), o(a^) and obar, since span is orthogonal there, not in z. */
static void fit_way(const SageSection *s, SageSubject *node, SageWay way, SageFit *fit) {
    size_t d = s->llm->config.d_model;
    double residual[2] = {0.0}, total[2] = {0.0}, **o = s->work->thread[0].o;
    Call call = {.section = s, .node = node, .way = way};
    compute_parallel(s->compute, s->n_test, recon_row, &call);
    for (size_t p = 0; p < s->n_test; p++) {
        const float *a = node->a + p * node->width, *recon = s->work->recon + p * node->width;
        for (size_t k = 0; k < node->width; k++) {
            double e = (double)a[k] - (double)recon[k], m = (double)a[k] - node->mean[k];
            residual[0] += e * e;
            total[0] += m * m;
        }
        if (!sage_node_reads(node->node)) {
            written(node, a, node->scale[p], o[0], d);
            written(node, recon, node->scale[p], o[1], d);
            for (size_t i = 0; i < d; i++) {
                residual[1] += (o[0][i] - o[1][i]) * (o[0][i] - o[1][i]);
                total[1] += (o[0][i] - node->o_mean[i]) * (o[0][i] - node->o_mean[i]);
            }
        }
    }
    fit->r2[way] = total[0] > 0.0 ? 1.0 - residual[0] / total[0] : NAN;
    fit->r2_stream[way] = total[1] > 0.0 ? 1.0 - residual[1] / total[1] : NAN;
}

/* Does a way lead to the node? */
static bool way_leads(const SageSubject *node, SageWay way) {
    bool reads = sage_node_reads(node->node);
    return way == SAGE_BY_WEIGHTS                          ? reads
           : way == SAGE_BY_SPAN || way == SAGE_BY_ENCODER ? !reads
           : way == SAGE_BY_NATIVE                         ? node->native != NULL
                                                           : true;
}

void sage_prepare(SageSection *s, SageFit *fits) {
    for (size_t i = 0; i < s->n_subjects; i++) {
        SageSubject *node = &s->subjects[i];
        dictionary_mean(s, node);
        dictionary_mse(s, node);
        dictionary_weighted(s, node);
        dictionaries_of_features(s, node);
        fits[i].sae = way_of(s, node, SAGE_SAE);
        for (SageWay way = 0; way < SAGE_WAYS; way++) {
            fits[i].r2[way] = fits[i].r2_stream[way] = NAN;
            if (way_leads(node, way)) {
                fit_way(s, node, way, &fits[i]);
            }
        }
    }
}

/* ==== step 4: what features stand for (2405.08366, 3.4, A.12) ====
 *
 *   F1 = 2 precision recall / (precision + recall) = 2 both / (active + holds)
 *
 * over the test prompts; sets of prompts are bits. */
static size_t count_bits(const uint64_t *a, const uint64_t *b, size_t words) {
    size_t n = 0;
    for (size_t i = 0; i < words; i++) {
        for (uint64_t both = a[i] & b[i]; both != 0; both &= both - 1) {
            n++;
        }
    }
    return n;
}

/* F1 of the prompts in which a feature is active and those in which a predicate holds. */
static double f1_of(const uint64_t *active, const uint64_t *holds, size_t words) {
    size_t both = count_bits(active, holds, words);
    size_t sum = count_bits(active, active, words) + count_bits(holds, holds, words);
    return both > 0 ? 2.0 * (double)both / (double)sum : 0.0;
}

/* Of the unions of the kind's first `least` .. `most` values by their own F1 the best. */
static void best_union(SagePredicate *best, const SageKind *kind, size_t least, size_t most,
                       size_t words, const uint64_t *active, uint64_t *holds) {
    SagePredicate now = {.kind = kind};
    memset(holds, 0, words * sizeof(uint64_t));
    while (now.n < most) {
        double top_f1 = -1.0;
        for (size_t v = 0; v < kind->n; v++) {
            bool used = false;
            for (size_t k = 0; k < now.n; k++) {
                used |= now.values[k] == v;
            }
            double f1 = used ? -1.0 : f1_of(active, kind->holds + v * words, words);
            now.values[now.n] = f1 > top_f1 ? v : now.values[now.n];
            top_f1 = f1 > top_f1 ? f1 : top_f1;
        }
        for (size_t w = 0; w < words; w++) {
            holds[w] |= kind->holds[now.values[now.n] * words + w];
        }
        now.n++;
        now.f1 = f1_of(active, holds, words);
        now.support = count_bits(holds, holds, words);
        if (now.n >= least && now.f1 > best->f1) {
            *best = now;
        }
    }
}

/* A feature's interpretation; of equal F1 the first: single values, then unions, in the order of
 * kinds. A union has at most a quarter of the kind's values: ten of twelve hold for any feature. */
SagePredicate sage_predicate(const SageKinds *kinds, const uint64_t *active, uint64_t *scratch) {
    SagePredicate best = {.f1 = -1.0};
    for (size_t k = 0; k < 2 * kinds->count; k++) {
        const SageKind *kind = &kinds->list[k % kinds->count];
        bool alone = k < kinds->count;
        size_t most = alone ? 1 : SAGE_UNION, there = alone ? kind->n : kind->n / 4;
        best_union(&best, kind, alone ? 1 : 2, there < most ? there : most, kinds->words, active,
                   scratch);
    }
    return best;
}

/* Of feature u: its interpretation, that of the same activations beside the values of other prompts
 * (what chance gives), and F1 of each value of each attribute. */
static void interpret_feature(void *user, size_t u, int thread) {
    const Call *call = user;
    const SageSection *s = call->section;
    const SageKinds *kinds = s->kinds;
    size_t words = kinds->words;
    const uint64_t *active = call->site->active + u * words;
    uint64_t *permuted = s->work->thread[thread].bits[0],
             *scratch = s->work->thread[thread].bits[1];
    call->site->best[u] = (SagePredicate){.f1 = -1.0};
    if (count_bits(active, active, words) == 0) {
        return;
    }
    memset(permuted, 0, words * sizeof(uint64_t));
    for (size_t p = 0; p < s->n_test; p++) {
        size_t q = (size_t)kinds->order[p];
        permuted[q / 64] |= (active[p / 64] >> p % 64 & 1) << q % 64;
    }
    call->site->best[u] = sage_predicate(kinds, active, scratch);
    call->site->permuted[u] = sage_predicate(kinds, permuted, scratch).f1;
    for (size_t a = 0; a < s->task->n_attributes; a++) {
        const SageKind *kind = &kinds->list[a];
        double *f1 = call->site->value_f1 + u * s->n_values + s->first_value[a];
        for (size_t v = 0; v < kind->n; v++) {
            f1[v] = f1_of(active, kind->holds + v * words, words);
        }
    }
}

void sage_site_open(const SageSection *s, SageSite *site) {
    Call call = {.section = s, .site = site};
    for (size_t p = 0; p < s->n_test; p++) {
        for (size_t i = site->start[p]; i < site->start[p + 1]; i++) {
            site->active[site->codes[i].feature * s->kinds->words + p / 64] |= (uint64_t)1
                                                                               << p % 64;
        }
    }
    compute_parallel(s->compute, site->n_union + 2, site_row, &call);
    compute_parallel(s->compute, site->n_union, interpret_feature, &call);
}

/* ==== step 4: edits ==== */

/* Sparse edit (2405.08366, 3.3, 5.1): which few features, each moved whole from what it is at the
 * prompt to what it is at the counterfactual, bring the edited activation nearest to a_t? The bound
 * is on |removed or added|, so that a feature active on both sides counts once. With
 * gap = edited - a_t, greedily the choice of least
 *
 *   |gap + delta_j|^2 - |gap|^2 = |delta_j|^2 + 2 gap . delta_j
 *
 * as long as that lowers the distance. Ties: the lower index. The magnitude grows by the feature's
 * weight. False: none helps. */
bool sage_sparse_choose(SageSparse *e) {
    double best = -e->least;
    size_t choice = SIZE_MAX;
    for (size_t j = 0; j < e->n; j++) {
        if (!e->taken[j]) {
            double change = e->squares[j] + 2.0 * dot_of(e->gap, e->delta + j * e->width, e->width);
            choice = change < best ? j : choice;
            best = change < best ? change : best;
        }
    }
    if (choice == SIZE_MAX) {
        return false;
    }
    for (size_t i = 0; i < e->width; i++) {
        e->gap[i] += e->delta[choice * e->width + i];
    }
    e->magnitude += e->weight[choice];
    e->taken[choice] = true;
    e->choices++;
    return true;
}

static void edit_start(const SageSubject *node, size_t p, ThreadWork *work) {
    for (size_t i = 0; i < node->width; i++) {
        work->edited[i] = (double)node->a[p * node->width + i];
    }
}

static void edit_add(ThreadWork *work, const double *part, double sign, size_t width) {
    for (size_t i = 0; i < width; i++) {
        work->edited[i] += sign * part[i];
    }
}

/* weight_j = c_j . sum / |sum|^2: the share of the reconstruction that feature j is */
static double part_weight(const SageParts *parts, size_t j, const double *sum, size_t width) {
    double square = dot_of(sum, sum, width);
    return square > 0.0 ? dot_of(parts->c + j * width, sum, width) / square : 0.0;
}

/* No choice yet. The features of both sides, by rising index, and
 *
 *   delta_j = c_j at the counterfactual - c_j at the prompt    (0 where it is not active) */
static void sparse_start(ThreadWork *work, const float *a_s, const float *a_t, size_t width) {
    SageSparse *e = &work->sparse;
    const SageParts *clean = &work->clean, *other = &work->other;
    double square = 0.0;
    e->n = e->choices = 0;
    e->width = width;
    e->magnitude = 0.0;
    for (size_t j = 0, k = 0; j < clean->n || k < other->n; e->n++) {
        bool before = k == other->n || (j < clean->n && clean->feature[j] <= other->feature[k]);
        bool behind = j == clean->n || (k < other->n && other->feature[k] <= clean->feature[j]);
        double *delta = e->delta + e->n * width;
        for (size_t i = 0; i < width; i++) {
            delta[i] =
                (behind ? other->c[k * width + i] : 0.0) - (before ? clean->c[j * width + i] : 0.0);
        }
        e->squares[e->n] = dot_of(delta, delta, width);
        e->weight[e->n] = before ? part_weight(clean, j, work->sum, width) : 0.0;
        e->taken[e->n] = false;
        j += before ? 1 : 0;
        k += behind ? 1 : 0;
    }
    for (size_t i = 0; i < width; i++) {
        e->gap[i] = (double)a_s[i] - (double)a_t[i];
        square += (double)a_s[i] * (double)a_s[i];
    }
    e->least = edit_cutoff * square;
}

/* The active feature of highest F1 for a value that is not taken yet, or parts->n. */
static size_t best_active(const SageParts *parts, const double *f1, size_t n_values,
                          const bool *taken) {
    size_t best = parts->n;
    for (size_t j = 0; j < parts->n; j++) {
        if (!taken[j] && (best == parts->n ||
                          f1[parts->feature[j] * n_values] > f1[parts->feature[best] * n_values])) {
            best = j;
        }
    }
    return best;
}

/* As many of the first choices as k allows; edits by rising k go on from the one before. */
static void greedy_edit(const SageSection *s, const SageSubject *node, const SageEdit *e, size_t p,
                        ThreadWork *work) {
    size_t target = (1 + e->attribute) * s->n_test + p, width = node->width;
    const float *a = node->a + p * width, *a_t = node->a + target * width;
    if (e->at == 0) {
        parts_of(s, node, e->method, way_of(s, node, e->method), target, &work->other, work);
        sparse_start(work, a, a_t, width);
    }
    while (work->sparse.choices < sage_ks[e->at] && sage_sparse_choose(&work->sparse)) {
    }
    for (size_t i = 0; i < width; i++) {
        work->edited[i] = (double)a_t[i] + work->sparse.gap[i];
    }
    work->magnitude = work->sparse.magnitude;
}

/* The same with an eye on what features stand for (2405.08366, A.12): k times, of those active at
 * the prompt the best for its own value of the attribute is removed, and of those active at the
 * counterfactual (whose parts greedy_edit has formed) the best for its value added. The magnitude
 * is what was removed, as a weight. */
static void aware_edit(const SageSection *s, const SageSubject *node, const SageEdit *e, size_t p,
                       ThreadWork *work) {
    const SagePrompt *prompt = &s->task->prompts[SAGE_TEST][p];
    const double *f1 = site_of(node, e->method)->value_f1 + s->first_value[e->attribute];
    const size_t value[2] = {prompt->values[e->attribute], prompt->changed[e->attribute]};
    const SageParts *parts[2] = {&work->clean, &work->other};
    double removed = 0.0;
    if (e->at == 0) {
        work->magnitude = 0.0;
        edit_start(node, p, work);
        memset(work->taken[0], 0, parts[0]->n * sizeof(bool));
        memset(work->taken[1], 0, parts[1]->n * sizeof(bool));
    }
    for (size_t k = e->at > 0 ? 2 * sage_ks[e->at - 1] : 0; k < 2 * sage_ks[e->at]; k++) {
        size_t side = k % 2;
        size_t j = best_active(parts[side], f1 + value[side], s->n_values, work->taken[side]);
        if (j < parts[side]->n) {
            work->taken[side][j] = true;
            removed += side == 0 ? part_weight(parts[0], j, work->sum, node->width) : 0.0;
            edit_add(work, parts[side]->c + j * node->width, side == 0 ? -1.0 : 1.0, node->width);
        }
    }
    work->magnitude += removed;
}

/* Supervised edit (2405.08366, 4.2) of attribute A: one feature for another,
 *
 *   a - u(A, v) + u(A, v'),    magnitude u(A, v) . (a^ - abar) / |a^ - abar|^2
 *
 * and 0 where the features of a prompt cancel and their sum is rounding. */
static void supervised_edit(const SageSection *s, const SageSubject *node, const SageEdit *e,
                            size_t p, ThreadWork *work) {
    const SagePrompt *prompt = &s->task->prompts[SAGE_TEST][p];
    const SageParts *parts = &work->clean;
    size_t d = node->width;
    const double *u = node->dictionary[e->method].rows + s->first_value[e->attribute] * d;
    double squares = 0.0;
    for (size_t j = 0; j < parts->n; j++) {
        squares += dot_of(parts->c + j * d, parts->c + j * d, d);
    }
    edit_start(node, p, work);
    edit_add(work, u + prompt->values[e->attribute] * d, -1.0, d);
    edit_add(work, u + prompt->changed[e->attribute] * d, 1.0, d);
    work->magnitude = dot_of(work->sum, work->sum, d) > dictionary_cutoff * squares
                          ? part_weight(parts, e->attribute, work->sum, d)
                          : 0.0;
}

/* The features on one side of a threshold taken away (2405.08366, 5.1): a - sum_j c_j. What the SAE
 * does not explain stays. */
static void threshold_edit(const SageSection *s, const SageSubject *node, const SageEdit *e,
                           size_t p, ThreadWork *work) {
    const SageSite *site = site_of(node, e->method);
    edit_start(node, p, work);
    for (size_t j = 0; j < work->clean.n; j++) {
        bool above = site->best[work->clean.feature[j]].f1 >= s->result->thresholds[e->at];
        if (above == (e->test == SAGE_F1_NECESSITY)) {
            edit_add(work, work->clean.c + j * node->width, -1.0, node->width);
        }
    }
}

/* The whole activation (2405.08366, 3.2, A.2):
 *
 *   target         a_t, the counterfactual's own
 *   ablated        abar
 *   sufficiency    a^
 *   necessity      abar + (a - a^) */
static void whole_edit(const SageSection *s, const SageSubject *node, const SageEdit *e, size_t p,
                       ThreadWork *work) {
    size_t width = node->width, target = (1 + e->attribute) * s->n_test + p;
    for (size_t i = 0; i < width; i++) {
        double recon = work->clean.base[i] + work->sum[i], a = (double)node->a[p * width + i];
        work->edited[i] = e->test == SAGE_TARGET        ? (double)node->a[target * width + i]
                          : e->test == SAGE_ABLATED     ? node->mean[i]
                          : e->test == SAGE_SUFFICIENCY ? recon
                                                        : node->mean[i] + (a - recon);
    }
}

/* What every edit puts in place of a, at a node of a prompt; parts are formed once for a method. */
static void edit_one(void *user, size_t task, int thread) {
    static void (*const edits[])(const SageSection *, const SageSubject *, const SageEdit *, size_t,
                                 ThreadWork *) = {[SAGE_TARGET] = whole_edit,
                                                  [SAGE_ABLATED] = whole_edit,
                                                  [SAGE_SUFFICIENCY] = whole_edit,
                                                  [SAGE_NECESSITY] = whole_edit,
                                                  [SAGE_F1_SUFFICIENCY] = threshold_edit,
                                                  [SAGE_F1_NECESSITY] = threshold_edit,
                                                  [SAGE_SUPERVISED] = supervised_edit,
                                                  [SAGE_GREEDY] = greedy_edit,
                                                  [SAGE_AWARE] = aware_edit};
    const Call *call = user;
    const SageSection *s = call->section;
    size_t n = task / call->count, p = s->first + task % call->count;
    const SageSubject *node = &s->subjects[n];
    ThreadWork *work = &s->work->thread[thread];
    SageMethod method = SAGE_NONE;
    for (size_t k = 1; k < s->n_edits; k++) {
        const SageEdit *e = &s->edits[k];
        const SageTrial *trial = &s->trials[k];
        if (e->method != method) {
            method = e->method;
            parts_of(s, node, method, way_of(s, node, method), p, &work->clean, work);
            sum_parts(&work->clean, work->sum, node->width);
        }
        edits[e->test](s, node, e, p, work);
        if (trial->magnitudes != NULL) {
            trial->magnitudes[n * s->n_test + p] = work->magnitude;
        }
        for (size_t i = 0; i < node->width; i++) {
            trial->values[n][(p - s->first) * node->width + i] = (float)work->edited[i];
        }
    }
}

void sage_edit(SageSection *s, size_t first, size_t n) {
    Call call = {.section = s, .count = n};
    s->first = first;
    compute_parallel(s->compute, s->n_subjects * n, edit_one, &call);
}

/* ==== step 4: tests (2405.08366, 3.2 to 3.4, 5.1) ==== */

const SageEdit *sage_edit_find(const SageEdit *edits, SageTest test, SageMethod method,
                               size_t attribute, size_t at) {
    while (edits->test != test || edits->method != method || edits->attribute != attribute ||
           edits->at != at) {
        edits++;
    }
    return edits;
}

/* accuracy = share of test prompts whose most probable token is one of the answer's */
double sage_accuracy(const SageSection *s) {
    size_t right = 0;
    for (size_t p = 0; p < s->n_test; p++) {
        const SageForm *form = &s->task->prompts[SAGE_TEST][p].clean;
        bool hit = false;
        for (size_t i = 0; i < form->n_answer; i++) {
            hit |= form->answer[i] == s->trials[0].predicted[p];
        }
        right += hit ? 1 : 0;
    }
    return (double)right / (double)s->n_test;
}

/* share of test prompts with m > 0 */
double sage_positive(const SageSection *s) {
    size_t positive = 0;
    for (size_t p = 0; p < s->n_test; p++) {
        positive += s->trials[0].m[p] > 0.0 ? 1 : 0;
    }
    return (double)positive / (double)s->n_test;
}

static const SageTrial *trial_of(const SageSection *s, const SageEdit *e) {
    return &s->trials[e - s->edits];
}

/* n m(edit) over the test prompts of resample k; 0: all of them as they are */
static double m_sum(const SageSection *s, const SageEdit *e, size_t k) {
    const double *m = trial_of(s, e)->m;
    double sum = 0.0;
    for (size_t i = 0; i < s->n_test; i++) {
        sum += m[s->work->which[k * s->n_test + i]];
    }
    return sum;
}

/* score = share of prompts whose most probable token is that of patching a_t in */
static double score_of(const SageSection *s, const SageEdit *e, size_t k) {
    const SageEdit *target = sage_edit_find(s->edits, SAGE_TARGET, SAGE_NONE, e->attribute, 0);
    const int32_t *wanted = trial_of(s, target)->predicted,
                  *predicted = trial_of(s, e == target ? s->edits : e)->predicted;
    size_t same = 0;
    for (size_t i = 0; i < s->n_test; i++) {
        size_t p = s->work->which[k * s->n_test + i];
        same += predicted[p] == wanted[p] ? 1 : 0;
    }
    return (double)same / (double)s->n_test;
}

/* The figure of an edit in a resample (the number of prompts cancels from ratios of m):
 *
 *   sufficiency = m(a^) / m_clean
 *   recovered = (m(a^) - m_ablated) / (m_clean - m_ablated)
 *   necessity = 1 - |m_ablated - m(abar + a - a^)| / |m_ablated - m_clean| */
static double figure_at(const SageSection *s, const SageEdit *e, bool recovered, size_t k) {
    double clean = s->work->clean[k], ablated = s->work->ablated[k];
    switch (e->test) {
    case SAGE_UNTOUCHED:
    case SAGE_ABLATED:
        return m_sum(s, e, k) / (double)s->n_test;
    case SAGE_SUFFICIENCY:
    case SAGE_F1_SUFFICIENCY:
        if (recovered) {
            return clean != ablated ? (m_sum(s, e, k) - ablated) / (clean - ablated) : NAN;
        }
        return clean != 0.0 ? m_sum(s, e, k) / clean : NAN;
    case SAGE_NECESSITY:
    case SAGE_F1_NECESSITY:
        return clean != ablated ? 1.0 - fabs(ablated - m_sum(s, e, k)) / fabs(ablated - clean)
                                : NAN;
    default:
        return score_of(s, e, k);
    }
}

/* The quantile of sorted samples, between two of them by their distances. */
static double quantile(const double *sorted, double share) {
    double at = share * (SAGE_RESAMPLES - 1);
    size_t below = (size_t)at;
    return sorted[below] + (at - (double)below) * (sorted[below + 1] - sorted[below]);
}

/* A figure, and the interval from 2.5 to 97.5 % of its values over resamples of the test prompts;
 * of a ratio both means are over the same prompts. */
static SageFigure figure_of(const SageSection *s, const SageEdit *e, bool recovered) {
    double *samples = s->work->samples;
    bool whole = true;
    SageFigure figure = {figure_at(s, e, recovered, 0), NAN, NAN};
    for (size_t k = 0; k < SAGE_RESAMPLES; k++) {
        samples[k] = figure_at(s, e, recovered, 1 + k);
        whole &= isfinite(samples[k]);
    }
    if (whole) {
        qsort(samples, SAGE_RESAMPLES, sizeof(double), compare_doubles);
        figure.low = quantile(samples, 0.025);
        figure.high = quantile(samples, 0.975);
    }
    return figure;
}

/* The resamples are the same for all figures. */
static void figures_all(SageSection *s) {
    SageWork *work = s->work;
    Random random = random_start(s->result->options->vlm.seed, RANDOM_SAGE_RESAMPLE);
    for (size_t k = 0; k <= SAGE_RESAMPLES; k++) {
        for (size_t p = 0; p < s->n_test; p++) {
            work->which[k * s->n_test + p] =
                (uint32_t)(k == 0 ? p : random_below(&random, s->n_test));
        }
        work->clean[k] = m_sum(s, &s->edits[0], k);
        work->ablated[k] = m_sum(s, &s->edits[1], k);
    }
    for (SageEdit *e = s->edits; e < s->edits + s->n_edits; e++) {
        e->figure = figure_of(s, e, false);
    }
}

/* Distinct features of the cross-section, active in some test prompt, of F1 at or above e's t. */
static size_t features_above(const SageSection *s, const SageEdit *e) {
    size_t n = 0;
    for (size_t i = 0; i < s->n_sites; i++) {
        for (size_t u = 0; u < s->sites[i].n_union; u++) {
            n += s->sites[i].native == (e->method == SAGE_NATIVE) &&
                 s->sites[i].best[u].f1 >= s->result->thresholds[e->at];
        }
    }
    return n;
}

/* magnitude = mean over nodes and prompts; of no intervention 0 */
static double edit_magnitude(const SageSection *s, const SageEdit *e) {
    const double *magnitudes = trial_of(s, e)->magnitudes;
    double sum = 0.0;
    for (size_t i = 0; i < s->n_subjects * s->n_test && magnitudes != NULL; i++) {
        sum += magnitudes[i];
    }
    return sum / ((double)s->n_subjects * (double)s->n_test);
}

static double rescaled(double x, double from, double to) {
    return fabs(to - from) > rescale_cutoff ? (x - from) / (to - from) : NAN;
}

/* Rescaled as in Figure 4 of 2405.08366: score 0 is no intervention and 1 the supervised edit (mean
 * dictionary), magnitude 0 what that edit takes away and 1 the whole reconstruction. */
static void control_rescale(const SageSection *s, SageEdit *e) {
    const SageEdit *mean = sage_edit_find(s->edits, SAGE_SUPERVISED, SAGE_MEAN, e->attribute, 0);
    double none = sage_edit_find(s->edits, SAGE_TARGET, SAGE_NONE, e->attribute, 0)->figure.value;
    bool tells = none <= most_agreement;
    e->magnitude = edit_magnitude(s, e);
    e->score_rescaled = tells ? rescaled(e->figure.value, none, mean->figure.value) : NAN;
    e->magnitude_rescaled = tells ? rescaled(e->magnitude, edit_magnitude(s, mean), 1.0) : NAN;
}

/* Where ablation moves m by too little, necessity and recovered say nothing of any method. */
void sage_judge(SageSection *s, SageCross *cross) {
    const SageFigure spoiled = {NAN, NAN, NAN};
    figures_all(s);
    cross->m_ablated = s->edits[1].figure;
    double clean = s->edits[0].figure.value, moved = fabs(clean - cross->m_ablated.value);
    cross->resolution = clean != 0.0 ? moved / fabs(clean) : NAN;
    bool low = !(cross->resolution >= least_resolution);
    cross->native = s->native;
    for (SageEdit *e = s->edits; e < s->edits + s->n_edits; e++) {
        if (e->test == SAGE_SUFFICIENCY) {
            e->recovered = low ? spoiled : figure_of(s, e, true);
        } else if (e->test == SAGE_F1_SUFFICIENCY) {
            e->features = features_above(s, e);
        } else if (e->test == SAGE_NECESSITY || e->test == SAGE_F1_NECESSITY) {
            e->figure = low ? spoiled : e->figure;
        } else if (e->test == SAGE_TARGET || e->test >= SAGE_SUPERVISED) {
            control_rescale(s, e);
        }
    }
}

/* ==== what is tested, and the memory of it all ==== */

static double *doubles(Arena *arena, size_t rows, size_t cols) {
    return arena_alloc(arena, size_product(rows, cols), sizeof(double));
}

static void list_edit(SageSection *s, Arena *arena, SageMethod method, SageTest test,
                      size_t attribute, size_t at) {
    SageTrial *trial = &s->trials[s->n_edits];
    bool control = test >= SAGE_SUPERVISED, untouched = test == SAGE_UNTOUCHED;
    s->edits[s->n_edits++] =
        (SageEdit){.method = method, .test = test, .attribute = attribute, .at = at};
    trial->m = doubles(arena, 1, s->n_test);
    trial->values = untouched ? NULL : arena_alloc(arena, s->n_subjects, sizeof(float *));
    for (size_t i = 0; i < s->n_subjects && !untouched; i++) {
        trial->values[i] = arena_floats(arena, s->batch, s->subjects[i].width);
    }
    trial->magnitudes = control ? doubles(arena, s->n_subjects, s->n_test) : NULL;
    if (control || untouched || test == SAGE_TARGET) {
        trial->predicted = arena_alloc(arena, s->n_test, sizeof(int32_t));
    }
}

/* All edits, in the order that edit_one needs. */
static void edits_list(SageSection *s, Arena *arena) {
    size_t attributes = s->task->n_attributes,
           of_method = 2 + 2 * s->result->n_thresholds + 2 * SAGE_KS * attributes,
           most = 2 + attributes + SAGE_METHODS * of_method;
    s->edits = arena_alloc(arena, most, sizeof(SageEdit));
    s->trials = arena_alloc(arena, most, sizeof(SageTrial));
    list_edit(s, arena, SAGE_NONE, SAGE_UNTOUCHED, 0, 0);
    list_edit(s, arena, SAGE_NONE, SAGE_ABLATED, 0, 0);
    for (size_t a = 0; a < attributes; a++) {
        list_edit(s, arena, SAGE_NONE, SAGE_TARGET, a, 0);
    }
    for (SageMethod method = SAGE_MEAN; method < SAGE_METHODS; method++) {
        if (method == SAGE_NATIVE && !s->native) {
            continue;
        }
        list_edit(s, arena, method, SAGE_SUFFICIENCY, 0, 0);
        list_edit(s, arena, method, SAGE_NECESSITY, 0, 0);
        for (size_t t = 0; t < s->result->n_thresholds; t++) {
            if (sage_threshold_tested(s->result->options, method, s->result->thresholds[t])) {
                list_edit(s, arena, method, SAGE_F1_SUFFICIENCY, 0, t);
                list_edit(s, arena, method, SAGE_F1_NECESSITY, 0, t);
            }
        }
        for (size_t a = 0; a < attributes; a++) {
            if (sage_supervised(method)) {
                list_edit(s, arena, method, SAGE_SUPERVISED, a, 0);
                continue;
            }
            for (size_t k = 0; k < 2 * SAGE_KS; k++) {
                SageTest test = k < SAGE_KS ? SAGE_GREEDY : SAGE_AWARE;
                list_edit(s, arena, method, test, a, k % SAGE_KS);
            }
        }
    }
}

static void site_layout(const SageSection *s, SageSite *site, Arena *arena) {
    size_t n = site->n_union;
    for (int random = 0; random < 2; random++) {
        site->rows[random] = doubles(arena, n + 2, site->sae->d_in);
    }
    site->active = arena_alloc(arena, size_product(n, s->kinds->words), sizeof(uint64_t));
    site->value_f1 = doubles(arena, n, s->n_values);
    site->best = arena_alloc(arena, n, sizeof(SagePredicate));
    site->permuted = doubles(arena, 1, n);
}

static void subject_layout(const SageSection *s, SageSubject *node, Arena *arena) {
    size_t d = s->llm->config.d_model, width = node->width;
    bool reads = sage_node_reads(node->node), z = node->node->kind == HOOK_Z;
    double *constant = doubles(arena, 1, width);
    node->mean = doubles(arena, 1, width);
    node->write = z ? doubles(arena, d, width) : NULL;
    node->o_mean = reads ? NULL : doubles(arena, 1, d);
    for (SageMethod m = SAGE_MEAN; m < SAGE_METHODS; m++) {
        double *own = node->site->rows[m == SAGE_RANDOM];
        node->dictionary[m] =
            sage_supervised(m)
                ? (SageDictionary){doubles(arena, s->n_values, width), width, node->mean}
            : reads || z
                ? (SageDictionary){doubles(arena, node->site->n_union + 2, width), width, constant}
                : (SageDictionary){own, d, constant};
    }
    if (node->native != NULL) {
        size_t first = node->node->head > 0 ? (size_t)node->node->head * width : 0;
        node->dictionary[SAGE_NATIVE] = (SageDictionary){
            node->native->rows[0] + first, node->native->sae->d_in, doubles(arena, 1, width)};
    }
}

static void parts_layout(SageParts *parts, Arena *arena, size_t most, size_t width) {
    parts->feature = arena_alloc(arena, most, sizeof(uint32_t));
    parts->coefficient = doubles(arena, 1, most);
    parts->c = doubles(arena, most, width);
    parts->base = doubles(arena, 1, width);
}

static void thread_layout(const SageSection *s, ThreadWork *t, Arena *arena, size_t most,
                          size_t width) {
    size_t d = s->llm->config.d_model;
    parts_layout(&t->clean, arena, most, width);
    parts_layout(&t->other, arena, most, width);
    t->sum = doubles(arena, 1, width);
    t->edited = doubles(arena, 1, width);
    t->sparse = (SageSparse){.delta = doubles(arena, 2 * most, width),
                             .weight = doubles(arena, 2, most),
                             .squares = doubles(arena, 2, most),
                             .taken = arena_alloc(arena, 2 * most, sizeof(bool)),
                             .gap = doubles(arena, 1, width)};
    for (int k = 0; k < 2; k++) {
        t->taken[k] = arena_alloc(arena, most, sizeof(bool));
        t->o[k] = doubles(arena, 1, d);
        t->bits[k] = arena_alloc(arena, s->kinds->words, sizeof(uint64_t));
    }
    t->columns = doubles(arena, d, most);
    t->solve = doubles(arena, 1, least_squares_work(d, most));
}

void sage_layout(SageSection *s, Arena *arena) {
    size_t d = s->llm->config.d_model, d_head = s->llm->config.d_head, width = 0,
           most = s->task->n_attributes, threads = size_larger((size_t)s->compute->threads, 1);
    s->first_value = arena_alloc(arena, most, sizeof(size_t));
    for (size_t a = 0; a < s->task->n_attributes; a++) {
        s->first_value[a] = s->n_values;
        s->n_values += s->task->attributes[a].count;
    }
    for (size_t i = 0; i < s->n_sites; i++) {
        site_layout(s, &s->sites[i], arena);
        most = size_larger(s->sites[i].most, most);
    }
    for (size_t i = 0; i < s->n_subjects; i++) {
        subject_layout(s, &s->subjects[i], arena);
        width = size_larger(s->subjects[i].width, width);
    }
    edits_list(s, arena);
    size_t solved = size_larger(s->n_values, d_head);
    SageWork *work = s->work = arena_alloc(arena, 1, sizeof(SageWork));
    *work = (SageWork){
        .thread = arena_alloc(arena, threads, sizeof(ThreadWork)),
        .gram = doubles(arena, s->n_values, s->n_values),
        .rhs = doubles(arena, s->n_values, width),
        .solve = doubles(arena, solved, solved + 1),
        .direct = doubles(arena, d_head, d),
        .columns = doubles(arena, d_head, d),
        .recon = arena_floats(arena, s->n_test, width),
        .which = arena_alloc(arena, size_product(1 + SAGE_RESAMPLES, s->n_test), sizeof(uint32_t)),
        .clean = doubles(arena, 1, 1 + SAGE_RESAMPLES),
        .ablated = doubles(arena, 1, 1 + SAGE_RESAMPLES),
        .samples = doubles(arena, 1, SAGE_RESAMPLES)};
    for (size_t t = 0; t < threads; t++) {
        thread_layout(s, &work->thread[t], arena, most, width);
    }
}
