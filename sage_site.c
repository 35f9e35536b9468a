/* sage_site.c: an SAE at a named position: what is active there on the test prompts, the decoder
 * rows of those features (and random ones of equal norms), and what they stand for by F1. */
#include "sage_run.h"

#include <math.h>
#include <string.h>

enum {
    UNION_MAX = 10
};

/* ---- codes ---- */

typedef struct Active {
    uint32_t feature;
    float value;
} Active;

/* Encodes x[prompts, d_in] and keeps what is active; features by their number in the SAE until the
 * union is known. */
void sage_site_encode(Sage *sage, Site *site, int side, const float *x, Arena *arena) {
    size_t n_test = sage->task.n_prompts[SAGE_TEST], n = 0, capacity = 0;
    const Sae *sae = site->sae;
    enum {
        CHUNK = 32
    };
    Codes *codes = &site->codes[side];
    Active *active = NULL;
    Arena *scratch = arena_new();
    SaeRun *run = sae_run_layout(sage->compute, sae->d_in, sae->d_sae, CHUNK, scratch);
    float *acts = arena_alloc(scratch, CHUNK * sae->d_sae, sizeof(float));
    codes->start = arena_alloc(arena, n_test + 1, sizeof(size_t));
    codes->factor = arena_alloc(arena, n_test, sizeof(double));
    codes->shift = arena_alloc(arena, n_test, sizeof(double));
    for (size_t first = 0; first < n_test; first += CHUNK) {
        size_t rows = n_test - first < CHUNK ? n_test - first : CHUNK;
        sae_encode(sae, run, x + first * sae->d_in, NULL, acts, rows);
        for (size_t r = 0; r < rows; r++) {
            size_t begin = codes->start[first + r] = n;
            sae_row_back(sae, run, r, &codes->factor[first + r], &codes->shift[first + r]);
            for (size_t j = 0; j < sae->d_sae; j++) {
                float value = acts[r * sae->d_sae + j];
                if (value != 0.0f) {
                    active = arena_grow(scratch, active, &capacity, n + 1, sizeof *active);
                    active[n++] = (Active){(uint32_t)j, value};
                }
            }
            site->most = n - begin > site->most ? n - begin : site->most;
        }
    }
    codes->start[n_test] = n;
    codes->feature = arena_alloc(arena, n, sizeof(uint32_t));
    codes->value = arena_alloc(arena, n, sizeof(float));
    for (size_t i = 0; i < n; i++) {
        codes->feature[i] = active[i].feature;
        codes->value[i] = active[i].value;
    }
    arena_free(scratch);
}

/* Gaussian direction j of the random SAE: elements j d_in .. of one long row of pairs. */
static void random_row(const Sage *sage, const Sae *sae, size_t j, float *row) {
    uint64_t layer = (uint64_t)(sae->layer < 0 ? 0 : sae->layer);
    Random random = random_start(sage->options->seed, RANDOM_SAGE_DECODER + (layer << 32));
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

static double row_norm(const float *row, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)row[i] * (double)row[i];
    }
    return sqrt(sum);
}

typedef struct RowCall {
    const Sage *sage;
    Site *site;
} RowCall;

/* Decoder row u of the union and its random counterpart; a choice by decoder norm divides both. */
static void site_row(void *user, size_t u, int thread) {
    RowCall *call = user;
    const Sae *sae = call->site->sae;
    size_t j = call->site->feature[u], d = sae->d_in;
    float *real = call->site->rows[0] + u * d, *random = call->site->rows[1] + u * d;
    (void)thread;
    for (size_t i = 0; i < d; i++) {
        real[i] = weight_at(
            sae->w_dec, (size_t)((ptrdiff_t)j * sae->dec_feature + (ptrdiff_t)i * sae->dec_input));
    }
    random_row(call->sage, sae, j, random);
    double length = row_norm(random, d), factor = length > 0.0 ? row_norm(real, d) / length : 0.0;
    for (size_t i = 0; i < d; i++) {
        random[i] = (float)((double)random[i] * factor);
        if (sae->rescale_by_decoder_norm) {
            real[i] /= sae->dec_norm[j];
            random[i] /= sae->dec_norm[j];
        }
    }
}

void sage_site_union(Sage *sage, Site *site, Arena *arena) {
    size_t n_test = sage->task.n_prompts[SAGE_TEST];
    const Sae *sae = site->sae;
    Arena *scratch = arena_new();
    uint32_t *place = arena_alloc(scratch, sae->d_sae, sizeof *place);
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i < site->codes[side].start[n_test]; i++) {
            place[site->codes[side].feature[i]] = 1;
        }
    }
    for (size_t j = 0; j < sae->d_sae; j++) {
        site->n_union += place[j];
    }
    site->feature = arena_alloc(arena, site->n_union, sizeof(uint32_t));
    site->rows[0] = arena_alloc(arena, site->n_union * sae->d_in, sizeof(float));
    site->rows[1] = arena_alloc(arena, site->n_union * sae->d_in, sizeof(float));
    site->f1 = arena_alloc(arena, site->n_union, sizeof(double));
    for (size_t j = 0, u = 0; j < sae->d_sae; j++) {
        if (place[j] != 0) {
            site->feature[u] = (uint32_t)j;
            place[j] = (uint32_t)u++;
        }
    }
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i < site->codes[side].start[n_test]; i++) {
            site->codes[side].feature[i] = place[site->codes[side].feature[i]];
        }
    }
    arena_free(scratch);
    RowCall call = {sage, site};
    compute_parallel(sage->compute, site->n_union, site_row, &call);
}

/* ---- interpretations ---- */

typedef struct Best {
    double f1;
    size_t attribute, n; /* n values */
    size_t values[UNION_MAX];
    bool with_form;
    size_t form;
} Best;

static double f1_of(size_t both, size_t active, size_t true_count) {
    return both > 0 ? 2.0 * (double)both / ((double)active + (double)true_count) : 0.0;
}

/* counts[v] prompts with value v, both[v] of them with the feature; the unions of the first 2 .. 10
 * values by their own F1. */
static void best_union(Best *best, size_t attribute, size_t n, const size_t *counts,
                       const size_t *both, size_t active) {
    size_t order[UNION_MAX], total = 0, hits = 0, taken = 0;
    for (; taken < UNION_MAX && taken < n; taken++) {
        size_t top = n;
        for (size_t v = 0; v < n; v++) {
            bool used = false;
            for (size_t k = 0; k < taken; k++) {
                used |= order[k] == v;
            }
            if (!used && (top == n || f1_of(both[v], active, counts[v]) >
                                          f1_of(both[top], active, counts[top]))) {
                top = v;
            }
        }
        order[taken] = top;
        total += counts[top];
        hits += both[top];
        double f1 = f1_of(hits, active, total);
        if (taken + 1 >= 2 && taken + 1 < n && f1 > best->f1) {
            *best = (Best){.f1 = f1, .attribute = attribute, .n = taken + 1};
            memcpy(best->values, order, (taken + 1) * sizeof(size_t));
        }
    }
}

/* Of equal F1 the earlier predicate stands: values (attribute, value), each with the form
 * attribute's values, unions. */
static Best best_predicate(const Sage *sage, const bool *active, size_t n_active, size_t *counts,
                           size_t *both) {
    size_t n_test = sage->task.n_prompts[SAGE_TEST];
    const SageTask *task = &sage->task;
    size_t forms = task->form >= 0 ? task->attributes[task->form].count : 0;
    Best best = {.f1 = -1.0};
    for (int kind = 0; kind < 3; kind++) { /* values, with the form attribute, unions */
        for (size_t a = 0; a < task->n_attributes; a++) {
            size_t n = task->attributes[a].count;
            for (size_t f = 0; f < (kind == 1 ? forms : 1); f++) {
                if (kind == 1 && (int)a == task->form) {
                    continue;
                }
                memset(counts, 0, n * sizeof(size_t));
                memset(both, 0, n * sizeof(size_t));
                for (size_t p = 0; p < n_test; p++) {
                    const size_t *values = task->prompts[SAGE_TEST][p].values;
                    if (kind != 1 || values[task->form] == f) {
                        counts[values[a]]++;
                        both[values[a]] += active[p] ? 1 : 0;
                    }
                }
                for (size_t v = 0; v < n && kind < 2; v++) {
                    double f1 = f1_of(both[v], n_active, counts[v]);
                    bool earlier =
                        kind == 1 && best.with_form && best.attribute == a && v < best.values[0];
                    if (f1 > best.f1 || (f1 == best.f1 && earlier)) {
                        best = (Best){.f1 = f1,
                                      .attribute = a,
                                      .n = 1,
                                      .values = {v},
                                      .with_form = kind == 1,
                                      .form = f};
                    }
                }
                if (kind == 2) {
                    best_union(&best, a, n, counts, both, n_active);
                }
            }
        }
    }
    return best;
}

/* "A=x", "A=x & FORM=y" or "A in {x, y}". */
static const char *predicate_text(Sage *sage, const Best *best) {
    const SageTask *task = &sage->task;
    const SageAttribute *a = &task->attributes[best->attribute];
    char *text = arena_format(sage->arena, "%s%s%s", a->name, best->n > 1 ? " in {" : "=",
                              a->values[best->values[0]]);
    for (size_t i = 1; i < best->n; i++) {
        text = arena_format(sage->arena, "%s, %s%s", text, a->values[best->values[i]],
                            i + 1 == best->n ? "}" : "");
    }
    if (best->with_form) {
        const SageAttribute *form = &task->attributes[task->form];
        text = arena_format(sage->arena, "%s & %s=%s", text, form->name, form->values[best->form]);
    }
    return text;
}

/* F1 of every feature of the site on the clean test prompts, and the site's rows of the
 * interpretations. */
void sage_site_interpret(Sage *sage, Site *site) {
    size_t n_test = sage->task.n_prompts[SAGE_TEST], n_values = 0;
    SageResult *r = &sage->result;
    const Sae *sae = site->sae;
    const Codes *codes = &site->codes[CLEAN];
    bool known = false;
    for (size_t a = 0; a < sage->task.n_attributes; a++) {
        n_values =
            sage->task.attributes[a].count > n_values ? sage->task.attributes[a].count : n_values;
    }
    Arena *scratch = arena_new();
    bool *active = arena_alloc(scratch, n_test, sizeof(bool));
    size_t *counts = arena_alloc(scratch, n_values, sizeof(size_t));
    size_t *both = arena_alloc(scratch, n_values, sizeof(size_t));
    for (size_t i = 0; i < r->n_interpretations; i++) {
        const SageInterpretation *in = &r->interpretations[i];
        known |= in->kind == sae->hook && in->layer == sae->layer && in->position == site->position;
    }
    SageInterpretation *all =
        arena_alloc(sage->arena, r->n_interpretations + site->n_union, sizeof *all);
    if (r->n_interpretations > 0) {
        memcpy(all, r->interpretations, r->n_interpretations * sizeof *all);
    }
    r->interpretations = all;
    for (size_t u = 0; u < site->n_union; u++) {
        size_t n_active = 0;
        for (size_t p = 0; p < n_test; p++) {
            active[p] = false;
            for (size_t i = codes->start[p]; i < codes->start[p + 1]; i++) {
                active[p] |= codes->feature[i] == u;
            }
            n_active += active[p] ? 1 : 0;
        }
        if (n_active == 0) {
            site->f1[u] = 0.0; /* active in counterfactuals alone */
            continue;
        }
        Best best = best_predicate(sage, active, n_active, counts, both);
        site->f1[u] = best.f1;
        if (!known) {
            all[r->n_interpretations++] =
                (SageInterpretation){sae->hook,        sae->layer, site->position,
                                     site->feature[u], best.f1,    predicate_text(sage, &best)};
        }
    }
    arena_free(scratch);
}
