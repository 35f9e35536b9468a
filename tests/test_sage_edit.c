/* What sage.c computes, from sets of prompts, features and activations made up here: greedy edits
 * and predicates against brute force, every edit and figure of a cross-section against its formula
 * written down once more. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sage.h"

static double between(Random *random, double low, double high) {
    return low + (high - low) * (double)random_uniform(random);
}

/* ---- greedy edits ---- */

enum {
    WIDE = 5,
    MOST = 6
};

typedef struct Case {
    double delta[MOST * WIDE], weight[MOST], squares[MOST], gap[WIDE];
    bool taken[MOST], closed[MOST]; /* closed: from the start */
    SageSparse edit;
} Case;

/* n features to move, at random or (orthogonal) along axes of their own. */
static void case_make(Case *c, Random *random, size_t n, bool orthogonal) {
    memset(c, 0, sizeof *c);
    for (size_t j = 0; j < n; j++) {
        c->weight[j] = between(random, -1.0, 1.0);
        for (size_t i = 0; i < WIDE; i++) {
            double x = between(random, -1.0, 1.0);
            c->delta[j * WIDE + i] = orthogonal && i != j % WIDE ? 0.0 : x;
            c->squares[j] += c->delta[j * WIDE + i] * c->delta[j * WIDE + i];
        }
    }
    for (size_t i = 0; i < WIDE; i++) {
        c->gap[i] = between(random, -2.0, 2.0);
    }
    c->edit = (SageSparse){.n = n,
                           .width = WIDE,
                           .delta = c->delta,
                           .weight = c->weight,
                           .squares = c->squares,
                           .taken = c->taken,
                           .gap = c->gap};
}

/* |gap|^2 after the choices in the set. */
static double distance(const Case *c, const double *gap, unsigned set) {
    double sum = 0.0;
    for (size_t i = 0; i < WIDE; i++) {
        double x = gap[i];
        for (size_t k = 0; k < c->edit.n; k++) {
            x += (set >> k & 1) != 0 ? c->delta[k * WIDE + i] : 0.0;
        }
        sum += x * x;
    }
    return sum;
}

/* Each step is the best single choice of all that are left, found by trying them; the edit stops
 * when none helps by more than `least`. Distances differ by rounding alone, so choices within 1e-12
 * of each other count as the same. */
Test(sage_edit, every_step_is_the_best_of_all) {
    Random random = random_start(11, RANDOM_TEST);
    size_t stopped_early = 0;
    for (int round = 0; round < 600; round++) {
        Case c;
        size_t n = (size_t)random_below(&random, MOST + 1);
        case_make(&c, &random, n, false);
        c.edit.least = round % 2 == 0 ? 0.0 : 0.25;
        for (size_t k = 0; k < n; k++) {
            c.taken[k] = c.closed[k] = round % 3 > 0 && random_uniform(&random) < 0.5f;
        }
        double start[WIDE], weight = 0.0;
        memcpy(start, c.gap, sizeof start);
        unsigned set = 0;
        for (size_t step = 1;; step++) {
            double now = distance(&c, start, set), least = INFINITY;
            for (size_t k = 0; k < n; k++) {
                if ((set >> k & 1) == 0 && !c.closed[k]) {
                    least = fmin(least, distance(&c, start, set | 1U << k));
                }
            }
            bool helped = sage_sparse_choose(&c.edit);
            double bound = now - c.edit.least;
            cr_assert(helped ? least < bound + 1e-12 : least >= bound - 1e-12, "round %d", round);
            cr_assert_eq(c.edit.choices, helped ? step : step - 1);
            if (!helped) {
                stopped_early += least < now ? 1 : 0;
                break;
            }
            unsigned after = 0;
            for (size_t k = 0; k < n; k++) {
                after |= c.taken[k] && !c.closed[k] ? 1U << k : 0;
                weight += (after >> k & 1) > (set >> k & 1) ? c.weight[k] : 0.0;
            }
            set = after;
            cr_assert(fabs(distance(&c, start, set) - least) <= 1e-12, "round %d", round);
            cr_assert(fabs(distance(&c, c.gap, 0) - least) <= 1e-12, "the gap is carried on");
        }
        cr_assert(fabs(c.edit.magnitude - weight) <= 1e-12);
    }
    cr_assert(stopped_early > 10, "%zu", stopped_early);
}

/* One choice is always the optimum, any number is where changes are orthogonal (then their gains
 * add). */
Test(sage_edit, brute_force_over_all_sets) {
    Random random = random_start(12, RANDOM_TEST);
    for (int round = 0; round < 300; round++) {
        Case c;
        bool orthogonal = round % 2 == 0;
        size_t n = 1 + (size_t)random_below(&random, 4);
        case_make(&c, &random, n, orthogonal);
        double start[WIDE];
        memcpy(start, c.gap, sizeof start);
        bool helps = true;
        for (size_t k = 1; k <= (orthogonal ? n : 1); k++) {
            double best = INFINITY;
            for (unsigned set = 0; set < 1U << n; set++) {
                size_t size = 0;
                for (unsigned rest = set; rest != 0; rest &= rest - 1) {
                    size++;
                }
                best = size <= k ? fmin(best, distance(&c, start, set)) : best;
            }
            helps = helps && sage_sparse_choose(&c.edit);
            cr_assert(fabs(distance(&c, c.gap, 0) - best) <= 1e-12, "round %d, %zu choices", round,
                      k);
        }
    }
}

Test(sage_edit, ties_take_the_lower_index) {
    Case c;
    Random random = random_start(13, RANDOM_TEST);
    case_make(&c, &random, 4, true);
    memset(c.gap, 0, sizeof c.gap);
    memset(c.delta, 0, sizeof c.delta);
    for (size_t j = 0; j < 4; j++) { /* all four bring the gap to 0 on the first axis */
        c.delta[j * WIDE] = -1.0;
        c.squares[j] = 1.0;
    }
    for (size_t expected = 0; expected < 4; expected++) {
        for (size_t k = 0; k < 4; k++) {
            c.taken[k] = k < expected;
        }
        c.gap[0] = 1.0;
        cr_assert(sage_sparse_choose(&c.edit));
        cr_assert(c.taken[expected], "%zu", expected);
        cr_assert_eq(c.gap[0], 0.0);
    }
}

/* ---- predicates ---- */

enum {
    PROMPTS = 150, /* three words of bits */
    WORDS = 3,
    VALUES = 48
};

static bool bit(const uint64_t *set, size_t p) {
    return (set[p / 64] >> p % 64 & 1) != 0;
}

static void bit_set(uint64_t *set, size_t p) {
    set[p / 64] |= (uint64_t)1 << p % 64;
}

/* 2 both / (active + any of n values holds), over prompts one by one. */
static double f1_by_hand(const SageKind *kind, size_t words, size_t prompts, const uint64_t *active,
                         const size_t *values, size_t n) {
    double both = 0.0, sum = 0.0;
    for (size_t p = 0; p < prompts; p++) {
        bool holds = false;
        for (size_t i = 0; i < n; i++) {
            holds |= bit(kind->holds + values[i] * words, p);
        }
        both += bit(active, p) && holds ? 1.0 : 0.0;
        sum += (bit(active, p) ? 1.0 : 0.0) + (holds ? 1.0 : 0.0);
    }
    return both > 0.0 ? 2.0 * both / sum : 0.0;
}

/* Values of a kind in falling F1, equal ones as they stand. */
static void sort_values(const SageKind *kind, size_t words, size_t prompts, const uint64_t *active,
                        size_t *sorted) {
    for (size_t v = 0; v < kind->n; v++) {
        size_t at = v;
        double f1 = f1_by_hand(kind, words, prompts, active, &v, 1);
        while (at > 0 && f1_by_hand(kind, words, prompts, active, &sorted[at - 1], 1) < f1) {
            sorted[at] = sorted[at - 1];
            at--;
        }
        sorted[at] = v;
    }
}

static SagePredicate best_by_hand(const SageKinds *kinds, size_t prompts, const uint64_t *active) {
    SagePredicate best = {.f1 = -1.0};
    for (int unions = 0; unions < 2; unions++) {
        for (size_t k = 0; k < kinds->count; k++) {
            const SageKind *kind = &kinds->list[k];
            size_t sorted[VALUES], most = kind->n / 4 < SAGE_UNION ? kind->n / 4 : SAGE_UNION;
            sort_values(kind, kinds->words, prompts, active, sorted);
            for (size_t n = unions ? 2 : 1; n <= (unions ? most : 1); n++) {
                double f1 = f1_by_hand(kind, kinds->words, prompts, active, sorted, n);
                if (f1 > best.f1) {
                    best = (SagePredicate){.f1 = f1, .kind = kind, .n = n};
                    memcpy(best.values, sorted, n * sizeof *sorted);
                }
            }
        }
    }
    return best;
}

static void assert_predicate(const SagePredicate *found, const SagePredicate *expected,
                             const char *what) {
    cr_assert_eq(found->f1, expected->f1, "%s: %g, %g", what, found->f1, expected->f1);
    cr_assert_eq(found->kind, expected->kind, "%s", what);
    cr_assert_eq(found->n, expected->n, "%s: %zu, %zu values", what, found->n, expected->n);
    cr_assert_arr_eq(found->values, expected->values, found->n * sizeof *found->values, "%s", what);
}

static size_t support_by_hand(const SagePredicate *predicate, size_t words, size_t prompts) {
    size_t support = 0;
    for (size_t p = 0; p < prompts; p++) {
        bool holds = false;
        for (size_t i = 0; i < predicate->n; i++) {
            holds |= bit(predicate->kind->holds + predicate->values[i] * words, p);
        }
        support += holds ? 1 : 0;
    }
    return support;
}

/* Kinds of 2 to 48 values, each prompt with one of them or (of every third kind) with any number;
 * features that follow one value, several, or none. */
Test(sage_predicate, is_the_best_of_all_by_brute_force) {
    static const size_t counts[] = {2, 7, 8, 12, VALUES};
    enum {
        KINDS = sizeof counts / sizeof *counts
    };
    static uint64_t holds[KINDS][VALUES * WORDS];
    SageKind list[KINDS];
    SageKinds kinds = {.list = list, .count = KINDS, .words = WORDS};
    Random random = random_start(14, RANDOM_TEST);
    size_t unions = 0, singles = 0;
    for (int round = 0; round < 200; round++) {
        uint64_t active[WORDS] = {0}, scratch[WORDS];
        memset(holds, 0, sizeof holds);
        for (size_t k = 0; k < KINDS; k++) {
            list[k] = (SageKind){.n = counts[k], .holds = holds[k]};
            for (size_t p = 0; p < PROMPTS; p++) {
                size_t one = (size_t)random_below(&random, counts[k]);
                bit_set(holds[k] + one * WORDS, p);
                for (size_t v = 0; v < counts[k] && k % 3 == 2; v++) {
                    if (random_uniform(&random) < 0.1f) {
                        bit_set(holds[k] + v * WORDS, p);
                    }
                }
            }
        }
        if (round % 2 == 0) { /* equal ones, of another kind and of the same */
            memcpy(holds[4], holds[3], counts[3] * WORDS * sizeof(uint64_t));
            memcpy(holds[1] + 3 * WORDS, holds[1], WORDS * sizeof(uint64_t));
        }
        size_t followed = (size_t)random_below(&random, KINDS),
               first = (size_t)random_below(&random, counts[followed]),
               n = 1 + (size_t)random_below(&random, 6);
        for (size_t p = 0; p < PROMPTS; p++) {
            bool on = random_uniform(&random) < 0.05f;
            for (size_t v = first; v < first + n && v < counts[followed]; v++) {
                on |= bit(holds[followed] + v * WORDS, p) && random_uniform(&random) < 0.9f;
            }
            if (on) {
                bit_set(active, p);
            }
        }
        SagePredicate expected = best_by_hand(&kinds, PROMPTS, active),
                      found = sage_predicate(&kinds, active, scratch);
        assert_predicate(&found, &expected, "random");
        cr_assert_eq(found.support, support_by_hand(&found, WORDS, PROMPTS));
        unions += found.n > 1 ? 1 : 0;
        singles += found.n == 1 ? 1 : 0;
    }
    cr_assert(unions > 20 && singles > 20, "%zu, %zu", unions, singles);
}

/* A feature that is active wherever one of n values holds, each in two prompts: the union of a
 * quarter of the kind's values at most. */
Test(sage_predicate, a_union_is_of_a_quarter_of_the_values_at_most) {
    static const struct {
        size_t values, active, expected;
    } cases[] = {{7, 2, 1},  {8, 2, 2},    {8, 3, 2},   {11, 3, 2},
                 {12, 3, 3}, {48, 10, 10}, {48, 12, 10}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        uint64_t holds[VALUES * WORDS] = {0}, active[WORDS] = {0}, scratch[WORDS];
        for (size_t p = 0; p < 2 * cases[c].values; p++) {
            bit_set(holds + p / 2 * WORDS, p);
            if (p / 2 < cases[c].active) {
                bit_set(active, p);
            }
        }
        SageKind kind = {.n = cases[c].values, .holds = holds};
        SageKinds kinds = {.list = &kind, .count = 1, .words = WORDS};
        SagePredicate best = sage_predicate(&kinds, active, scratch);
        double n = (double)cases[c].expected;
        cr_assert_eq(best.n, cases[c].expected, "%zu of %zu: %zu", cases[c].active, cases[c].values,
                     best.n);
        cr_assert_float_eq(best.f1, 2.0 * n / ((double)cases[c].active + n), 1e-15);
    }
}

/* ---- kinds of predicates of a task ---- */

static const char *names[2][3] = {{"Mary", "John", "Tom"}, {"Tom", "Mary", "John"}},
                  *forms[2] = {"ABB", "BAB"}, *years[2] = {"11", "12"}, *sexes[2] = {"f", "m"};

/* A and B share their values in other orders, Form picks their places, Year stands in no text. */
static SageTask *made_task(Arena *arena, size_t n_test) {
    SageTask *task = arena_alloc(arena, 1, sizeof *task);
    SageLabel *label = arena_alloc(arena, 1, sizeof *label);
    static int of[4][3] = {{0, 1, -1}, {-1, 0, 1}, {-1, -1, -1}, {-1, -1, -1}};
    Random random = random_start(15, RANDOM_TEST);
    *task = (SageTask){.n_attributes = 4, .form = 2, .labels = label, .n_labels = 1};
    *label = (SageLabel){.name = "sex", .texts = sexes, .count = 2};
    task->attributes = arena_alloc(arena, 4, sizeof *task->attributes);
    task->attributes[0] = (SageAttribute){"A", names[0], 3};
    task->attributes[1] = (SageAttribute){"B", names[1], 3};
    task->attributes[2] = (SageAttribute){"Form", forms, 2};
    task->attributes[3] = (SageAttribute){"Year", years, 2};
    label->of = arena_alloc(arena, 4, sizeof *label->of);
    task->prompts[SAGE_TEST] = arena_alloc(arena, n_test, sizeof(SagePrompt));
    task->n_prompts[SAGE_TEST] = n_test;
    for (size_t p = 0; p < n_test; p++) {
        SagePrompt *prompt = &task->prompts[SAGE_TEST][p];
        prompt->values = arena_alloc(arena, 4, sizeof(size_t));
        prompt->places = arena_alloc(arena, 3, sizeof(size_t));
        for (size_t a = 0; a < 4; a++) {
            label->of[a] = of[a];
            prompt->values[a] = (size_t)random_below(&random, task->attributes[a].count);
        }
        prompt->n_places = p % 5 == 4 ? 0 : 3; /* read, of no template */
        for (size_t i = 0; i < prompt->n_places; i++) {
            prompt->places[i] = i == 2 || (i == 1) == (prompt->values[2] == 0) ? 1 : 0;
        }
    }
    return task;
}

static bool has(const char *part, const char *text) {
    return strcmp(part, text) == 0;
}

/* Does "SUBJECT=value ALSO" hold, read as a sentence about the prompt? */
static bool holds_by_hand(const SageTask *task, const SagePrompt *prompt, const SageKind *kind,
                          const char *value) {
    const char *texts[4], *places[3] = {"", "", ""};
    for (size_t a = 0; a < 4; a++) {
        texts[a] = task->attributes[a].values[prompt->values[a]];
    }
    bool abb = has(texts[2], "ABB");
    for (size_t i = 0; i < prompt->n_places; i++) {
        places[i] = i == 2 ? texts[1] : (i == 0) == abb ? texts[0] : texts[1];
    }
    if (has(kind->subject, "A/B#1") || has(kind->subject, "A/B#2")) {
        return has(places[has(kind->subject, "A/B#2") ? 1 : 0], value);
    }
    if (has(kind->subject, "A/B#any")) {
        return has(places[0], value) || has(places[1], value) || has(places[2], value);
    }
    if (has(kind->subject, "sex(A)")) {
        return has(texts[0], "Mary") ? has(value, "f") : has(texts[0], "John") && has(value, "m");
    }
    if (has(kind->subject, "sex(B)")) {
        return has(texts[1], "Mary") ? has(value, "f") : has(texts[1], "John") && has(value, "m");
    }
    for (size_t a = 0; a < 4; a++) {
        if (has(kind->subject, task->attributes[a].name)) {
            return has(texts[a], value) &&
                   (has(kind->also, "") || has(kind->also, abb ? " & Form=ABB" : " & Form=BAB"));
        }
    }
    cr_assert_fail("%s", kind->subject);
    return false;
}

/* All kinds in their order; one that holds of nothing may stand among them. */
Test(sage_predicate, kinds_of_a_task) {
    static const char *const expected[][2] = {{"A", ""},
                                              {"B", ""},
                                              {"Form", ""},
                                              {"Year", ""},
                                              {"A", " & Form=ABB"},
                                              {"A", " & Form=BAB"},
                                              {"B", " & Form=ABB"},
                                              {"B", " & Form=BAB"},
                                              {"Year", " & Form=ABB"},
                                              {"Year", " & Form=BAB"},
                                              {"A/B#1", ""},
                                              {"A/B#2", ""},
                                              {"A/B#any", ""},
                                              {"sex(A)", ""},
                                              {"sex(B)", ""}};
    enum {
        N_TEST = 90
    };
    Arena *arena = arena_new();
    const SageTask *task = made_task(arena, N_TEST);
    const SageKinds *kinds = sage_kinds(task, 475, arena);
    size_t k = 0;
    cr_assert_eq(kinds->words, 2);
    for (const SageKind *kind = kinds->list; kind < kinds->list + kinds->count; kind++) {
        size_t bits = 0;
        for (size_t v = 0; v < kind->n; v++) {
            for (size_t p = 0; p < N_TEST; p++) {
                bits += bit(kind->holds + v * kinds->words, p) ? 1 : 0;
            }
        }
        if (bits == 0) {
            continue;
        }
        cr_assert(k < sizeof expected / sizeof *expected, "%s%s", kind->subject, kind->also);
        cr_assert_str_eq(kind->subject, expected[k][0]);
        cr_assert_str_eq(kind->also, expected[k][1]);
        for (size_t v = 0; v < kind->n; v++) {
            for (size_t p = 0; p < N_TEST; p++) {
                cr_assert_eq(
                    bit(kind->holds + v * kinds->words, p),
                    holds_by_hand(task, &task->prompts[SAGE_TEST][p], kind, kind->values[v]),
                    "%s=%s%s of %zu", kind->subject, kind->values[v], kind->also, p);
            }
        }
        k++;
    }
    cr_assert_eq(k, sizeof expected / sizeof *expected);
    arena_free(arena);
}

/* ---- a cross-section made up here ---- */

enum {
    D = 6,
    FEATURES = 9, /* those of the SAEs are 2 u + 1 */
    NODES = 2,
    TRAIN = 30,
    TEST = 70, /* two words of bits */
    ATTRIBUTES = 2,
    SIDES = 1 + ATTRIBUTES, /* the prompts as they are, and changed in each attribute */
    ROWS = SIDES * TEST,
    THRESHOLDS = 4
};

typedef struct World {
    Arena *arena;
    Compute compute;
    Llm llm;
    SageTask task;
    SageOptions options;
    SageNode nodes[NODES];
    Sae stream, native;
    SageSite sites[2 * NODES];
    SageSubject subjects[NODES];
    SageFit fits[NODES];
    SageResult result; /* options and thresholds alone */
    SageSection section;
    SageCross cross;
    Random random;
} World;

/* Rows of random numbers; what no feature of the world is stays 0. */
static Sae made_sae(World *w, HookKind hook) {
    size_t d_sae = 2 * FEATURES + 1;
    float *rows = arena_floats(w->arena, d_sae, D), *b_dec = arena_floats(w->arena, 1, D);
    for (size_t u = 0; u < FEATURES; u++) {
        for (size_t i = 0; i < D; i++) {
            rows[(2 * u + 1) * D + i] = (float)between(&w->random, -1.0, 1.0);
            b_dec[i] = (float)between(&w->random, -1.0, 1.0);
        }
    }
    return (Sae){.hook = hook,
                 .centre = SAE_CENTRE_NO,
                 .d_in = D,
                 .d_sae = d_sae,
                 .w_dec = {rows, DTYPE_F32},
                 .dec_feature = D,
                 .dec_input = 1,
                 .w_enc = {rows, DTYPE_F32},
                 .enc_feature = D,
                 .enc_input = 1,
                 .b_dec = {b_dec, DTYPE_F32}};
}

/* Features active at random, but the first few where an attribute has a value, mostly. */
static void made_codes(World *w, SageSite *site) {
    site->n_union = site->most = FEATURES;
    site->feature = arena_alloc(w->arena, FEATURES, sizeof(uint32_t));
    site->start = arena_alloc(w->arena, ROWS + 1, sizeof(size_t));
    site->codes = arena_alloc(w->arena, ROWS * FEATURES, sizeof(SageCode));
    site->factor = arena_alloc(w->arena, ROWS, sizeof(double));
    site->shift = arena_alloc(w->arena, ROWS, sizeof(double));
    for (size_t u = 0; u < FEATURES; u++) {
        site->feature[u] = (uint32_t)(2 * u + 1);
    }
    for (size_t row = 0, n = 0; row < ROWS; row++) {
        const SagePrompt *prompt = &w->task.prompts[SAGE_TEST][row % TEST];
        size_t side = row / TEST;
        site->factor[row] = between(&w->random, 0.5, 2.0);
        site->shift[row] = between(&w->random, -0.5, 0.5);
        for (size_t u = 0; u < FEATURES; u++) {
            size_t value = side == 1 ? prompt->changed[0] : prompt->values[0];
            bool on = random_uniform(&w->random) < (u >= 5 || u == value ? 0.6f : 0.1f) &&
                      !(u == FEATURES - 1 && side == 0);
            if (on) {
                site->codes[n++] = (SageCode){(uint32_t)u, (float)between(&w->random, 0.1, 3.0)};
            }
        }
        site->start[row + 1] = n;
    }
}

static void made_prompts(World *w) {
    static const char *colours[3] = {"red", "green", "blue"}, *sizes[2] = {"big", "small"};
    w->task = (SageTask){.n_attributes = ATTRIBUTES, .form = -1, .n_prompts = {TRAIN, TEST}};
    w->task.attributes = arena_alloc(w->arena, ATTRIBUTES, sizeof(SageAttribute));
    w->task.attributes[0] = (SageAttribute){"colour", colours, 3};
    w->task.attributes[1] = (SageAttribute){"size", sizes, 2};
    for (int split = 0; split < SAGE_SPLITS; split++) {
        size_t n = w->task.n_prompts[split];
        w->task.prompts[split] = arena_alloc(w->arena, n, sizeof(SagePrompt));
        for (size_t p = 0; p < n; p++) {
            SagePrompt *prompt = &w->task.prompts[split][p];
            prompt->values = arena_alloc(w->arena, ATTRIBUTES, sizeof(size_t));
            prompt->changed = arena_alloc(w->arena, ATTRIBUTES, sizeof(size_t));
            for (size_t a = 0; a < ATTRIBUTES; a++) {
                size_t count = w->task.attributes[a].count;
                prompt->values[a] = (size_t)random_below(&w->random, count);
                prompt->changed[a] =
                    (prompt->values[a] + 1 + (size_t)random_below(&w->random, count - 1)) % count;
            }
        }
    }
}

static float *made_rows(World *w, size_t n) {
    float *rows = arena_floats(w->arena, n, D);
    for (size_t i = 0; i < n * D; i++) {
        rows[i] = (float)between(&w->random, -3.0, 3.0);
    }
    return rows;
}

/* Everything but what sage_layout and those behind it make. */
static World *world_make(void) {
    Arena *arena = arena_new();
    World *w = arena_alloc(arena, 1, sizeof *w);
    w->arena = arena;
    w->random = random_start(16, RANDOM_TEST);
    compute_open(&w->compute, arena, 2);
    w->llm.config = (LlmConfig){.kind = LLM_GPT2, .d_model = D, .d_head = 2};
    w->options.vlm.seed = 475;
    made_prompts(w);
    w->stream = made_sae(w, HOOK_RESID_POST);
    w->native = made_sae(w, HOOK_MLP_OUT);
    for (size_t i = 0; i < NODES; i++) {
        SageSubject *subject = &w->subjects[i];
        w->nodes[i] = (SageNode){HOOK_MLP_OUT, 0, -1, i};
        *subject = (SageSubject){.node = &w->nodes[i],
                                 .site = &w->sites[2 * i],
                                 .native = &w->sites[2 * i + 1],
                                 .width = D,
                                 .a = made_rows(w, ROWS + TRAIN),
                                 .scale = arena_floats(arena, 1, ROWS + TRAIN)};
        subject->w = w->fits[i].w = arena_alloc(arena, ATTRIBUTES, sizeof(double));
        for (size_t row = 0; row < ROWS + TRAIN; row++) {
            subject->scale[row] = 1.0f;
        }
        *subject->site = (SageSite){.sae = &w->stream, .position = i};
        *subject->native = (SageSite){.sae = &w->native, .position = i, .native = true};
        made_codes(w, subject->site);
        made_codes(w, subject->native);
    }
    w->result = (SageResult){.options = &w->options, .n_thresholds = THRESHOLDS};
    w->section = (SageSection){.compute = &w->compute,
                               .llm = &w->llm,
                               .task = &w->task,
                               .result = &w->result,
                               .kinds = sage_kinds(&w->task, w->options.vlm.seed, arena),
                               .n_train = TRAIN,
                               .n_test = TEST,
                               .batch = TEST,
                               .subjects = w->subjects,
                               .sites = w->sites,
                               .n_subjects = NODES,
                               .n_sites = 2 * NODES,
                               .native = true,
                               .writes = SAGE_BY_SPAN};
    return w;
}

static void world_open(World *w) {
    sage_layout(&w->section, w->arena);
    for (size_t i = 0; i < w->section.n_sites; i++) {
        sage_site_open(&w->section, &w->sites[i]);
    }
    w->result.thresholds[1] = 0.5;
    w->result.thresholds[2] = w->sites[1].best[0].f1; /* met exactly */
    w->result.thresholds[3] = 1.0;
    sage_prepare(&w->section, w->fits);
    sage_edit(&w->section, 0, w->section.n_test);
}

static SageEdit *edit_of(const World *w, SageTest test, SageMethod method, size_t a, size_t at) {
    for (SageEdit *e = w->section.edits; e < w->section.edits + w->section.n_edits; e++) {
        if (e->test == test && e->method == method && e->attribute == a && e->at == at) {
            return e;
        }
    }
    cr_assert_fail("test %d of method %d, %zu, %zu", (int)test, (int)method, a, at);
    return NULL;
}

static SageTrial *trial_at(const World *w, const SageEdit *e) {
    return &w->section.trials[e - w->section.edits];
}

/* Is the edit's value at a node and prompt x, as binary32 has it? */
static void assert_value(const World *w, const SageEdit *e, size_t node, size_t p, const double *x,
                         const char *what) {
    for (size_t i = 0; i < D; i++) {
        double found = (double)trial_at(w, e)->values[node][p * D + i];
        cr_assert(fabs(found - x[i]) <= 1e-5, "%s, node %zu, prompt %zu, k or t %zu: %g, %g", what,
                  node, p, e->at, found, x[i]);
    }
}

/* Of the native SAE at a node and prompt of one side: c[FEATURES, D], 0 where not active. */
static void native_parts(const World *w, size_t node, size_t side, size_t p, double *c,
                         double *base, bool *active) {
    const SageSite *site = &w->sites[2 * node + 1];
    size_t row = side * TEST + p;
    const float *rows = w->native.w_dec.data, *b_dec = w->native.b_dec.data;
    memset(c, 0, FEATURES * D * sizeof *c);
    memset(active, 0, FEATURES * sizeof *active);
    for (size_t i = 0; i < D; i++) {
        base[i] = site->factor[row] * (double)b_dec[i] + site->shift[row];
    }
    for (size_t k = site->start[row]; k < site->start[row + 1]; k++) {
        size_t u = site->codes[k].feature;
        active[u] = true;
        for (size_t i = 0; i < D; i++) {
            c[u * D + i] = (double)site->codes[k].value * site->factor[row] *
                           (double)rows[(2 * u + 1) * D + i];
        }
    }
}

static double dot(const double *a, const double *b) {
    double sum = 0.0;
    for (size_t i = 0; i < D; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

/* What native edits begin with: the parts of both sides, the sum of the clean ones, the node. */
static void edit_begin(const World *w, size_t node, size_t attribute, size_t p,
                       double c[2][FEATURES * D], bool active[2][FEATURES], double sum[D],
                       double edited[D]) {
    double base[D];
    native_parts(w, node, 0, p, c[0], base, active[0]);
    native_parts(w, node, 1 + attribute, p, c[1], base, active[1]);
    for (size_t i = 0; i < D; i++) {
        sum[i] = 0.0;
        edited[i] = (double)w->subjects[node].a[p * D + i];
    }
    for (size_t i = 0; i < FEATURES * D; i++) {
        sum[i % D] += c[0][i];
    }
}

/* In which test prompts feature u of a site is active; order NULL: each as itself. */
static void active_by_hand(const SageSite *site, size_t u, const uint64_t *order, uint64_t *set) {
    memset(set, 0, 2 * sizeof *set);
    for (size_t p = 0; p < TEST; p++) {
        for (size_t k = site->start[p]; k < site->start[p + 1]; k++) {
            if (site->codes[k].feature == u) {
                bit_set(set, order != NULL ? (size_t)order[p] : p);
            }
        }
    }
}

/* Interpretations, by chance too; a feature of counterfactuals alone has none. */
Test(sage_section, features_have_their_best_predicate_and_that_of_permuted_prompts) {
    World *w = world_make();
    uint64_t order[TEST], set[2];
    Random random = random_start(w->options.vlm.seed, RANDOM_SAGE_PERMUTE);
    random_permutation(&random, order, TEST);
    world_open(w);
    size_t differ = 0;
    for (size_t s = 0; s < 2 * NODES; s++) {
        const SageSite *site = &w->sites[s];
        for (size_t u = 0; u + 1 < FEATURES; u++) {
            active_by_hand(site, u, NULL, set);
            SagePredicate expected = best_by_hand(w->section.kinds, TEST, set);
            assert_predicate(&site->best[u], &expected, "as they are");
            active_by_hand(site, u, order, set);
            cr_assert_eq(site->permuted[u], best_by_hand(w->section.kinds, TEST, set).f1);
            differ += site->permuted[u] != site->best[u].f1;
        }
        cr_assert_eq(site->best[FEATURES - 1].f1, -1.0);
    }
    cr_assert(differ > NODES * FEATURES, "%zu", differ);
    arena_free(w->arena);
}

Test(sage_section, random_rows_have_the_norms_of_the_true_ones) {
    World *w = world_make();
    world_open(w);
    for (size_t u = 0; u < FEATURES; u++) {
        double norm[2] = {0.0}, both = 0.0;
        for (size_t i = 0; i < D; i++) {
            double x = w->sites[0].rows[0][u * D + i], y = w->sites[0].rows[1][u * D + i];
            norm[0] += x * x;
            norm[1] += y * y;
            both += x * y;
        }
        cr_assert_float_eq(norm[1], norm[0], 1e-6 * norm[0]);
        cr_assert(fabs(both) < 0.999 * norm[0]);
    }
    arena_free(w->arena);
}

/* target, ablated, sufficiency, necessity, and without the features on one side of a threshold */
Test(sage_section, edits_are_their_formulas) {
    World *w = world_make();
    world_open(w);
    size_t away = 0;
    for (size_t n = 0; n < NODES; n++) {
        double mean[D] = {0.0};
        for (size_t i = 0; i < TRAIN * D; i++) {
            mean[i % D] += (double)w->subjects[n].a[ROWS * D + i] / (double)TRAIN;
        }
        for (size_t p = 0; p < TEST; p++) {
            double c[FEATURES * D], base[D], x[D], recon[D];
            const float *a = w->subjects[n].a + p * D;
            bool active[FEATURES];
            native_parts(w, n, 0, p, c, base, active);
            memcpy(recon, base, sizeof recon);
            for (size_t k = 0; k < FEATURES * D; k++) {
                recon[k % D] += c[k];
            }
            assert_value(w, edit_of(w, SAGE_ABLATED, SAGE_NONE, 0, 0), n, p, mean, "ablated");
            assert_value(w, edit_of(w, SAGE_SUFFICIENCY, SAGE_NATIVE, 0, 0), n, p, recon, "a^");
            for (size_t i = 0; i < D; i++) {
                x[i] = mean[i] + (double)a[i] - recon[i];
            }
            assert_value(w, edit_of(w, SAGE_NECESSITY, SAGE_NATIVE, 0, 0), n, p, x, "necessity");
            for (size_t attribute = 0; attribute < ATTRIBUTES; attribute++) {
                const SageEdit *target = edit_of(w, SAGE_TARGET, SAGE_NONE, attribute, 0);
                cr_assert_arr_eq(trial_at(w, target)->values[n] + p * D,
                                 w->subjects[n].a + ((1 + attribute) * TEST + p) * D,
                                 D * sizeof(float));
            }
            for (size_t t = 0; t < 2 * THRESHOLDS; t++) {
                bool above = t % 2 == 1; /* those are taken away: necessity */
                for (size_t i = 0; i < D; i++) {
                    x[i] = (double)a[i];
                }
                for (size_t k = 0; k < FEATURES * D; k++) {
                    double f1 = w->sites[2 * n + 1].best[k / D].f1;
                    x[k % D] -= (f1 >= w->result.thresholds[t / 2]) == above ? c[k] : 0.0;
                    away += (f1 >= w->result.thresholds[t / 2]) == above && active[k / D] ? 1 : 0;
                }
                const SageEdit *e = edit_of(w, above ? SAGE_F1_NECESSITY : SAGE_F1_SUFFICIENCY,
                                            SAGE_NATIVE, 0, t / 2);
                assert_value(w, e, n, p, x, above ? "f1 necessity" : "f1 sufficiency");
                if (t == 0) {
                    cr_assert_arr_eq(trial_at(w, e)->values[n] + p * D, a, D * sizeof(float),
                                     "t = 0: clean");
                }
            }
        }
    }
    cr_assert(away > 0 && away < NODES * TEST * FEATURES * D * 2 * THRESHOLDS);
    arena_free(w->arena);
}

/* Greedy: the features of either side, each moved whole by c_j at the counterfactual minus c_j at
 * the prompt; each step tries all. */
Test(sage_section, greedy_edits_are_their_definition) {
    World *w = world_make();
    world_open(w);
    for (size_t task = 0; task < NODES * ATTRIBUTES * TEST; task++) {
        size_t n = task % NODES, attribute = task / NODES % ATTRIBUTES,
               p = task / NODES / ATTRIBUTES, k = 0;
        double c[2][FEATURES * D], sum[D], edited[D], magnitude = 0.0;
        bool active[2][FEATURES], taken[FEATURES] = {false};
        const float *a_t = w->subjects[n].a + ((1 + attribute) * TEST + p) * D;
        edit_begin(w, n, attribute, p, c, active, sum, edited);
        const double square = dot(edited, edited);
        for (size_t at = 0; at < SAGE_KS; at++) {
            const SageEdit *e = edit_of(w, SAGE_GREEDY, SAGE_NATIVE, attribute, at);
            for (; k < sage_ks[at]; k++) {
                double now = 0.0, least = INFINITY;
                size_t best = 0;
                for (size_t u = 0; u < FEATURES; u++) {
                    double then = 0.0;
                    now = 0.0;
                    for (size_t i = 0; i < D; i++) {
                        double gap = edited[i] - (double)a_t[i],
                               delta = c[1][u * D + i] - c[0][u * D + i];
                        now += gap * gap;
                        then += (gap + delta) * (gap + delta);
                    }
                    if (!taken[u] && (active[0][u] || active[1][u]) && then < least) {
                        least = then;
                        best = u;
                    }
                }
                if (!(least < now - 1e-10 * square)) {
                    break;
                }
                taken[best] = true;
                magnitude += active[0][best] ? dot(c[0] + best * D, sum) / dot(sum, sum) : 0.0;
                for (size_t i = 0; i < D; i++) {
                    edited[i] += c[1][best * D + i] - c[0][best * D + i];
                }
            }
            assert_value(w, e, n, p, edited, "greedy");
            cr_assert_float_eq(trial_at(w, e)->magnitudes[n * TEST + p], magnitude, 1e-9);
        }
    }
    arena_free(w->arena);
}

/* Aware: k times the best of those left for the prompt's own value goes, and the best of those of
 * the counterfactual for its value comes. */
Test(sage_section, aware_edits_are_their_definition) {
    World *w = world_make();
    world_open(w);
    for (size_t task = 0; task < NODES * ATTRIBUTES * TEST; task++) {
        size_t n = task % NODES, attribute = task / NODES % ATTRIBUTES,
               p = task / NODES / ATTRIBUTES, k = 0;
        const SagePrompt *prompt = &w->task.prompts[SAGE_TEST][p];
        const size_t values[2] = {prompt->values[attribute], prompt->changed[attribute]};
        double c[2][FEATURES * D], sum[D], edited[D], magnitude = 0.0;
        bool left[2][FEATURES];
        edit_begin(w, n, attribute, p, c, left, sum, edited);
        for (size_t at = 0; at < SAGE_KS; at++) {
            const SageEdit *e = edit_of(w, SAGE_AWARE, SAGE_NATIVE, attribute, at);
            for (; k < sage_ks[at]; k++) {
                for (int side = 0; side < 2; side++) {
                    size_t best = FEATURES;
                    double best_f1 = -1.0;
                    for (size_t u = 0; u < FEATURES; u++) {
                        uint64_t set[2];
                        active_by_hand(&w->sites[2 * n + 1], u, NULL, set);
                        double f1 = f1_by_hand(&w->section.kinds->list[attribute], 2, TEST, set,
                                               &values[side], 1);
                        if (left[side][u] && f1 > best_f1) {
                            best = u;
                            best_f1 = f1;
                        }
                    }
                    if (best == FEATURES) {
                        continue;
                    }
                    left[side][best] = false;
                    magnitude += side == 0 ? dot(c[0] + best * D, sum) / dot(sum, sum) : 0.0;
                    for (size_t i = 0; i < D; i++) {
                        edited[i] += (side == 0 ? -1.0 : 1.0) * c[side][best * D + i];
                    }
                }
            }
            assert_value(w, e, n, p, edited, "aware");
            cr_assert_float_eq(trial_at(w, e)->magnitudes[n * TEST + p], magnitude, 1e-9);
        }
    }
    arena_free(w->arena);
}

/* mean dictionary: one value's feature for the other's */
Test(sage_section, supervised_edits_are_their_definition) {
    World *w = world_make();
    world_open(w);
    for (size_t n = 0; n < NODES; n++) {
        double u[ATTRIBUTES][3][D] = {{{0.0}}}, count[ATTRIBUTES][3] = {{0.0}}, mean[D] = {0.0};
        const float *train = w->subjects[n].a + ROWS * D;
        for (size_t i = 0; i < TRAIN * D; i++) {
            mean[i % D] += (double)train[i] / (double)TRAIN;
        }
        for (size_t a = 0; a < ATTRIBUTES; a++) {
            for (size_t p = 0; p < TRAIN; p++) {
                size_t v = w->task.prompts[SAGE_TRAIN][p].values[a];
                count[a][v] += 1.0;
                for (size_t i = 0; i < D; i++) {
                    u[a][v][i] += (double)train[p * D + i];
                }
            }
            for (size_t k = 0; k < w->task.attributes[a].count * D; k++) {
                u[a][k / D][k % D] = u[a][k / D][k % D] / count[a][k / D] - mean[k % D];
            }
        }
        for (size_t p = 0; p < TEST * ATTRIBUTES; p++) {
            size_t a = p / TEST, at = p % TEST;
            const SagePrompt *prompt = &w->task.prompts[SAGE_TEST][at];
            const double *old = u[a][prompt->values[a]], *new = u[a][prompt->changed[a]];
            const SageEdit *e = edit_of(w, SAGE_SUPERVISED, SAGE_MEAN, a, 0);
            double x[D], sum[D];
            for (size_t i = 0; i < D; i++) {
                sum[i] = u[0][prompt->values[0]][i] + u[1][prompt->values[1]][i];
                x[i] = (double)w->subjects[n].a[at * D + i] - old[i] + new[i];
            }
            assert_value(w, e, n, at, x, "supervised");
            cr_assert_float_eq(trial_at(w, e)->magnitudes[n * TEST + at],
                               dot(old, sum) / dot(sum, sum), 1e-9);
        }
    }
    arena_free(w->arena);
}

/* A feature that is 10 at the prompt and 9 at the counterfactual, under an SAE that reconstructs
 * both: moved whole, by -1, it closes the gap in one choice; more change nothing. */
Test(sage_section, a_feature_that_weakens_closes_the_gap_in_one_choice) {
    World *w = world_make();
    w->section.n_test = w->task.n_prompts[SAGE_TEST] = w->section.batch = 1;
    w->section.kinds = sage_kinds(&w->task, 475, w->arena);
    const float *row_of = (const float *)w->native.w_dec.data + 7 * D,
                *b_dec = w->native.b_dec.data; /* feature 7 is the fourth */
    for (size_t n = 0; n < NODES; n++) {
        SageSite *site = &w->sites[2 * n + 1];
        for (size_t row = 0; row < SIDES; row++) { /* the prompt, and its counterfactuals */
            site->start[row + 1] = row + 1;
            site->codes[row] = (SageCode){3, row == 0 ? 10.0f : 9.0f};
            site->factor[row] = 1.0;
            site->shift[row] = 0.0;
            w->sites[2 * n].start[row + 1] = 0;
            for (size_t i = 0; i < D; i++) {
                w->subjects[n].a[row * D + i] =
                    (float)((double)b_dec[i] + (double)site->codes[row].value * (double)row_of[i]);
            }
        }
    }
    world_open(w);
    for (size_t n = 0; n < NODES; n++) {
        for (size_t at = 0; at < SAGE_KS * ATTRIBUTES; at++) {
            const SageEdit *e = edit_of(w, SAGE_GREEDY, SAGE_NATIVE, at / SAGE_KS, at % SAGE_KS);
            double target[D];
            for (size_t i = 0; i < D; i++) {
                target[i] = (double)w->subjects[n].a[(1 + at / SAGE_KS) * D + i];
            }
            assert_value(w, e, n, 0, target, "closed");
            cr_assert_float_eq(trial_at(w, e)->magnitudes[n], 1.0, 1e-12,
                               "the whole reconstruction was moved");
        }
    }
    arena_free(w->arena);
}

/* ---- figures ---- */

/* What a model might say under every edit: m about `clean`, under ablation about `ablated`; the
 * same token as under the target in about `agree` of the prompts where nothing is done. */
static void made_outcomes(World *w, double clean, double ablated, float agree) {
    for (SageEdit *e = w->section.edits; e < w->section.edits + w->section.n_edits; e++) {
        SageTrial *trial = trial_at(w, e);
        for (size_t p = 0; p < TEST; p++) {
            double level = e->test == SAGE_UNTOUCHED ? clean
                           : e->test == SAGE_ABLATED ? ablated
                                                     : between(&w->random, ablated, clean);
            trial->m[p] = level + between(&w->random, -0.25, 0.25);
            if (trial->predicted != NULL) {
                int32_t one = random_uniform(&w->random) < agree ? 1 : 0;
                trial->predicted[p] = e->test == SAGE_TARGET ? 1
                                      : e->test == SAGE_UNTOUCHED
                                          ? one
                                          : (int32_t)random_below(&w->random, 2);
            }
        }
    }
}

typedef struct Means {
    double clean, ablated, m, same; /* of an edit: m, and the share that agrees with the target */
} Means;

static Means means_of(const World *w, const SageEdit *e, const size_t *which) {
    const SageTrial *clean = w->section.trials, *edited = trial_at(w, e),
                    *ablated = trial_at(w, edit_of(w, SAGE_ABLATED, SAGE_NONE, 0, 0)),
                    *target = trial_at(w, edit_of(w, SAGE_TARGET, SAGE_NONE, e->attribute, 0));
    Means means = {0.0, 0.0, 0.0, 0.0};
    for (size_t i = 0; i < TEST; i++) {
        size_t p = which[i];
        means.clean += clean->m[p] / (double)TEST;
        means.ablated += ablated->m[p] / (double)TEST;
        means.m += edited->m[p] / (double)TEST;
        means.same += edited->predicted != NULL && edited->predicted[p] == target->predicted[p]
                          ? 1.0 / (double)TEST
                          : 0.0;
    }
    return means;
}

static double sufficiency_of(Means x) {
    return x.m / x.clean;
}

static double recovered_of(Means x) {
    return (x.m - x.ablated) / (x.clean - x.ablated);
}

static double necessity_of(Means x) {
    return 1.0 - fabs(x.ablated - x.m) / fabs(x.ablated - x.clean);
}

static double share_of(Means x) {
    return x.same;
}

static double mean_of(Means x) {
    return x.m;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The figure of an edit, and its interval from resamples drawn here. */
static void assert_figure(const World *w, const SageEdit *e, double (*formula)(Means),
                          SageFigure found, const char *what) {
    static double samples[SAGE_RESAMPLES];
    size_t which[TEST];
    Random random = random_start(w->options.vlm.seed, RANDOM_SAGE_RESAMPLE);
    for (size_t p = 0; p < TEST; p++) {
        which[p] = p;
    }
    double value = formula(means_of(w, e, which));
    for (size_t k = 0; k < SAGE_RESAMPLES; k++) {
        for (size_t p = 0; p < TEST; p++) {
            which[p] = (size_t)random_below(&random, TEST);
        }
        samples[k] = formula(means_of(w, e, which));
    }
    qsort(samples, SAGE_RESAMPLES, sizeof *samples, by_value);
    cr_assert_float_eq(found.value, value, 1e-9, "%s: %g, %g", what, found.value, value);
    cr_assert_float_eq(found.low, samples[24] + 0.975 * (samples[25] - samples[24]), 1e-9, "%s",
                       what);
    cr_assert_float_eq(found.high, samples[974] + 0.025 * (samples[975] - samples[974]), 1e-9, "%s",
                       what);
    cr_assert(found.low < value && value < found.high, "%s", what);
}

static double mean_magnitude(const World *w, const SageEdit *e) {
    double sum = 0.0;
    for (size_t i = 0; i < NODES * TEST; i++) {
        sum += trial_at(w, e)->magnitudes[i] / (NODES * TEST);
    }
    return sum;
}

Test(sage_section, figures_and_intervals_are_their_definitions) {
    World *w = world_make();
    world_open(w);
    made_outcomes(w, 4.0, 1.0, 0.3f);
    sage_judge(&w->section, &w->cross);
    const SageEdit *ablated = edit_of(w, SAGE_ABLATED, SAGE_NONE, 0, 0),
                   *suffices = edit_of(w, SAGE_SUFFICIENCY, SAGE_NATIVE, 0, 0),
                   *needed = edit_of(w, SAGE_NECESSITY, SAGE_NATIVE, 0, 0);
    assert_figure(w, ablated, mean_of, w->cross.m_ablated, "m_ablated");
    assert_figure(w, w->section.edits, mean_of, w->section.edits->figure, "m_clean");
    assert_figure(w, suffices, sufficiency_of, suffices->figure, "sufficiency");
    assert_figure(w, suffices, recovered_of, suffices->recovered, "recovered");
    assert_figure(w, needed, necessity_of, needed->figure, "necessity");
    double clean = w->section.edits->figure.value;
    cr_assert_float_eq(w->cross.resolution, (clean - w->cross.m_ablated.value) / clean, 1e-12);
    for (size_t t = 0; t < THRESHOLDS; t++) {
        size_t features = 0;
        for (size_t k = 0; k < NODES * FEATURES; k++) {
            features +=
                w->sites[2 * (k / FEATURES) + 1].best[k % FEATURES].f1 >= w->result.thresholds[t];
        }
        suffices = edit_of(w, SAGE_F1_SUFFICIENCY, SAGE_NATIVE, 0, t);
        needed = edit_of(w, SAGE_F1_NECESSITY, SAGE_NATIVE, 0, t);
        assert_figure(w, suffices, sufficiency_of, suffices->figure, "f1 sufficiency");
        assert_figure(w, needed, necessity_of, needed->figure, "f1 necessity");
        cr_assert_eq(suffices->features, features);
    }
    for (size_t a = 0; a < ATTRIBUTES; a++) {
        const SageEdit *mean = edit_of(w, SAGE_SUPERVISED, SAGE_MEAN, a, 0),
                       *none = edit_of(w, SAGE_TARGET, SAGE_NONE, a, 0);
        SageEdit *untouched = w->section.edits;
        untouched->attribute = a;
        assert_figure(w, untouched, share_of, none->figure, "none");
        cr_assert_eq(none->magnitude, 0.0);
        assert_figure(w, mean, share_of, mean->figure, "mean");
        for (size_t k = 0; k < 2 * SAGE_KS; k++) {
            const SageEdit *e =
                edit_of(w, k < SAGE_KS ? SAGE_GREEDY : SAGE_AWARE, SAGE_NATIVE, a, k % SAGE_KS);
            double from = none->figure.value, least = mean_magnitude(w, mean);
            assert_figure(w, e, share_of, e->figure, "score");
            cr_assert_float_eq(e->magnitude, mean_magnitude(w, e), 1e-9);
            cr_assert_float_eq(e->score_rescaled,
                               (e->figure.value - from) / (mean->figure.value - from), 1e-9);
            cr_assert_float_eq(e->magnitude_rescaled, (e->magnitude - least) / (1.0 - least), 1e-9);
        }
    }
    arena_free(w->arena);
}

/* Ablation moves m by 5 %: what it moves tells nothing, of any method. */
Test(sage_section, a_low_resolution_leaves_necessity_and_recovered_undefined) {
    World *w = world_make();
    world_open(w);
    made_outcomes(w, 4.0, 3.8, 0.3f);
    sage_judge(&w->section, &w->cross);
    cr_assert(w->cross.resolution > 0.0 && w->cross.resolution < 0.1);
    for (SageMethod m = SAGE_MEAN; m < SAGE_METHODS; m++) {
        const SageEdit *suffices = edit_of(w, SAGE_SUFFICIENCY, m, 0, 0),
                       *needed = edit_of(w, SAGE_NECESSITY, m, 0, 0);
        cr_assert(isfinite(suffices->figure.value) && isfinite(suffices->figure.low));
        cr_assert(isnan(suffices->recovered.value) && isnan(suffices->recovered.low));
        cr_assert(isnan(needed->figure.value) && isnan(needed->figure.high));
        for (size_t k = 0; k < THRESHOLDS; k++) {
            if (sage_threshold_tested(&w->options, m, w->result.thresholds[k])) {
                needed = edit_of(w, SAGE_F1_NECESSITY, m, 0, k);
                cr_assert(isfinite(edit_of(w, SAGE_F1_SUFFICIENCY, m, 0, k)->figure.value));
                cr_assert(isnan(needed->figure.value) && isnan(needed->figure.low));
            }
        }
    }
    arena_free(w->arena);
}

/* m is 0 without edits, or the same with ablation; the model answers as the target does in all
 * prompts but a few; the supervised edit does no better than none. */
Test(sage_section, figures_of_a_denominator_of_0_are_undefined) {
    World *w = world_make();
    world_open(w);
    made_outcomes(w, 0.0, 0.0, 0.97f);
    for (size_t i = 0; i < 2; i++) { /* untouched, ablated */
        memset(w->section.trials[i].m, 0, TEST * sizeof(double));
    }
    sage_judge(&w->section, &w->cross);
    const SageEdit *suffices = edit_of(w, SAGE_SUFFICIENCY, SAGE_NATIVE, 0, 0),
                   *greedy = edit_of(w, SAGE_GREEDY, SAGE_NATIVE, 0, 0);
    cr_assert(isnan(w->cross.resolution));
    cr_assert(isnan(suffices->figure.value) && isnan(suffices->figure.low));
    cr_assert(isnan(suffices->recovered.value));
    cr_assert(isnan(edit_of(w, SAGE_NECESSITY, SAGE_NATIVE, 0, 0)->figure.value));
    cr_assert(edit_of(w, SAGE_TARGET, SAGE_NONE, 0, 0)->figure.value > 0.9);
    cr_assert(isfinite(greedy->figure.value));
    cr_assert(isnan(greedy->score_rescaled));
    cr_assert(isnan(greedy->magnitude_rescaled));

    made_outcomes(w, 4.0, 1.0, 0.5f);
    memcpy(trial_at(w, edit_of(w, SAGE_SUPERVISED, SAGE_MEAN, 0, 0))->predicted,
           w->section.trials->predicted, TEST * sizeof(int32_t));
    sage_judge(&w->section, &w->cross);
    cr_assert(isnan(greedy->score_rescaled));
    cr_assert(isfinite(greedy->magnitude_rescaled));
    greedy = edit_of(w, SAGE_GREEDY, SAGE_NATIVE, 1, 0);
    cr_assert(isfinite(greedy->score_rescaled), "the other attribute");
    arena_free(w->arena);
}
