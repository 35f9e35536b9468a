/* sage.c: SAGE (arXiv 2410.07456), the evaluation of SAEs that arXiv 2405.08366 brought in, made
 * automatic, in the order of the papers. Notation, throughout:
 *
 *   x, x'      a prompt, and its counterfactual: one attribute changed and nothing else
 *   a, a'      the activation of a node (a component at a named position) on them
 *   v_i        the value of attribute i in a prompt
 *   f_j, d_j   codes and decoder rows of an SAE of the residual stream
 *   a^         a reconstruction of a, always base + sum_j c_j: c_j is what feature j contributes
 *   abar       the mean of a over the training prompts
 *
 * Activations are binary32, all else is binary64; sums run over prompts in their order. */
#include "sage.h"
#include "elementary.h"
#include "linalg.h"

#include <math.h>
#include <string.h>

const size_t sage_ks[SAGE_KS] = {1, 2, 4, 8, 16, 32};
const char *const sage_method_names[SAGE_METHODS] = {"none",     "mean", "mse",
                                                     "weighted", "sae",  "random"};

/* Eigenvalues of one-hot columns and of features at or below this share of the largest count as
 * zero, so that an attribute that moves nothing gets weight 0. Also the share of the parts' squares
 * below which features cancel. */
static const double dictionary_cutoff = 1e-10;
/* The same for singular values of decoder rows and of W_O, which are binary32. */
static const double span_cutoff = 1e-6;
/* 1 - s below which a magnitude is not rescaled. */
static const double rescale_cutoff = 1e-9;

/* All scratch; sage_layout, at the end of this file, says how much. */
typedef struct ThreadWork {
    SageParts parts[SAGE_SIDES];
    double *recon;                              /* [width] */
    SageSparse sparse;                          /* its squares, sum, spent and gap */
    double *o, *coefficients, *columns, *solve; /* [d_model], [most], [most, d_model] */
} ThreadWork;

struct SageWork {
    ThreadWork *thread;
    double *gram, *rhs, *solve; /* [values, values], [values, width] */
    double *columns;            /* [d_head, d_model] */
    float *recon;               /* [test prompts, width] */
    bool *active;               /* [test prompts] */
    size_t *counts, *both;      /* [forms + 1, values of an attribute] */
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
 * Batch by batch: this adds the sum over the prompts of one, and the mean is taken behind the last.
 */
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

/* The walk: nodes in falling |score| (of equal ones the first) until
 *
 *   sum over the walked |score| >= share * sum over all |score|    or they number `max` */
size_t sage_walk(const double *score, size_t n_nodes, double share, size_t max, bool *walked,
                 size_t *order, double *carried) {
    double total = 0.0, sum = 0.0;
    size_t n = 0;
    for (size_t i = 0; i < n_nodes; i++) {
        total += fabs(score[i]);
    }
    while (n < max && n < n_nodes && sum < share * total) {
        size_t top = n_nodes;
        for (size_t i = 0; i < n_nodes; i++) {
            if (!walked[i] && (top == n_nodes || fabs(score[i]) > fabs(score[top]))) {
                top = i;
            }
        }
        walked[top] = true;
        sum += fabs(score[top]);
        order[n++] = top;
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
void sage_effect_add(double *effect, const double *patched, const double *m, size_t prompts) {
    for (size_t p = 0; p < prompts; p++) {
        *effect += patched[p] - m[p];
    }
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

/* ==== step 2: supervised dictionaries (2405.08366, 4.1, A.6) ====
 *
 *   a^_p = abar + sum_i u(i, v_i(p)),    u [values, width]: one feature a value of an attribute
 *
 * from the training activations A of a node. */

/* The row of u that serves prompt p in attribute a. */
static size_t value_row(const SageSection *s, SageSplit split, size_t p, size_t a) {
    return s->first_value[a] + s->task->prompts[split][p].values[a];
}

/* mean: u(i, v) = mean of a over prompts with v_i = v, minus abar; 0 for a value without prompts */
static void dictionary_mean(const SageSection *s, SageSubject *node) {
    size_t d = node->width;
    for (size_t i = 0; i < d; i++) {
        for (size_t p = 0; p < s->n_train; p++) {
            node->mean[i] += (double)node->train[p * d + i];
        }
        node->mean[i] /= (double)s->n_train;
    }
    for (size_t a = 0; a < s->task->n_attributes; a++) {
        for (size_t v = 0; v < s->task->attributes[a].count; v++) {
            size_t row = s->first_value[a] + v, count = 0;
            double *u = node->features[0] + row * d;
            for (size_t p = 0; p < s->n_train; p++) {
                bool has = value_row(s, SAGE_TRAIN, p, a) == row;
                count += has ? 1 : 0;
                for (size_t i = 0; has && i < d; i++) {
                    u[i] += (double)node->train[p * d + i];
                }
            }
            for (size_t i = 0; count > 0 && i < d; i++) {
                u[i] = u[i] / (double)count - node->mean[i];
            }
        }
    }
}

/* mse: U = (C^T C)^+ C^T (A - abar), C [prompts, values] the one-hot matrix of all attribute values
 */
static void dictionary_mse(const SageSection *s, SageSubject *node) {
    size_t d = node->width, n = s->n_values, n_attributes = s->task->n_attributes;
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
                rhs[row * d + i] += (double)node->train[p * d + i] - node->mean[i];
            }
        }
    }
    symmetric_solve(node->features[1], gram, rhs, n, d, dictionary_cutoff, s->work->solve);
}

/* weighted (SAGE's): w_i u(i, v) with the mean features u and
 *
 *   w = argmin sum_p |a_p - abar - sum_i w_i u(i, v_i(p))|^2
 *
 * whose normal equations are (sum_p u_i . u_j) w = sum_p u_i . (a_p - abar) */
static void dictionary_weighted(const SageSection *s, SageSubject *node) {
    size_t d = node->width, n = s->task->n_attributes;
    double *gram = s->work->gram, *rhs = s->work->rhs;
    const double *mean_features = node->features[0];
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
                rhs[a] += u[i] * ((double)node->train[p * d + i] - node->mean[i]);
            }
        }
    }
    symmetric_solve(node->w, gram, rhs, n, 1, dictionary_cutoff, s->work->solve);
    for (size_t a = 0; a < n; a++) {
        size_t first = s->first_value[a] * d, count = s->task->attributes[a].count * d;
        for (size_t k = first; k < first + count; k++) {
            node->features[2][k] = node->w[a] * mean_features[k];
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

static double norm_gain(const Llm *llm, const Norm *norm, size_t i) {
    double w = (double)weight_at(norm->w, i);
    return llm->config.kind == LLM_GEMMA2 ? 1.0 + w : w;
}

/* q, k, v read x by their norm and weights, affine once the norm's scale is frozen:
 *
 *   direct x / scale + constant,    direct = W diag(gamma) C,    constant = W beta + bias
 *
 * C takes the mean away (LayerNorm; RMSNorm: C = 1, beta = 0). */
static void read_map(const SageSection *s, SageSubject *node) {
    size_t d = s->llm->config.d_model, layer = (size_t)node->node->layer;
    Matrix w = llm_head_matrix(s->llm, layer, node->node->kind, (size_t)node->node->head);
    const Norm *ln = &s->llm->layers[layer].ln1;
    for (size_t o = 0; o < node->width; o++) {
        double *row = node->direct + o * d, mean = 0.0;
        matrix_row(&w, o, row);
        node->constant[o] = w.bias.data != NULL ? (double)weight_at(w.bias, o) : 0.0;
        for (size_t i = 0; i < d; i++) {
            node->constant[o] += ln->b.data != NULL ? row[i] * (double)weight_at(ln->b, i) : 0.0;
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
static void write_map(const SageSection *s, SageSubject *node) {
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
    pseudo_inverse(node->direct, columns, d, n, span_cutoff, s->work->solve);
}

/* o [d_model] of an activation a: write a / scale for a z, for a block output a itself, without its
 * mean if the SAE's stream is centred. */
static void written(const SageSubject *node, const float *a, const float *scale, double *o,
                    size_t d) {
    double mean = 0.0;
    bool z = node->write != NULL;
    for (size_t i = 0; i < d; i++) {
        o[i] = z ? 0.0 : (double)a[i];
        for (size_t k = 0; z && k < node->width; k++) {
            o[i] += node->write[i * node->width + k] * (double)a[k];
        }
        o[i] /= scale != NULL ? (double)*scale : 1.0;
        mean += o[i] / (double)d;
    }
    for (size_t i = 0; i < d && !z && node->site->sae->centre == SAE_CENTRE_YES; i++) {
        o[i] -= mean;
    }
}

/* obar = mean over training prompts of o */
static void written_mean(const SageSection *s, SageSubject *node) {
    size_t d = s->llm->config.d_model;
    double *o = s->work->thread->o;
    for (size_t p = 0; p < s->n_train; p++) {
        const float *scale = node->train_scale != NULL ? node->train_scale + p : NULL;
        written(node, node->train + p * node->width, scale, o, d);
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
} Call;

/* Random direction j of the method `random`: normals j d_in .. of one long row, drawn in pairs. */
static void random_row(uint64_t seed, const Sae *sae, size_t j, float *row) {
    uint64_t layer = (uint64_t)(sae->layer < 0 ? 0 : sae->layer);
    Random random = random_start(seed, RANDOM_SAGE_DECODER + (layer << 32));
    size_t from = j * sae->d_in, to = from + sae->d_in;
    for (size_t pair = from / 2; 2 * pair < to; pair++) {
        float draw[2];
        random.position = 2 * pair;
        random_normals(&random, draw);
        for (size_t k = 0; k < 2; k++) {
            if (2 * pair + k >= from && 2 * pair + k < to) {
                row[2 * pair + k - from] = draw[k];
            }
        }
    }
}

static double feature_norm(const float *row, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)row[i] * (double)row[i];
    }
    return sqrt(sum);
}

/* d_j of feature u of the union, and a random row of the same norm; a choice by decoder norm
 * divides both. */
static void site_row(void *user, size_t u, int thread) {
    const Call *call = user;
    const Sae *sae = call->site->sae;
    size_t j = call->site->feature[u], d = sae->d_in;
    float *real = call->site->rows[0] + u * d, *random = call->site->rows[1] + u * d;
    (void)thread;
    for (size_t i = 0; i < d; i++) {
        real[i] = weight_at(
            sae->w_dec, (size_t)((ptrdiff_t)j * sae->dec_feature + (ptrdiff_t)i * sae->dec_input));
    }
    random_row(call->section->options->seed, sae, j, random);
    double length = feature_norm(random, d),
           factor = length > 0.0 ? feature_norm(real, d) / length : 0.0;
    for (size_t i = 0; i < d; i++) {
        random[i] = (float)((double)random[i] * factor);
        if (sae->rescale_by_decoder_norm) {
            real[i] /= sae->dec_norm[j];
            random[i] /= sae->dec_norm[j];
        }
    }
}

void sage_site_rows(const SageSection *s, SageSite *site) {
    Call call = {.section = s, .site = site};
    compute_parallel(s->compute, site->n_union, site_row, &call);
}

/* direct d_j of feature u of the union; behind the features direct b_dec, and direct 1 for what an
 * SAE that normalises shifts all of a row by. */
static void project_row(void *user, size_t u, int thread) {
    const Call *call = user;
    const SageSubject *node = call->node;
    const Sae *sae = node->site->sae;
    size_t d = sae->d_in, n = node->site->n_union;
    (void)thread;
    for (int random = 0; random < 2; random++) {
        const float *rows = node->site->rows[random];
        for (size_t o = 0; o < node->width; o++) {
            double sum = 0.0;
            for (size_t i = 0; i < d; i++) {
                double b = sae->b_dec.data != NULL ? (double)weight_at(sae->b_dec, i) : 0.0;
                double x = u < n ? (double)rows[u * d + i] : u == n ? b : 1.0;
                sum += node->direct[o * d + i] * x;
            }
            node->projected[random][u * node->width + o] = sum;
        }
    }
}

/* ---- three projections ---- */

/* weights, for q, k, v: the features of x^ = factor (sum_j f_j d_j + b_dec) + shift (factor and
 * shift undo an SAE's normalisation) pass through the node's map with scale at its true value:
 *
 *   c_j = f_j factor / scale direct d_j
 *   base = (factor direct b_dec + shift direct 1) / scale + constant */
static void project_weights(const SageSubject *node, int random, int side, size_t p,
                            SageParts *out) {
    const SageCodes *codes = &node->site->codes[side];
    const float *code = codes->value + codes->start[p];
    const double *direct = node->projected[random],
                 *b_dec = direct + node->site->n_union * node->width;
    double factor = codes->factor[p], shift = codes->shift[p], scale = (double)node->scale[side][p];
    size_t width = node->width;
    for (size_t o = 0; o < width; o++) {
        out->base[o] = (factor * b_dec[o] + shift * b_dec[width + o]) / scale + node->constant[o];
        for (size_t j = 0; j < out->n; j++) {
            out->c[j * width + o] =
                (double)code[j] * factor / scale * direct[out->feature[j] * width + o];
        }
    }
}

/* For z, attn_out and mlp_out: o - obar, what the node writes beside its training mean. */
static const double *written_apart(const SageSection *s, const SageSubject *node, int side,
                                   size_t p, ThreadWork *work) {
    const float *scale = node->scale[side] != NULL ? node->scale[side] + p : NULL;
    size_t d = s->llm->config.d_model;
    written(node, node->side[side] + p * node->width, scale, work->o, d);
    for (size_t i = 0; i < d; i++) {
        work->o[i] -= node->o_mean[i];
    }
    return work->o;
}

/* With o^ = obar + sum_j coefficient_j d_j in the stream, back at the node: a z by least squares
 * and its post-norm's scale, a block output as it is. */
static void bring_back(const SageSection *s, const SageSubject *node, int random, int side,
                       size_t p, const double *coefficient, SageParts *out) {
    size_t d = s->llm->config.d_model, width = node->width;
    double scale = node->scale[side] != NULL ? (double)node->scale[side][p] : 1.0;
    bool z = node->write != NULL;
    for (size_t j = 0; j < out->n; j++) {
        const double *recovered = z ? node->projected[random] + out->feature[j] * width : NULL;
        const float *row = node->site->rows[random] + out->feature[j] * d;
        for (size_t k = 0; k < width; k++) {
            out->c[j * width + k] =
                z ? coefficient[j] * scale * recovered[k] : coefficient[j] * (double)row[k];
        }
    }
    for (size_t k = 0; k < width; k++) {
        out->base[k] = z ? dot_of(node->direct + k * d, node->o_mean, d) * scale : node->o_mean[k];
    }
}

/* span: the orthogonal projection of o - obar onto the span of the active decoder rows
 *
 *   coefficient = argmin |o - obar - sum_j coefficient_j d_j|, of least norm
 *
 * An SAE's factor would multiply every d_j of a prompt alike, which moves no span. */
static void project_span(const SageSection *s, const SageSubject *node, int random, int side,
                         size_t p, SageParts *out, ThreadWork *work) {
    size_t d = s->llm->config.d_model;
    const double *o = written_apart(s, node, side, p, work);
    for (size_t j = 0; j < out->n; j++) {
        const float *row = node->site->rows[random] + out->feature[j] * d;
        for (size_t i = 0; i < d; i++) {
            work->columns[j * d + i] = (double)row[i];
        }
    }
    least_squares(work->coefficients, work->columns, o, d, out->n, span_cutoff, work->solve);
    bring_back(s, node, random, side, p, work->coefficients, out);
}

/* encoder: the encoder's own reading of what was written, w_j its column
 *
 *   coefficient_j = w_j . (o - obar)
 *
 * w_j acts on the stream as it is: o would enter divided by the SAE's factor and d_j come back
 * multiplied by it, which cancels, and a code by decoder norm has the norm that its row lost
 * (site_row). An SAE's scaling, folded into its weights or not, changes nothing. */
static void project_encoder(const SageSection *s, const SageSubject *node, int random, int side,
                            size_t p, SageParts *out, ThreadWork *work) {
    const Sae *sae = node->site->sae;
    const double *o = written_apart(s, node, side, p, work);
    for (size_t j = 0; j < out->n; j++) {
        size_t feature = node->site->feature[out->feature[j]];
        double sum = 0.0;
        for (size_t i = 0; i < sae->d_in; i++) {
            ptrdiff_t at = (ptrdiff_t)feature * sae->enc_feature + (ptrdiff_t)i * sae->enc_input;
            sum += o[i] * (double)weight_at(sae->w_enc, (size_t)at);
        }
        sum *= sae->mag_gain != NULL ? (double)sae->mag_gain[feature] : 1.0;
        sum *= sae->rescale_by_decoder_norm ? (double)sae->dec_norm[feature] : 1.0;
        work->coefficients[j] = sum;
    }
    bring_back(s, node, random, side, p, work->coefficients, out);
}

/* ==== reconstructions ==== */

/* supervised: c_i = u(i, v_i(p)), base = abar */
static void supervised_parts(const SageSection *s, const SageSubject *node, SageWay way, size_t p,
                             SageParts *out) {
    size_t d = node->width;
    out->n = s->task->n_attributes;
    out->feature = NULL;
    memcpy(out->base, node->mean, d * sizeof(double));
    for (size_t a = 0; a < out->n; a++) {
        const double *u = node->features[way] + value_row(s, SAGE_TEST, p, a) * d;
        memcpy(out->c + a * d, u, d * sizeof(double));
    }
}

/* How a method comes to a^ at a node. */
static SageWay way_of(const SageSection *s, const SageSubject *node, SageMethod method) {
    return method == SAGE_MEAN           ? SAGE_BY_MEAN
           : method == SAGE_MSE          ? SAGE_BY_MSE
           : method == SAGE_WEIGHTED     ? SAGE_BY_WEIGHTED
           : sage_node_reads(node->node) ? SAGE_BY_WEIGHTS
                                         : s->writes;
}

/* The parts of a^ of test prompt p, or of its counterfactual; of an SAE with its own decoder rows
 * or with random ones. */
static void parts_of(const SageSection *s, const SageSubject *node, SageWay way, int random,
                     int side, size_t p, ThreadWork *work) {
    const SageCodes *codes = &node->site->codes[side];
    SageParts *out = &work->parts[side];
    out->n = codes->start[p + 1] - codes->start[p];
    out->feature = codes->feature + codes->start[p];
    switch (way) {
    case SAGE_BY_WEIGHTS:
        project_weights(node, random, side, p, out);
        break;
    case SAGE_BY_SPAN:
        project_span(s, node, random, side, p, out, work);
        break;
    case SAGE_BY_ENCODER:
        project_encoder(s, node, random, side, p, out, work);
        break;
    default:
        supervised_parts(s, node, way, p, out);
    }
}

/* a^ = base + sum_j c_j, over the features that are not left out (NULL: all) */
static void reconstruct(const SageParts *parts, const bool *left_out, double *recon, size_t width) {
    for (size_t i = 0; i < width; i++) {
        recon[i] = parts->base[i];
        for (size_t j = 0; j < parts->n; j++) {
            recon[i] += left_out != NULL && left_out[j] ? 0.0 : parts->c[j * width + i];
        }
    }
}

static void recon_row(void *user, size_t p, int thread) {
    const Call *call = user;
    const SageSection *s = call->section;
    size_t width = call->node->width;
    ThreadWork *work = &s->work->thread[thread];
    parts_of(s, call->node, call->way, 0, SAGE_CLEAN, p, work);
    reconstruct(&work->parts[SAGE_CLEAN], NULL, work->recon, width);
    for (size_t i = 0; i < width; i++) {
        s->work->recon[p * width + i] = (float)work->recon[i];
    }
}

/* r2 = 1 - sum |a - a^|^2 / sum |a - abar|^2    over the test prompts */
static double r2_of(const SageSection *s, SageSubject *node, SageWay way) {
    double residual = 0.0, total = 0.0;
    Call call = {.section = s, .node = node, .way = way};
    compute_parallel(s->compute, s->n_test, recon_row, &call);
    for (size_t k = 0; k < s->n_test * node->width; k++) {
        double a = (double)node->side[SAGE_CLEAN][k];
        double e = a - (double)s->work->recon[k], m = a - node->mean[k % node->width];
        residual += e * e;
        total += m * m;
    }
    return total > 0.0 ? 1.0 - residual / total : NAN;
}

void sage_prepare(SageSection *s, SageFit *fits) {
    for (size_t i = 0; i < s->n_subjects; i++) {
        SageSubject *node = &s->subjects[i];
        SageFit *fit = &fits[i];
        bool reads = sage_node_reads(node->node);
        dictionary_mean(s, node);
        dictionary_mse(s, node);
        dictionary_weighted(s, node);
        if (reads) {
            read_map(s, node);
        } else if (node->write != NULL) {
            write_map(s, node);
        }
        if (node->direct != NULL) {
            Call call = {.section = s, .node = node};
            compute_parallel(s->compute, node->site->n_union + 2, project_row, &call);
        }
        if (!reads) {
            written_mean(s, node);
        }
        fit->mean = r2_of(s, node, SAGE_BY_MEAN);
        fit->mse = r2_of(s, node, SAGE_BY_MSE);
        fit->weighted = r2_of(s, node, SAGE_BY_WEIGHTED);
        fit->weights = reads ? r2_of(s, node, SAGE_BY_WEIGHTS) : NAN;
        fit->span = reads ? NAN : r2_of(s, node, SAGE_BY_SPAN);
        fit->encoder = reads ? NAN : r2_of(s, node, SAGE_BY_ENCODER);
        fit->sae = reads ? fit->weights : s->writes == SAGE_BY_SPAN ? fit->span : fit->encoder;
    }
}

/* ==== step 4: edits ==== */

/* Sparse edit (2405.08366, 3.3, 5.1): which few features, removed from a_s with their coefficients
 * or added with those they have in a_t, bring the edited activation nearest to a_t? Greedily, with
 * gap = edited - a_t and sign -1 of a removal, +1 of an addition, the choice of least
 *
 *   |gap + sign c|^2 - |gap|^2 = |c|^2 + 2 sign gap . c
 *
 * if that is below 0. Ties: removals first, then the lower index. The magnitude is the share of the
 * reconstruction that is taken away: of a removed c, c . sum / |sum|^2, sum = sum_j c_j of a_s.
 * False: none helps. */
bool sage_sparse_choose(SageSparse *e) {
    double best = 0.0;
    size_t choice = SIZE_MAX;
    for (size_t i = 0; i < e->removals + e->additions; i++) {
        double sign = i < e->removals ? -1.0 : 1.0;
        if (!e->spent[i]) {
            double dot = dot_of(e->gap, e->c + i * e->width, e->width);
            double change = e->squares[i] + 2.0 * sign * dot;
            choice = change < best ? i : choice;
            best = change < best ? change : best;
        }
    }
    if (choice == SIZE_MAX) {
        return false;
    }
    const double *c = e->c + choice * e->width;
    for (size_t i = 0; i < e->width; i++) {
        e->gap[i] += choice < e->removals ? -c[i] : c[i];
    }
    if (choice < e->removals && e->sum_square > 0.0) {
        e->magnitude += dot_of(c, e->sum, e->width) / e->sum_square;
    }
    e->spent[choice] = true;
    e->choices++;
    return true;
}

/* No choice yet; of the parts of both sides, whose c follow one another. */
static void sparse_start(SageSparse *e, const SageParts parts[SAGE_SIDES], const float *a_s,
                         const float *a_t, size_t width) {
    e->c = parts[SAGE_CLEAN].c;
    e->removals = parts[SAGE_CLEAN].n;
    e->additions = parts[SAGE_OTHER].n;
    e->width = width;
    e->choices = 0;
    e->magnitude = 0.0;
    for (size_t j = 0; j < e->removals + e->additions; j++) {
        e->squares[j] = dot_of(e->c + j * width, e->c + j * width, width);
    }
    for (size_t i = 0; i < width; i++) {
        e->sum[i] = 0.0;
        for (size_t j = 0; j < e->removals; j++) {
            e->sum[i] += e->c[j * width + i];
        }
        e->gap[i] = (double)a_s[i] - (double)a_t[i];
    }
    e->sum_square = dot_of(e->sum, e->sum, width);
}

/* Supervised edit (2405.08366, 4.2) of attribute A: one feature for another,
 *
 *   a - u(A, v) + u(A, v'),    magnitude u(A, v) . (a^ - abar) / |a^ - abar|^2
 *
 * and 0 where the features of a prompt cancel and their sum is rounding. */
static double supervised_edit(const SageSection *s, const SageSubject *node, SageWay way, size_t p,
                              const ThreadWork *work, float *out) {
    const SagePrompt *prompt = &s->task->prompts[SAGE_TEST][p];
    const SageParts *parts = &work->parts[SAGE_CLEAN];
    const float *a = node->side[SAGE_CLEAN] + p * node->width;
    size_t d = node->width, first = s->first_value[s->attribute];
    const double *old = node->features[way] + (first + prompt->values[s->attribute]) * d;
    const double *new = node->features[way] + (first + prompt->changed[s->attribute]) * d;
    double dot = 0.0, square = 0.0, squares = 0.0;
    for (size_t j = 0; j < parts->n; j++) {
        squares += dot_of(parts->c + j * d, parts->c + j * d, d);
    }
    for (size_t i = 0; i < d; i++) {
        double apart = work->recon[i] - node->mean[i];
        out[i] = (float)((double)a[i] - old[i] + new[i]);
        dot += old[i] * apart;
        square += apart * apart;
    }
    return square > dictionary_cutoff * squares ? dot / square : 0.0;
}

/* What an edit stands on: the parts of its method, a^ of its features, and a sparse edit of no
 * choice yet. With the features of one side of an F1 threshold alone (2405.08366, 5.1) the others
 * are left out of a^ and of the choices. last: the edit before, whose parts still stand if its
 * method is the same. */
static void edit_start(const SageSection *s, const SageSubject *node, const SageEdit *e,
                       const SageEdit *last, size_t p, ThreadWork *work) {
    bool sae = e->method == SAGE_SAE || e->method == SAGE_RANDOM, random = e->method == SAGE_RANDOM;
    size_t width = node->width, j = 0;
    SageParts *parts = work->parts;
    if (e->method != last->method) {
        parts[SAGE_OTHER].n = 0; /* supervised: none */
        parts_of(s, node, way_of(s, node, e->method), random, SAGE_CLEAN, p, work);
        parts[SAGE_OTHER].c = parts[SAGE_CLEAN].c + parts[SAGE_CLEAN].n * width;
        if (sae) {
            parts_of(s, node, way_of(s, node, e->method), random, SAGE_OTHER, p, work);
        }
    }
    for (int side = 0; side < SAGE_SIDES; side++) {
        for (size_t k = 0; k < parts[side].n; k++) {
            work->sparse.spent[j++] =
                e->subset != SAGE_ALL && (node->site->f1[parts[side].feature[k]] >=
                                          s->options->f1[e->f1]) != (e->subset == SAGE_ABOVE);
        }
    }
    reconstruct(&parts[SAGE_CLEAN], work->sparse.spent, work->recon, width);
    sparse_start(&work->sparse, parts, node->side[SAGE_CLEAN] + p * width,
                 node->side[SAGE_OTHER] + p * width, width);
}

/* a_t + gap after at most k choices, or the supervised edit; returns the magnitude. */
static double control_edit(const SageSection *s, const SageSubject *node, const SageEdit *e,
                           size_t p, ThreadWork *work, float *out) {
    const float *a_t = node->side[SAGE_OTHER] + p * node->width;
    SageSparse *sparse = &work->sparse;
    if (e->k == SAGE_KS) {
        return supervised_edit(s, node, way_of(s, node, e->method), p, work, out);
    }
    while (sparse->choices < sage_ks[e->k] && sage_sparse_choose(sparse)) {
    }
    for (size_t i = 0; i < node->width; i++) {
        out[i] = (float)((double)a_t[i] + sparse->gap[i]);
    }
    return sparse->magnitude;
}

/* What every edit puts in place of a, at one node of one prompt (2405.08366, 3.2, A.2):
 *
 *   target         a_t, the counterfactual's own
 *   ablated        abar
 *   sufficiency    a^
 *   necessity      abar + (a - a^)
 *
 * Edits of one method and one subset stand together, control by rising k, so that parts are formed
 * once and choices go on from those of the k before. */
static void edit_one(void *user, size_t task, int thread) {
    const SageSection *s = ((const Call *)user)->section;
    size_t n = task / s->n_test, p = task % s->n_test, width = s->subjects[n].width;
    const SageSubject *node = &s->subjects[n];
    const float *a = node->side[SAGE_CLEAN] + p * width, *a_t = node->side[SAGE_OTHER] + p * width;
    ThreadWork *work = &s->work->thread[thread];
    const SageEdit none = {.method = SAGE_NONE}, *last = &none;
    for (const SageEdit *e = s->edits; e < s->edits + s->n_edits; last = e++) {
        float *out = e->values[n] + p * width;
        if (e->method != last->method || e->subset != last->subset || e->f1 != last->f1) {
            edit_start(s, node, e, last, p, work);
        }
        if (e->test == SAGE_CONTROL) {
            e->magnitude[task] = control_edit(s, node, e, p, work, out);
            continue;
        }
        for (size_t i = 0; i < width; i++) {
            double recon = work->recon[i], mean = node->mean[i];
            out[i] = e->test == SAGE_TARGET        ? a_t[i]
                     : e->test == SAGE_ABLATED     ? (float)mean
                     : e->test == SAGE_SUFFICIENCY ? (float)recon
                                                   : (float)(mean + ((double)a[i] - recon));
        }
    }
}

void sage_edit(SageSection *s) {
    Call call = {.section = s};
    compute_parallel(s->compute, s->n_subjects * s->n_test, edit_one, &call);
}

/* ==== step 4: tests (2405.08366, 3.2 to 3.4, 5.1) ==== */

static const SageEdit *edit_find(const SageSection *s, SageMethod method, SageTest test) {
    const SageEdit *e = s->edits;
    while (e->method != method || e->test != test) {
        e++;
    }
    return e;
}

/* accuracy = share of test prompts whose most probable token is one of the answer's */
double sage_accuracy(const SageSection *s) {
    size_t right = 0;
    for (size_t p = 0; p < s->n_test; p++) {
        const SageForm *form = &s->task->prompts[SAGE_TEST][p].clean;
        bool hit = false;
        for (size_t i = 0; i < form->n_answer; i++) {
            hit |= form->answer[i] == s->predicted_clean[p];
        }
        right += hit ? 1 : 0;
    }
    return (double)right / (double)s->n_test;
}

/* score = share of test prompts whose most probable token is that of patching a_t in */
static double control_score(const SageSection *s, const int32_t *predicted) {
    const int32_t *target = edit_find(s, SAGE_NONE, SAGE_TARGET)->predicted;
    size_t same = 0;
    for (size_t p = 0; p < s->n_test; p++) {
        same += predicted[p] == target[p] ? 1 : 0;
    }
    return (double)same / (double)s->n_test;
}

/* magnitude = mean over nodes and prompts */
static double edit_magnitude(const SageSection *s, const SageEdit *e) {
    double sum = 0.0;
    for (size_t i = 0; i < s->n_subjects * s->n_test; i++) {
        sum += e->magnitude[i];
    }
    return sum / ((double)s->n_subjects * (double)s->n_test);
}

/* rescaled = (magnitude - s0) / (1 - s0): 0 for what the supervised edit (mean dictionary, s0)
 * takes away, 1 for all; undefined where that edit takes all away, as with a single attribute */
static SageControl control_of(const SageSection *s, const int32_t *predicted, double magnitude) {
    double s0 = edit_magnitude(s, edit_find(s, SAGE_MEAN, SAGE_CONTROL)), rest = 1.0 - s0;
    return (SageControl){control_score(s, predicted), magnitude,
                         fabs(rest) > rescale_cutoff ? (magnitude - s0) / rest : NAN};
}

/* With m summed over the test prompts under each edit (their number cancels):
 *
 *   sufficiency = m(a^) / m_clean
 *   necessity = 1 - |m_ablated - m(abar + a - a^)| / |m_ablated - m_clean| */
void sage_judge(const SageSection *s, SageCross *cross) {
    double ablated = edit_find(s, SAGE_NONE, SAGE_ABLATED)->m;
    cross->tests[SAGE_NONE].sufficiency = 1.0;
    for (size_t k = 0; k < SAGE_KS; k++) {
        cross->tests[SAGE_NONE].control[k] = control_of(s, s->predicted_clean, 0.0);
    }
    for (const SageEdit *e = s->edits; e < s->edits + s->n_edits; e++) {
        SageTests *tests =
            e->subset == SAGE_ALL
                ? &cross->tests[e->method]
                : &cross->f1[e->f1][e->method == SAGE_RANDOM][e->subset == SAGE_BELOW];
        if (e->test == SAGE_SUFFICIENCY) {
            tests->sufficiency = e->m / s->m_clean;
        } else if (e->test == SAGE_NECESSITY) {
            tests->necessity = 1.0 - fabs(ablated - e->m) / fabs(ablated - s->m_clean);
        } else if (e->test == SAGE_CONTROL) {
            SageControl control = control_of(s, e->predicted, edit_magnitude(s, e));
            *(e->k < SAGE_KS ? &tests->control[e->k] : &tests->supervised) = control;
        }
    }
}

/* ==== what features stand for (2405.08366, 3.4, A.12) ====
 *
 *   F1 = 2 precision recall / (precision + recall) = 2 both / (active + true)
 *
 * over the test prompts: in how many is the feature active, does the predicate hold, are both? */
static double f1_of(size_t both, size_t active, size_t holds) {
    return both > 0 ? 2.0 * (double)both / ((double)active + (double)holds) : 0.0;
}

/* counts[f + 1, v]: test prompts with value v of the attribute and value f of the form attribute;
 * counts[0, v]: with any; both: of them with the feature. */
static void count_values(const SageSection *s, size_t attribute, size_t forms) {
    const SageTask *task = s->task;
    size_t n = task->attributes[attribute].count;
    SageWork *work = s->work;
    memset(work->counts, 0, (forms + 1) * n * sizeof(size_t));
    memset(work->both, 0, (forms + 1) * n * sizeof(size_t));
    for (size_t p = 0; p < s->n_test; p++) {
        const size_t *values = task->prompts[SAGE_TEST][p].values, v = values[attribute];
        size_t hit = work->active[p] ? 1 : 0;
        work->counts[v]++;
        work->both[v] += hit;
        if (forms > 0) {
            size_t at = (values[task->form] + 1) * n + v;
            work->counts[at]++;
            work->both[at] += hit;
        }
    }
}

/* The unions of the first 2 .. 10 values by their own F1, never all of them. */
static void best_union(SagePredicate *best, size_t attribute, size_t n, const SageWork *work,
                       size_t active) {
    SagePredicate now = {.attribute = attribute};
    size_t holds = 0, hits = 0;
    while (now.n < SAGE_UNION && now.n + 1 < n) {
        size_t top = n;
        for (size_t v = 0; v < n; v++) {
            bool used = false;
            for (size_t k = 0; k < now.n; k++) {
                used |= now.values[k] == v;
            }
            if (!used && (top == n || f1_of(work->both[v], active, work->counts[v]) >
                                          f1_of(work->both[top], active, work->counts[top]))) {
                top = v;
            }
        }
        now.values[now.n++] = top;
        holds += work->counts[top];
        hits += work->both[top];
        now.f1 = f1_of(hits, active, holds);
        if (now.n >= 2 && now.f1 > best->f1) {
            *best = now;
        }
    }
}

/* Predicates: an attribute has a value; and the form attribute too; it has one of a union's. The
 * best is the feature's interpretation; of equal F1 the first: values before values with a form
 * before unions, by attribute, value and form. */
SagePredicate sage_predicate(const SageSection *s, const SageSite *site, size_t feature) {
    const SageTask *task = s->task;
    const SageCodes *codes = &site->codes[SAGE_CLEAN];
    SagePredicate one = {.f1 = -1.0}, form = one, several = one;
    size_t forms = task->form >= 0 ? task->attributes[task->form].count : 0, active = 0;
    for (size_t p = 0; p < s->n_test; p++) {
        s->work->active[p] = false;
        for (size_t i = codes->start[p]; i < codes->start[p + 1]; i++) {
            s->work->active[p] |= codes->feature[i] == feature;
        }
        active += s->work->active[p] ? 1 : 0;
    }
    for (size_t a = 0; a < task->n_attributes && active > 0; a++) {
        size_t n = task->attributes[a].count;
        count_values(s, a, forms);
        for (size_t v = 0; v < n; v++) {
            for (size_t f = 0; f <= ((int)a != task->form ? forms : 0); f++) {
                SagePredicate *best = f == 0 ? &one : &form;
                double f1 = f1_of(s->work->both[f * n + v], active, s->work->counts[f * n + v]);
                if (f1 > best->f1) {
                    *best = (SagePredicate){f1, a, 1, {v}, f > 0, f > 0 ? f - 1 : 0};
                }
            }
        }
        best_union(&several, a, n, s->work, active);
    }
    one = form.f1 > one.f1 ? form : one;
    return several.f1 > one.f1 ? several : one;
}

/* ==== what is tested, and the memory of it all ==== */

static void edit_add(SageSection *s, SageEdit edit) {
    if (s->edits != NULL) {
        s->edits[s->n_edits] = edit;
    }
    s->n_edits++;
}

/* All edits, in the order that edit_one needs. */
static void edits_list(SageSection *s) {
    s->n_edits = 0;
    edit_add(s, (SageEdit){.method = SAGE_NONE, .test = SAGE_TARGET});
    edit_add(s, (SageEdit){.method = SAGE_NONE, .test = SAGE_ABLATED});
    for (SageMethod method = SAGE_MEAN; method < SAGE_METHODS; method++) {
        bool sae = method == SAGE_SAE || method == SAGE_RANDOM;
        for (size_t subset = 0; subset < (sae ? 1 + 2 * s->options->n_f1 : 1); subset++) {
            SageEdit e = {.method = method, .f1 = subset > 0 ? (subset - 1) / 2 : 0};
            e.subset = subset == 0 ? SAGE_ALL : subset % 2 == 1 ? SAGE_ABOVE : SAGE_BELOW;
            e.test = SAGE_SUFFICIENCY;
            edit_add(s, e);
            e.test = SAGE_NECESSITY;
            edit_add(s, e);
            e.test = SAGE_CONTROL;
            for (e.k = sae ? 0 : SAGE_KS; e.k < (sae ? SAGE_KS : SAGE_KS + 1); e.k++) {
                edit_add(s, e);
            }
        }
    }
}

static void edits_layout(SageSection *s, Arena *arena) {
    edits_list(s);
    s->edits = arena_alloc(arena, s->n_edits, sizeof(SageEdit));
    edits_list(s);
    for (SageEdit *e = s->edits; e < s->edits + s->n_edits; e++) {
        e->values = arena_alloc(arena, s->n_subjects, sizeof(float *));
        for (size_t i = 0; i < s->n_subjects; i++) {
            e->values[i] = arena_floats(arena, s->n_test, s->subjects[i].width);
        }
        if (e->test == SAGE_CONTROL) {
            e->magnitude = arena_alloc(arena, s->n_subjects * s->n_test, sizeof(double));
        }
        if (e->test == SAGE_CONTROL || e->test == SAGE_TARGET) {
            e->predicted = arena_alloc(arena, s->n_test, sizeof(int32_t));
        }
    }
    s->predicted_clean = arena_alloc(arena, s->n_test, sizeof(int32_t));
}

static double *doubles(Arena *arena, size_t rows, size_t cols) {
    return arena_alloc(arena, size_product(rows, cols), sizeof(double));
}

static void subject_layout(const SageSection *s, SageSubject *node, Arena *arena) {
    size_t d = s->llm->config.d_model, width = node->width;
    bool reads = sage_node_reads(node->node), z = node->node->kind == HOOK_Z;
    node->mean = doubles(arena, 1, width);
    for (int k = 0; k < 3; k++) {
        node->features[k] = doubles(arena, s->n_values, width);
    }
    node->constant = reads ? doubles(arena, 1, width) : NULL;
    node->write = z ? doubles(arena, d, width) : NULL;
    node->o_mean = reads ? NULL : doubles(arena, 1, d);
    node->direct = reads || z ? doubles(arena, width, d) : NULL;
    for (int random = 0; random < 2 && node->direct != NULL; random++) {
        node->projected[random] = doubles(arena, node->site->n_union + 2, width);
    }
}

void sage_layout(SageSection *s, Arena *arena) {
    size_t d = s->llm->config.d_model, attributes = s->task->n_attributes, forms = 0, values = 0,
           width = 0, most = 0, threads = size_larger((size_t)s->compute->threads, 1);
    s->first_value = arena_alloc(arena, attributes, sizeof(size_t));
    for (size_t a = 0; a < attributes; a++) {
        s->first_value[a] = s->n_values;
        s->n_values += s->task->attributes[a].count;
        values = size_larger(s->task->attributes[a].count, values);
        forms = (int)a == s->task->form ? s->task->attributes[a].count : forms;
    }
    for (size_t i = 0; i < s->n_subjects; i++) {
        subject_layout(s, &s->subjects[i], arena);
        width = size_larger(s->subjects[i].width, width);
        most = size_larger(s->subjects[i].site->most, most);
    }
    for (size_t i = 0; i < s->n_sites; i++) {
        SageSite *site = &s->sites[i];
        site->f1 = doubles(arena, 1, site->n_union);
        site->rows[0] = arena_floats(arena, site->n_union, d);
        site->rows[1] = arena_floats(arena, site->n_union, d);
    }
    edits_layout(s, arena);
    SageWork *work = s->work = arena_alloc(arena, 1, sizeof(SageWork));
    work->thread = arena_alloc(arena, threads, sizeof(ThreadWork));
    for (ThreadWork *t = work->thread; t < work->thread + threads; t++) {
        size_t parts = size_larger(most, attributes); /* of an SAE, or supervised */
        t->parts[SAGE_CLEAN].c = doubles(arena, SAGE_SIDES * parts, width);
        t->parts[SAGE_CLEAN].base = doubles(arena, 1, width);
        t->parts[SAGE_OTHER].base = doubles(arena, 1, width);
        t->recon = doubles(arena, 1, width);
        t->sparse.squares = doubles(arena, SAGE_SIDES, parts);
        t->sparse.spent = arena_alloc(arena, SAGE_SIDES * parts, sizeof(bool));
        t->sparse.sum = doubles(arena, 1, width);
        t->sparse.gap = doubles(arena, 1, width);
        t->o = doubles(arena, 1, d);
        t->coefficients = doubles(arena, 1, most);
        t->columns = doubles(arena, d, most);
        t->solve = doubles(arena, 1, least_squares_work(d, most));
    }
    size_t solved = size_larger(s->n_values, s->llm->config.d_head);
    work->gram = doubles(arena, s->n_values, s->n_values);
    work->rhs = doubles(arena, s->n_values, width);
    work->solve = doubles(arena, solved, solved + 1);
    work->columns = doubles(arena, d, s->llm->config.d_head);
    work->recon = arena_floats(arena, s->n_test, width);
    work->active = arena_alloc(arena, s->n_test, sizeof(bool));
    work->counts = arena_alloc(arena, size_product(forms + 1, values), sizeof(size_t));
    work->both = arena_alloc(arena, size_product(forms + 1, values), sizeof(size_t));
}
