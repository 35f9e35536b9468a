/* sage_test.c: one attribute's cross-section under test (SAGE, steps 2 to 4).
 *
 * Supervised dictionaries, from the training activations A of a node:
 *   mean      u(i, v) = mean of a over prompts with v_i = v, minus the mean of all
 *   mse       U = (C^T C)^+ C^T (A - mean), C the one-hot matrix of all attribute values
 *   weighted  w_i u(i, v), w = argmin sum |a - mean - sum_i w_i u(i, v_i)|^2
 * Residual SAEs at a node: contributions c_j of the active features j, and what is constant, so
 * that a^ = base + sum c_j: weights   q, k, v: P(d) = W (d - mean(d)) w_ln / scale, the norm's
 * scale frozen at its true value span      z, attn_out, mlp_out: o - mean projected onto the span
 * of the active decoder rows encoder   the same nodes: (w_j . (o - mean)) d_j with o what the node
 * writes to the stream; z comes back from o by least squares. w_j is the encoder's column as it
 * acts on the stream: an SAE's scaling, of its input or of codes by decoder norms, that can be
 * folded into its weights changes nothing. */
#include "linalg.h"
#include "sage_run.h"

#include <math.h>
#include <string.h>

enum {
    PROJECT_WEIGHTS,
    PROJECT_SPAN,
    PROJECT_ENCODER
};
enum {
    SUFFICIENCY,
    NECESSITY,
    CONTROL
}; /* CONTROL + i: sage_ks[i] features, or the one supervised edit */

static const double dictionary_cutoff = 1e-10, span_cutoff = 1e-6, rescale_cutoff = 1e-9;

typedef struct Node {
    const SageNode *node;
    size_t width;
    bool reads;             /* q, k, v: reads the stream; else it writes to it */
    float *train, *side[2]; /* [prompts, width]: training; test and counterfactual activations */
    float *train_scale, *scale[2]; /* q, k, v: ln1's scale; z in Gemma-2: ln1_post's */
    double *mean, *features[3],
        *weight; /* [width]; [values, width] for mean, mse, weighted; [attributes] */
    Site *site;
    double *direct; /* q, k, v: [width, d_model] W diag(w_ln) C. z: the pseudo-inverse of `write` */
    double *write;  /* z: [d_model, width], z to o without the post-norm's scale */
    double *constant;     /* q, k, v: [width]: W b_ln + b */
    double *o_mean;       /* [d_model]: mean of o over training prompts */
    double *projected[2]; /* q, k, v, z: [n_union + 2, width]: `direct` of each row, of b_dec and of
                             ones */
} Node;

typedef struct Variant { /* one way to patch all nodes together */
    float **values;      /* [nodes]: [test prompts, width] */
    double *magnitude;   /* [nodes, test prompts], or NULL */
    int32_t *predicted;  /* [test prompts] */
    double m;            /* sum over test prompts */
} Variant;

typedef struct Test {
    Sage *sage;
    size_t attribute, n_train, n_test, n_values;
    size_t *value_offset; /* [attributes] */
    Node *nodes;
    size_t n_nodes;
    Site *sites;
    size_t n_sites;
    Arena *arena;
    int projection; /* for nodes that write */
    Variant *variants;
    size_t n_variants;
    double m_clean, supervised_magnitude; /* of the mean dictionary's edit */
    int32_t *predicted_clean;
    /* the parallel call that is under way */
    int random, part;
    double *scratch;
    size_t scratch_size;
    float *recon; /* [test prompts, width] */
    const Node *one;
} Test;

/* ---- layout of variants ---- */

enum {
    V_TARGET,
    V_ABLATED,
    V_SUPERVISED
}; /* then 3 x 3, then by SAE method, subset and test */

static size_t subsets(const Test *t) {
    return 1 + 2 * t->sage->options->n_f1;
}

static size_t sae_variant(const Test *t, int random, size_t subset, size_t test) {
    return V_SUPERVISED + 9 + ((size_t)random * subsets(t) + subset) * (CONTROL + SAGE_KS) + test;
}

/* Only control asks which token comes out on top. */
static bool variant_predicts(size_t v) {
    if (v < V_SUPERVISED) {
        return v == V_TARGET;
    }
    size_t i = v - V_SUPERVISED;
    return (i < 9 ? i % 3 : (i - 9) % (CONTROL + SAGE_KS)) >= CONTROL;
}

/* ---- supervised dictionaries ---- */

static size_t prompt_value(const Test *t, SageSplit split, size_t prompt, size_t attribute) {
    return t->value_offset[attribute] + t->sage->task.prompts[split][prompt].values[attribute];
}

static void dictionary_mean(const Test *t, Node *node) {
    size_t d = node->width, n_attributes = t->sage->task.n_attributes;
    double *u = node->features[0];
    for (size_t i = 0; i < d; i++) {
        for (size_t p = 0; p < t->n_train; p++) {
            node->mean[i] += (double)node->train[p * d + i];
        }
        node->mean[i] /= (double)t->n_train;
    }
    for (size_t a = 0; a < n_attributes; a++) {
        for (size_t v = 0; v < t->sage->task.attributes[a].count; v++) {
            double *row = u + (t->value_offset[a] + v) * d;
            size_t count = 0;
            for (size_t p = 0; p < t->n_train; p++) {
                if (prompt_value(t, SAGE_TRAIN, p, a) == t->value_offset[a] + v) {
                    count++;
                    for (size_t i = 0; i < d; i++) {
                        row[i] += (double)node->train[p * d + i];
                    }
                }
            }
            for (size_t i = 0; i < d && count > 0; i++) {
                row[i] = row[i] / (double)count - node->mean[i];
            }
        }
    }
}

static void dictionary_mse(const Test *t, Node *node) {
    size_t d = node->width, n = t->n_values, n_attributes = t->sage->task.n_attributes;
    Arena *scratch = arena_new();
    double *gram = arena_alloc(scratch, n * n, sizeof(double)),
           *rhs = arena_alloc(scratch, n * d, sizeof(double));
    double *work = arena_alloc(scratch, 2 * n * n + 2 * n, sizeof(double));
    for (size_t p = 0; p < t->n_train; p++) {
        for (size_t a = 0; a < n_attributes; a++) {
            size_t row = prompt_value(t, SAGE_TRAIN, p, a);
            for (size_t b = 0; b < n_attributes; b++) {
                gram[row * n + prompt_value(t, SAGE_TRAIN, p, b)] += 1.0;
            }
            for (size_t i = 0; i < d; i++) {
                rhs[row * d + i] += (double)node->train[p * d + i] - node->mean[i];
            }
        }
    }
    symmetric_solve(node->features[1], gram, rhs, n, d, dictionary_cutoff, work);
    arena_free(scratch);
}

static void dictionary_weighted(const Test *t, Node *node) {
    size_t d = node->width, n = t->sage->task.n_attributes;
    Arena *scratch = arena_new();
    double *gram = arena_alloc(scratch, n * n, sizeof(double)),
           *rhs = arena_alloc(scratch, n, sizeof(double));
    double *work = arena_alloc(scratch, 2 * n * n + 2 * n, sizeof(double));
    for (size_t p = 0; p < t->n_train; p++) {
        for (size_t a = 0; a < n; a++) {
            const double *u = node->features[0] + prompt_value(t, SAGE_TRAIN, p, a) * d;
            for (size_t b = 0; b < n; b++) {
                const double *other = node->features[0] + prompt_value(t, SAGE_TRAIN, p, b) * d;
                for (size_t i = 0; i < d; i++) {
                    gram[a * n + b] += u[i] * other[i];
                }
            }
            for (size_t i = 0; i < d; i++) {
                rhs[a] += u[i] * ((double)node->train[p * d + i] - node->mean[i]);
            }
        }
    }
    symmetric_solve(node->weight, gram, rhs, n, 1, dictionary_cutoff, work);
    for (size_t a = 0; a < n; a++) {
        for (size_t k = 0; k < t->sage->task.attributes[a].count * d; k++) {
            node->features[2][t->value_offset[a] * d + k] =
                node->weight[a] * node->features[0][t->value_offset[a] * d + k];
        }
    }
    arena_free(scratch);
}

/* a^ of test prompt p under supervised dictionary k. */
static void supervised_recon(const Test *t, const Node *node, int k, size_t p, double *out) {
    memcpy(out, node->mean, node->width * sizeof(double));
    for (size_t a = 0; a < t->sage->task.n_attributes; a++) {
        const double *u = node->features[k] + prompt_value(t, SAGE_TEST, p, a) * node->width;
        for (size_t i = 0; i < node->width; i++) {
            out[i] += u[i];
        }
    }
}

/* ---- sites: an SAE's codes at a position ---- */

bool sage_node_reads(const SageNode *node) {
    return node->kind == HOOK_Q || node->kind == HOOK_K || node->kind == HOOK_V;
}

typedef struct Place {
    HookKind kind;
    int layer;
} Place;

/* Where SAEs serve a node, the first first; returns how many. */
static size_t node_places(const LlmConfig *config, const SageNode *node, Place places[3]) {
    int l = node->layer, last = (int)config->n_layers - 1;
    size_t n = 0;
    if (sage_node_reads(node)) {
        places[n++] = (Place){HOOK_RESID_PRE, l};
        if (l > 0) {
            places[n++] = (Place){HOOK_RESID_POST, l - 1};
        } else if (config->rotary_dim >
                   0) { /* without learned positions the embedding enters layer 0 */
            places[n++] = (Place){HOOK_EMBED, -1};
        }
        return n;
    }
    if (node->kind != HOOK_MLP_OUT && !config->parallel) {
        places[n++] = (Place){HOOK_RESID_MID, l};
    }
    places[n++] = (Place){HOOK_RESID_POST, l};
    if (l < last) {
        places[n++] = (Place){HOOK_RESID_PRE, l + 1};
    }
    return n;
}

/* NULL: none of the SAEs serves the node. */
static const Sae *node_sae(const Sage *sage, const SageNode *node) {
    Place places[3];
    const Sae *sae = NULL;
    size_t n = node_places(&sage->llm.config, node, places);
    for (size_t i = 0; i < n && sae == NULL; i++) {
        sae = sae_set_find(&sage->saes, places[i].kind, places[i].layer);
    }
    return sae;
}

void sage_test_check(const Sage *sage, size_t attribute) {
    const SageCross *cross = &sage->result.cross[attribute];
    for (size_t i = 0; i < cross->n_nodes; i++) {
        const SageNode *node = &sage->result.nodes[cross->nodes[i]];
        Place places[3];
        char name[HOOK_NAME_MAX], wanted[3 * (HOOK_NAME_MAX + 4)] = "";
        if (node_sae(sage, node) != NULL) {
            continue;
        }
        for (size_t k = 0, n = node_places(&sage->llm.config, node, places); k < n; k++) {
            hook_name(name, places[k].kind, places[k].layer, false, false);
            strcat(strcat(wanted, k == 0 ? "" : k + 1 < n ? ", " : " or "), name);
        }
        hook_name(name, node->kind, node->layer, false, false);
        fail(STATUS_INPUT,
             "%s: no SAE of %s, which %s at '%s' in the cross-section of '%s' needs: add one, or "
             "search other "
             "nodes (--nodes %s)",
             sage->options->saes, wanted, name, sage->task.positions[node->position],
             sage->task.attributes[attribute].name, sage_node_reads(node) ? "z" : "q,k,v");
    }
}

/* ---- nodes: their maps to and from the stream ---- */

static void linear_row(const Matrix *m, size_t o, double *row) {
    for (size_t i = 0; i < m->in; i++) {
        row[i] = (double)weight_at(m->w, (size_t)((ptrdiff_t)o * m->row + (ptrdiff_t)i * m->col));
    }
}

static double norm_gain(const Sage *sage, const LlmNorm *norm, size_t i) {
    double w = (double)weight_at(norm->w, i);
    return sage->llm.config.kind == LLM_GEMMA2 ? 1.0 + w : w;
}

/* q, k, v: direct = W diag(w_ln) C (C the centring of LayerNorm) and constant = W b_ln + b. */
static void node_read_map(const Test *t, Node *node, Arena *arena) {
    const Sage *sage = t->sage;
    size_t d = sage->llm.config.d_model;
    Matrix w = llm_head_matrix(&sage->llm, (size_t)node->node->layer, node->node->kind,
                               (size_t)node->node->head);
    const LlmNorm *ln = &sage->llm.layers[node->node->layer].ln1;
    node->direct = arena_alloc(arena, node->width * d, sizeof(double));
    node->constant = arena_alloc(arena, node->width, sizeof(double));
    for (size_t o = 0; o < node->width; o++) {
        double *row = node->direct + o * d, mean = 0.0;
        linear_row(&w, o, row);
        node->constant[o] = w.bias.data != NULL ? (double)weight_at(w.bias, o) : 0.0;
        for (size_t i = 0; i < d; i++) {
            node->constant[o] += ln->b.data != NULL ? row[i] * (double)weight_at(ln->b, i) : 0.0;
            row[i] *= norm_gain(sage, ln, i);
            mean += row[i];
        }
        for (size_t i = 0; i < d && !sage->llm.config.rms_norm; i++) {
            row[i] -= mean / (double)d;
        }
    }
}

/* z: write = W_O (in Gemma-2 with the post-norm's gain, its scale aside; centred if the SAE's
 * stream is) and direct = its pseudo-inverse. */
static void node_write_map(const Test *t, Node *node, Arena *arena) {
    const Sage *sage = t->sage;
    size_t d = sage->llm.config.d_model, n = node->width;
    Matrix w =
        llm_head_matrix(&sage->llm, (size_t)node->node->layer, HOOK_Z, (size_t)node->node->head);
    const LlmNorm *post = &sage->llm.layers[node->node->layer].ln1_post;
    node->write = arena_alloc(arena, d * n, sizeof(double));
    node->direct = arena_alloc(arena, n * d, sizeof(double));
    double *columns = arena_alloc(arena, d * n, sizeof(double)),
           *work = arena_alloc(arena, n * n + n, sizeof(double));
    for (size_t o = 0; o < d; o++) {
        linear_row(&w, o, node->write + o * n);
        for (size_t i = 0; i < n && post->w.data != NULL; i++) {
            node->write[o * n + i] *= norm_gain(sage, post, o);
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
    pseudo_inverse(node->direct, columns, d, n, span_cutoff, work);
}

static bool node_is_z(const Node *node) {
    return node->node->kind == HOOK_Z;
}

/* o[d_model] of one activation with the post-norm's scale. */
static void node_written(const Test *t, const Node *node, const float *a, float scale, double *o) {
    size_t d = t->sage->llm.config.d_model;
    double mean = 0.0;
    for (size_t i = 0; i < d; i++) {
        o[i] = node_is_z(node) ? 0.0 : (double)a[i];
        for (size_t k = 0; node_is_z(node) && k < node->width; k++) {
            o[i] += node->write[i * node->width + k] * (double)a[k];
        }
        o[i] /= node_is_z(node) ? (double)scale : 1.0;
        mean += o[i] / (double)d;
    }
    for (size_t i = 0; i < d && node->site->sae->centre == SAE_CENTRE_YES && !node_is_z(node);
         i++) {
        o[i] -= mean;
    }
}

/* v[d_model] in the stream, back at the node: out[width]. */
static void node_recover(const Test *t, const Node *node, const double *v, float scale,
                         double *out) {
    size_t d = t->sage->llm.config.d_model;
    if (!node_is_z(node)) {
        memcpy(out, v, d * sizeof(double));
        return;
    }
    for (size_t k = 0; k < node->width; k++) {
        double sum = 0.0;
        for (size_t i = 0; i < d; i++) {
            sum += node->direct[k * d + i] * v[i];
        }
        out[k] = sum * (double)scale;
    }
}

static void node_o_mean(const Test *t, Node *node, double *scratch) {
    size_t d = t->sage->llm.config.d_model;
    for (size_t p = 0; p < t->n_train; p++) {
        float scale = node->train_scale != NULL ? node->train_scale[p] : 1.0f;
        node_written(t, node, node->train + p * node->width, scale, scratch);
        for (size_t i = 0; i < d; i++) {
            node->o_mean[i] += scratch[i];
        }
    }
    for (size_t i = 0; i < d; i++) {
        node->o_mean[i] /= (double)t->n_train;
    }
}

typedef struct ProjectCall {
    const Test *test;
    Node *node;
} ProjectCall;

/* `direct` of row u of the union, real and random; behind them of b_dec and of ones. */
static void project_row(void *user, size_t u, int thread) {
    ProjectCall *call = user;
    Node *node = call->node;
    const Sae *sae = node->site->sae;
    size_t d = sae->d_in, n = node->site->n_union;
    (void)thread;
    for (int random = 0; random < 2; random++) {
        for (size_t o = 0; o < node->width; o++) {
            double sum = 0.0;
            for (size_t i = 0; i < d; i++) {
                double x = u < n ? (double)node->site->rows[random][u * d + i]
                           : u == n
                               ? (sae->b_dec.data != NULL ? (double)weight_at(sae->b_dec, i) : 0.0)
                               : 1.0;
                sum += node->direct[o * d + i] * x;
            }
            node->projected[random][u * node->width + o] = sum;
        }
    }
}

/* ---- contributions ---- */

/* Doubles that contributions() needs beside its results. */
static size_t contribution_work(const Test *t, size_t most) {
    size_t d = t->sage->llm.config.d_model;
    return d + most + d * most + least_squares_work(d, most);
}

/* w_j . o. o enters scaled by 1 / factor and d_j comes back scaled by factor, which cancel; a code
 * by decoder norm has the norm that its decoder row lost (site_row). */
static double encoder_dot(const Sae *sae, size_t feature, const double *o, size_t d) {
    double sum = 0.0;
    for (size_t i = 0; i < d; i++) {
        sum += o[i] * (double)weight_at(sae->w_enc, (size_t)((ptrdiff_t)feature * sae->enc_feature +
                                                             (ptrdiff_t)i * sae->enc_input));
    }
    sum *= sae->mag_gain != NULL ? (double)sae->mag_gain[feature] : 1.0;
    return sae->rescale_by_decoder_norm ? sum * (double)sae->dec_norm[feature] : sum;
}

static void contributions(const Test *t, const Node *node, int projection, int random, int side,
                          size_t p, Contributions *out, double *work) {
    const Codes *codes = &node->site->codes[side];
    size_t first = codes->start[p], n = codes->start[p + 1] - first,
           d = t->sage->llm.config.d_model, width = node->width;
    const float *rows = node->site->rows[random];
    double factor = codes->factor[p], shift = codes->shift[p];
    float scale = node->scale[side] != NULL ? node->scale[side][p] : 1.0f;
    out->n = n;
    out->feature = codes->feature + first;
    if (node->reads) {
        const double *p0 = node->projected[random], *bias = p0 + node->site->n_union * width;
        for (size_t o = 0; o < width; o++) {
            out->base[o] =
                (factor * bias[o] + shift * bias[width + o]) / (double)scale + node->constant[o];
            for (size_t j = 0; j < n; j++) {
                out->c[j * width + o] = (double)codes->value[first + j] * factor / (double)scale *
                                        p0[out->feature[j] * width + o];
            }
        }
        return;
    }
    const double *recovered = node->projected[random];
    double *o = work, *beta = o + d, *columns = beta + n, *rest = columns + d * n;
    node_written(t, node, node->side[side] + p * width, scale, o);
    for (size_t i = 0; i < d; i++) {
        o[i] -= node->o_mean[i];
    }
    for (size_t j = 0; j < n; j++) {
        for (size_t i = 0; i < d; i++) {
            columns[j * d + i] = factor * (double)rows[out->feature[j] * d + i];
        }
    }
    if (projection == PROJECT_SPAN) {
        least_squares(beta, columns, o, d, n, span_cutoff, rest);
    }
    for (size_t j = 0; j < n; j++) {
        const float *row = rows + out->feature[j] * d;
        double coefficient =
            projection == PROJECT_SPAN
                ? beta[j] * factor
                : encoder_dot(node->site->sae, node->site->feature[out->feature[j]], o, d);
        for (size_t k = 0; k < width; k++) {
            out->c[j * width + k] = node_is_z(node) ? coefficient * (double)scale *
                                                          recovered[out->feature[j] * width + k]
                                                    : coefficient * (double)row[k];
        }
    }
    node_recover(t, node, node->o_mean, scale, out->base);
}

/* ---- sparse edits ---- */

static bool in_part(int part, double f1, double threshold) {
    return part == WHOLE || (part == ABOVE) == (f1 >= threshold);
}

static double dot_of(const double *a, const double *b, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

bool sage_edit_once(const Edit *e, double *gap, bool *used, double *magnitude) {
    double best = 0.0;
    size_t choice = SIZE_MAX, n = e->from->n + e->to->n;
    for (size_t i = 0; i < n; i++) {
        bool removal = i < e->from->n;
        const Contributions *side = removal ? e->from : e->to;
        size_t j = removal ? i : i - e->from->n;
        if (used[i] || !in_part(e->part, e->f1[side->feature[j]], e->threshold)) {
            continue;
        }
        double dot = dot_of(gap, side->c + j * e->width, e->width);
        double change = e->squares[i] + (removal ? -2.0 : 2.0) * dot;
        if (change < best) { /* ties: removals stand first, then the lower index */
            best = change;
            choice = i;
        }
    }
    if (choice == SIZE_MAX) {
        return false;
    }
    bool removal = choice < e->from->n;
    const double *c =
        removal ? e->from->c + choice * e->width : e->to->c + (choice - e->from->n) * e->width;
    used[choice] = true;
    for (size_t i = 0; i < e->width; i++) {
        gap[i] += removal ? -c[i] : c[i];
    }
    if (removal && e->sum_square > 0.0) {
        *magnitude += dot_of(c, e->sum, e->width) / e->sum_square;
    }
    return true;
}

/* All variants of one node and prompt under one SAE method. */
static void sae_edits(const Test *t, size_t node_index, int random, size_t p, double *work) {
    const Node *node = &t->nodes[node_index];
    size_t width = node->width, most = node->site->most;
    const float *a_s = node->side[CLEAN] + p * width, *a_t = node->side[OTHER] + p * width;
    Contributions from = {.c = work, .base = work + most * width};
    Contributions to = {.c = from.base + width, .base = from.base + width + most * width};
    double *gap = to.base + width, *sum = gap + width, *squares = sum + width,
           *rest = squares + 2 * most;
    bool *used = (bool *)rest;
    rest += 2 * most / sizeof(double) + 1;
    contributions(t, node, t->projection, random, CLEAN, p, &from, rest);
    contributions(t, node, t->projection, random, OTHER, p, &to, rest);
    memset(sum, 0, width * sizeof(double));
    for (size_t j = 0; j < from.n; j++) {
        squares[j] = dot_of(from.c + j * width, from.c + j * width, width);
        for (size_t i = 0; i < width; i++) {
            sum[i] += from.c[j * width + i];
        }
    }
    for (size_t j = 0; j < to.n; j++) {
        squares[from.n + j] = dot_of(to.c + j * width, to.c + j * width, width);
    }
    for (size_t subset = 0; subset < subsets(t); subset++) {
        Edit edit = {.from = &from,
                     .to = &to,
                     .width = width,
                     .squares = squares,
                     .sum = sum,
                     .sum_square = dot_of(sum, sum, width),
                     .f1 = node->site->f1,
                     .threshold = subset == 0 ? 0.0 : t->sage->options->f1[(subset - 1) / 2],
                     .part = subset == 0             ? WHOLE
                             : (subset - 1) % 2 == 0 ? ABOVE
                                                     : BELOW};
        const Variant *v = &t->variants[sae_variant(t, random, subset, 0)];
        float *sufficiency = v[SUFFICIENCY].values[node_index] + p * width,
              *necessity = v[NECESSITY].values[node_index] + p * width;
        for (size_t i = 0; i < width; i++) {
            double recon = from.base[i];
            for (size_t j = 0; j < from.n; j++) {
                recon += in_part(edit.part, edit.f1[from.feature[j]], edit.threshold)
                             ? from.c[j * width + i]
                             : 0.0;
            }
            sufficiency[i] = (float)recon;
            necessity[i] = (float)(node->mean[i] + ((double)a_s[i] - recon));
            gap[i] = (double)a_s[i] - (double)a_t[i];
        }
        memset(used, 0, (from.n + to.n) * sizeof(bool));
        double magnitude = 0.0;
        bool helps = true;
        for (size_t k = 0, done = 0; k < SAGE_KS; k++) {
            for (; helps && done < sage_ks[k]; done++) {
                helps = sage_edit_once(&edit, gap, used, &magnitude);
            }
            float *control = v[CONTROL + k].values[node_index] + p * width;
            for (size_t i = 0; i < width; i++) {
                control[i] = (float)((double)a_t[i] + gap[i]);
            }
            v[CONTROL + k].magnitude[node_index * t->n_test + p] = magnitude;
        }
    }
}

static size_t edit_work(const Test *t, const Node *node) {
    size_t most = node->site->most;
    return 2 * most * node->width + 4 * node->width + 2 * most + 2 * most / sizeof(double) + 1 +
           contribution_work(t, most);
}

static void edit_task(void *user, size_t i, int thread) {
    const Test *t = user;
    sae_edits(t, i / t->n_test, t->random, i % t->n_test,
              t->scratch + (size_t)thread * t->scratch_size);
}

/* ---- reconstruction alone, for r2 ---- */

static void recon_task(void *user, size_t p, int thread) {
    Test *t = user;
    const Node *node = t->one;
    double *work = t->scratch + (size_t)thread * t->scratch_size;
    Contributions c = {.c = work, .base = work + node->site->most * node->width};
    contributions(t, node, t->part, 0, CLEAN, p, &c, c.base + node->width);
    for (size_t i = 0; i < node->width; i++) {
        double sum = c.base[i];
        for (size_t j = 0; j < c.n; j++) {
            sum += c.c[j * node->width + i];
        }
        t->recon[p * node->width + i] = (float)sum;
    }
}

/* 1 - sum |a - a^|^2 / sum |a - mean|^2 over the test prompts. */
static double r2_of(const Test *t, const Node *node, const float *recon) {
    double residual = 0.0, total = 0.0;
    for (size_t k = 0; k < t->n_test * node->width; k++) {
        double a = (double)node->side[CLEAN][k], e = a - (double)recon[k],
               m = a - node->mean[k % node->width];
        residual += e * e;
        total += m * m;
    }
    return total > 0.0 ? 1.0 - residual / total : NAN;
}

static double projection_r2(Test *t, const Node *node, int projection) {
    t->one = node;
    t->part = projection;
    compute_parallel(t->sage->compute, t->n_test, recon_task, t);
    return r2_of(t, node, t->recon);
}

/* ---- opening ---- */

static void capture_all(Test *t) {
    Sage *sage = t->sage;
    size_t d = sage->llm.config.d_model, n_slices = 0;
    Slice *train = arena_alloc(t->arena, 2 * t->n_nodes, sizeof(Slice));
    Slice *side[2] = {arena_alloc(t->arena, 3 * t->n_nodes, sizeof(Slice)),
                      arena_alloc(t->arena, 3 * t->n_nodes, sizeof(Slice))};
    size_t n_train = 0;
    Slice *stream[2];
    for (size_t i = 0; i < t->n_nodes; i++) {
        Node *node = &t->nodes[i];
        const SageNode *n = node->node;
        bool post = n->kind == HOOK_Z && sage->llm.config.kind == LLM_GEMMA2;
        HookKind scale = node->reads ? HOOK_LN1_SCALE : HOOK_LN1_POST_SCALE;
        train[n_train++] = sage_slice(sage, n, node->train, false);
        if (post) {
            train[n_train++] =
                (Slice){scale, n->layer, -1, n->position, 1, false, false, node->train_scale};
        }
        for (int s = 0; s < 2; s++) {
            side[s][n_slices] = sage_slice(sage, n, node->side[s], false);
            if (post || node->reads) {
                side[s][n_slices + 1] =
                    (Slice){scale, n->layer, -1, n->position, 1, false, false, node->scale[s]};
            }
        }
        n_slices += post || node->reads ? 2 : 1;
    }
    for (int s = 0; s < 2; s++) { /* what the SAEs read */
        stream[s] = side[s] + n_slices;
        for (size_t i = 0; i < t->n_sites; i++) {
            const Sae *sae = t->sites[i].sae;
            float *x = arena_alloc(t->arena, t->n_test * d, sizeof(float));
            stream[s][i] =
                (Slice){sae->hook, sae->layer, -1, t->sites[i].position, d, false, false, x};
        }
    }
    sage_capture(sage, SAGE_TRAIN, -1, train, n_train);
    sage_capture(sage, SAGE_TEST, -1, side[CLEAN], n_slices + t->n_sites);
    sage_capture(sage, SAGE_TEST, (int)t->attribute, side[OTHER], n_slices + t->n_sites);
    for (size_t i = 0; i < t->n_sites; i++) {
        for (int s = 0; s < 2; s++) {
            sage_site_encode(sage, &t->sites[i], s, stream[s][i].values, t->arena);
        }
        sage_site_union(sage, &t->sites[i], t->arena);
        sage_site_interpret(sage, &t->sites[i]);
    }
}

static void note_sae(Sage *sage, const Sae *sae) {
    SageResult *r = &sage->result;
    char hook[HOOK_NAME_MAX];
    hook_name(hook, sae->hook, sae->layer, false, false);
    char *text = arena_format(sage->arena, "%s: %s (%s, %zu features)", hook, sae->path,
                              sae_source_name(sae->source), sae->d_sae);
    if (r->sae_names == NULL) {
        r->sae_names = arena_alloc(sage->arena, sage->saes.count, sizeof(char *));
    }
    for (size_t i = 0; i < r->n_saes; i++) {
        if (strcmp(r->sae_names[i], text) == 0) {
            return;
        }
    }
    r->sae_names[r->n_saes++] = text;
}

static void open_nodes(Test *t) {
    Sage *sage = t->sage;
    SageCross *cross = &sage->result.cross[t->attribute];
    Arena *arena = t->arena;
    size_t d = sage->llm.config.d_model, n_attributes = sage->task.n_attributes;
    t->n_nodes = cross->n_nodes;
    t->nodes = arena_alloc(arena, t->n_nodes, sizeof(Node));
    t->sites = arena_alloc(arena, t->n_nodes, sizeof(Site));
    t->value_offset = arena_alloc(arena, n_attributes, sizeof(size_t));
    cross->fits = arena_alloc(sage->arena, t->n_nodes, sizeof(SageFit));
    cross->f1 = arena_alloc(sage->arena, sage->options->n_f1 + 1, sizeof *cross->f1);
    for (size_t a = 0; a < n_attributes; a++) {
        t->value_offset[a] = t->n_values;
        t->n_values += sage->task.attributes[a].count;
    }
    for (size_t i = 0; i < t->n_nodes; i++) {
        Node *node = &t->nodes[i];
        node->node = &sage->result.nodes[cross->nodes[i]];
        node->width = sage_width(sage, node->node->kind);
        node->reads = sage_node_reads(node->node);
        const Sae *sae = node_sae(sage, node->node);
        note_sae(sage, sae);
        for (size_t s = 0; s < t->n_sites; s++) {
            node->site = t->sites[s].sae == sae && t->sites[s].position == node->node->position
                             ? &t->sites[s]
                             : node->site;
        }
        if (node->site == NULL) {
            node->site = &t->sites[t->n_sites++];
            *node->site = (Site){.sae = sae, .position = node->node->position};
        }
        node->train = arena_alloc(arena, t->n_train * node->width, sizeof(float));
        node->train_scale = arena_alloc(arena, t->n_train, sizeof(float));
        for (int s = 0; s < 2; s++) {
            node->side[s] = arena_alloc(arena, t->n_test * node->width, sizeof(float));
            node->scale[s] = arena_alloc(arena, t->n_test, sizeof(float));
        }
        node->mean = arena_alloc(arena, node->width, sizeof(double));
        for (int k = 0; k < 3; k++) {
            node->features[k] = arena_alloc(arena, t->n_values * node->width, sizeof(double));
        }
        node->weight = cross->fits[i].w = arena_alloc(sage->arena, n_attributes, sizeof(double));
        node->o_mean = arena_alloc(arena, d, sizeof(double));
    }
}

/* Maps and dictionaries of each node, once its activations are there. */
static void prepare_node(Test *t, Node *node) {
    bool scaled = node->reads || (node_is_z(node) && t->sage->llm.config.kind == LLM_GEMMA2);
    dictionary_mean(t, node);
    dictionary_mse(t, node);
    dictionary_weighted(t, node);
    if (!scaled) {
        node->train_scale = node->scale[CLEAN] = node->scale[OTHER] = NULL;
    }
    if (node->reads) {
        node_read_map(t, node, t->arena);
    } else if (node_is_z(node)) {
        node_write_map(t, node, t->arena);
    }
    if (node->direct != NULL) {
        size_t rows = node->site->n_union + 2;
        for (int random = 0; random < 2; random++) {
            node->projected[random] = arena_alloc(t->arena, rows * node->width, sizeof(double));
        }
        ProjectCall call = {t, node};
        compute_parallel(t->sage->compute, rows, project_row, &call);
    }
    if (node->reads) {
        return;
    }
    double *scratch = arena_alloc(t->arena, t->sage->llm.config.d_model, sizeof(double));
    node_o_mean(t, node, scratch);
}

/* ---- variants ---- */

static void open_variants(Test *t) {
    size_t widest = 0,
           threads = t->sage->compute->threads > 0 ? (size_t)t->sage->compute->threads : 1;
    t->n_variants = sae_variant(t, 2, 0, 0);
    t->variants = arena_alloc(t->arena, t->n_variants, sizeof(Variant));
    t->predicted_clean = arena_alloc(t->arena, t->n_test, sizeof(int32_t));
    for (size_t v = 0; v < t->n_variants; v++) {
        t->variants[v].values = arena_alloc(t->arena, t->n_nodes, sizeof(float *));
        t->variants[v].predicted =
            variant_predicts(v) ? arena_alloc(t->arena, t->n_test, sizeof(int32_t)) : NULL;
        t->variants[v].magnitude = arena_alloc(t->arena, t->n_nodes * t->n_test, sizeof(double));
        for (size_t i = 0; i < t->n_nodes; i++) {
            t->variants[v].values[i] =
                arena_alloc(t->arena, t->n_test * t->nodes[i].width, sizeof(float));
        }
    }
    for (size_t i = 0; i < t->n_nodes; i++) {
        size_t work = edit_work(t, &t->nodes[i]);
        t->scratch_size = work > t->scratch_size ? work : t->scratch_size;
        widest = t->nodes[i].width > widest ? t->nodes[i].width : widest;
    }
    t->scratch = arena_alloc(t->arena, threads * t->scratch_size, sizeof(double));
    t->recon = arena_alloc(t->arena, t->n_test * widest, sizeof(float));
}

/* a - u(i, v) + u(i, v') and the size of what is taken away: 0 where the features of a prompt
 * cancel and their sum is rounding. */
static void supervised_edits(Test *t, size_t node_index, int k, size_t p) {
    const Node *node = &t->nodes[node_index];
    const SagePrompt *prompt = &t->sage->task.prompts[SAGE_TEST][p];
    size_t width = node->width, offset = t->value_offset[t->attribute];
    const float *clean = node->side[CLEAN] + p * width;
    const double *old = node->features[k] + (offset + prompt->values[t->attribute]) * width;
    const double *new = node->features[k] + (offset + prompt->changed[t->attribute]) * width;
    double *recon = t->scratch, dot = 0.0, square = 0.0, parts = 0.0;
    Variant *v = &t->variants[V_SUPERVISED + 3 * k];
    supervised_recon(t, node, k, p, recon);
    for (size_t a = 0; a < t->sage->task.n_attributes; a++) {
        const double *u = node->features[k] + prompt_value(t, SAGE_TEST, p, a) * width;
        parts += dot_of(u, u, width);
    }
    for (size_t i = 0; i < width; i++) {
        v[SUFFICIENCY].values[node_index][p * width + i] = (float)recon[i];
        v[NECESSITY].values[node_index][p * width + i] =
            (float)(node->mean[i] + ((double)clean[i] - recon[i]));
        v[CONTROL].values[node_index][p * width + i] = (float)((double)clean[i] - old[i] + new[i]);
        dot += old[i] * (recon[i] - node->mean[i]);
        square += (recon[i] - node->mean[i]) * (recon[i] - node->mean[i]);
    }
    v[CONTROL].magnitude[node_index * t->n_test + p] =
        square > dictionary_cutoff * parts ? dot / square : 0.0;
}

static void make_edits(Test *t) {
    SageCross *cross = &t->sage->result.cross[t->attribute];
    for (size_t i = 0; i < t->n_nodes; i++) {
        const Node *node = &t->nodes[i];
        SageFit *fit = &cross->fits[i];
        memcpy(t->variants[V_TARGET].values[i], node->side[OTHER],
               t->n_test * node->width * sizeof(float));
        for (size_t k = 0; k < t->n_test * node->width; k++) {
            t->variants[V_ABLATED].values[i][k] = (float)node->mean[k % node->width];
        }
        for (int k = 0; k < 3; k++) {
            for (size_t p = 0; p < t->n_test; p++) {
                supervised_edits(t, i, k, p);
            }
        }
        fit->mean = r2_of(t, node, t->variants[V_SUPERVISED + 0 + SUFFICIENCY].values[i]);
        fit->mse = r2_of(t, node, t->variants[V_SUPERVISED + 3 + SUFFICIENCY].values[i]);
        fit->weighted = r2_of(t, node, t->variants[V_SUPERVISED + 6 + SUFFICIENCY].values[i]);
        fit->weights = node->reads ? projection_r2(t, node, PROJECT_WEIGHTS) : NAN;
        fit->span = node->reads ? NAN : projection_r2(t, node, PROJECT_SPAN);
        fit->encoder = node->reads ? NAN : projection_r2(t, node, PROJECT_ENCODER);
        fit->sae = node->reads                     ? fit->weights
                   : t->projection == PROJECT_SPAN ? fit->span
                                                   : fit->encoder;
    }
    for (t->random = 0; t->random < 2; t->random++) {
        compute_parallel(t->sage->compute, t->n_nodes * t->n_test, edit_task, t);
    }
}

/* Every variant over the test prompts, batch by batch, from the cross-section's first layer on. */
static void run_variants(Test *t) {
    Sage *sage = t->sage;
    size_t n_slices = 0;
    Slice *slices = arena_alloc(t->arena, t->n_nodes, sizeof(Slice));
    size_t *order = arena_alloc(t->arena, t->n_nodes, sizeof(size_t));
    double *m = arena_alloc(t->arena, sage->batch, sizeof(double));
    for (size_t p = 0; p < sage->task.n_positions;
         p++) { /* of two names of one token the later wins */
        for (size_t i = 0; i < t->n_nodes; i++) {
            if (t->nodes[i].node->position == p) {
                order[n_slices++] = i;
            }
        }
    }
    Progress progress = progress_start("testing", "prompts", 0, t->n_test, sage->console->quiet);
    for (size_t first = 0; first < t->n_test; first += sage->batch) {
        size_t n = t->n_test - first < sage->batch ? t->n_test - first : sage->batch;
        sage_batch(sage, SAGE_TEST, -1, first, n);
        sage_streams(sage, m, t->predicted_clean + first);
        for (size_t s = 0; s < n; s++) {
            t->m_clean += m[s];
        }
        for (size_t v = 0; v < t->n_variants; v++) {
            for (size_t i = 0; i < t->n_nodes; i++) {
                slices[i] = sage_slice(sage, t->nodes[order[i]].node,
                                       t->variants[v].values[order[i]], true);
            }
            int32_t *predicted = t->variants[v].predicted;
            sage_patch(sage, slices, t->n_nodes, m, predicted != NULL ? predicted + first : NULL);
            for (size_t s = 0; s < n; s++) {
                t->variants[v].m += m[s];
            }
        }
        progress_set(&progress, first + n, NULL);
    }
    progress_end(&progress);
}

/* ---- figures of merit ---- */

/* The rescaled magnitude is 0 for what the supervised edit (mean dictionary) takes away and 1 for
 * all; undefined where that edit takes all away, as with a single attribute. */
static SageControl control_of(const Test *t, const Variant *v) {
    size_t same = 0;
    double magnitude = 0.0;
    for (size_t p = 0; p < t->n_test; p++) {
        same += v->predicted[p] == t->variants[V_TARGET].predicted[p] ? 1 : 0;
    }
    for (size_t i = 0; i < t->n_nodes * t->n_test; i++) {
        magnitude += v->magnitude[i];
    }
    magnitude /= (double)t->n_nodes * (double)t->n_test;
    double rest = 1.0 - t->supervised_magnitude;
    return (SageControl){(double)same / (double)t->n_test, magnitude,
                         fabs(rest) > rescale_cutoff ? (magnitude - t->supervised_magnitude) / rest
                                                     : NAN};
}

/* sufficiency: m with a^ over m clean. necessity: 1 - |m_abl - m_int| / |m_abl - m_clean|. */
static SageTests tests_of(const Test *t, const Variant *v, size_t n_control) {
    SageTests out = {0};
    double ablated = t->variants[V_ABLATED].m;
    out.sufficiency = v[SUFFICIENCY].m / t->m_clean;
    out.necessity = 1.0 - fabs(ablated - v[NECESSITY].m) / fabs(ablated - t->m_clean);
    for (size_t k = 0; k < n_control; k++) {
        out.control[k] = control_of(t, &v[CONTROL + k]);
    }
    out.supervised = n_control == 1 ? out.control[0] : (SageControl){NAN, NAN, NAN};
    return out;
}

static void write_tests(Test *t) {
    SageCross *cross = &t->sage->result.cross[t->attribute];
    Variant none = {.predicted = t->predicted_clean, .magnitude = t->variants[V_TARGET].magnitude};
    t->supervised_magnitude = control_of(t, &t->variants[V_SUPERVISED + CONTROL]).magnitude;
    cross->tests[SAGE_NONE] = (SageTests){.sufficiency = 1.0, .necessity = 0.0};
    for (size_t k = 0; k < SAGE_KS; k++) {
        cross->tests[SAGE_NONE].control[k] = control_of(t, &none); /* its magnitudes are 0 */
    }
    for (int k = 0; k < 3; k++) {
        cross->tests[SAGE_MEAN + k] = tests_of(t, &t->variants[V_SUPERVISED + 3 * k], 1);
    }
    for (int random = 0; random < 2; random++) {
        cross->tests[SAGE_SAE + random] =
            tests_of(t, &t->variants[sae_variant(t, random, 0, 0)], SAGE_KS);
        for (size_t f = 0; f < t->sage->options->n_f1; f++) {
            for (size_t part = 0; part < 2; part++) {
                cross->f1[f][random][part] =
                    tests_of(t, &t->variants[sae_variant(t, random, 1 + 2 * f + part, 0)], SAGE_KS);
            }
        }
    }
}

bool sage_test_options(const SageOptions *options) {
    enum {
        AUTO,
        WEIGHTS,
        SPAN,
        ENCODER,
        NAMES
    };
    static const char *const names[NAMES] = {"auto", "weights", "span", "encoder"};
    size_t writes = NAMES; /* the first that says how nodes that write are reached */
    for (const char *list = options->projection; list != NULL;) {
        size_t name = sage_list_next(&list, names, NAMES);
        if (name == NAMES) {
            fail(STATUS_INPUT, "--projection %s: expected auto, or some of weights,span,encoder",
                 options->projection);
        }
        writes = writes == NAMES && name != WEIGHTS ? name : writes;
    }
    return writes == ENCODER;
}

static void test_all(Test *t) {
    t->projection = sage_test_options(t->sage->options) ? PROJECT_ENCODER : PROJECT_SPAN;
    open_nodes(t);
    capture_all(t);
    for (size_t i = 0; i < t->n_nodes; i++) {
        prepare_node(t, &t->nodes[i]);
    }
    open_variants(t);
    make_edits(t);
    run_variants(t);
    write_tests(t);
}

void sage_test_attribute(Sage *sage, size_t attribute) {
    Test t = {.sage = sage,
              .attribute = attribute,
              .n_train = sage->task.n_prompts[SAGE_TRAIN],
              .n_test = sage->task.n_prompts[SAGE_TEST]};
    t.arena = arena_new();
    test_all(&t);
    arena_free(t.arena);
}
