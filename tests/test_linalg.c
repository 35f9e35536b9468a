/* linalg.c against numpy (tests/golden/linalg) and against the equations that define each result.
 */
#include "json.h"
#include "linalg.h"

#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Problem {
    const char *name;
    size_t rows, columns, rank;
    double cutoff;
    double *a, *b, *x, *s; /* a: row by row */
} Problem;

static double *numbers(Arena *arena, const Json *object, const char *key, size_t count) {
    const Json *list = json_get(object, key);
    cr_assert(json_is(list, JSON_ARRAY));
    cr_assert_eq(list->length, count);
    double *values = arena_alloc(arena, count + 1, sizeof(double));
    for (const Json *v = list->child; v != NULL; v = v->next) {
        *values++ = json_double(v);
    }
    return values - count;
}

static size_t size_of(const Json *object, const char *key) {
    int64_t value;
    cr_assert(json_int64(json_get(object, key), &value), "%s", key);
    return (size_t)value;
}

static const Json *golden(Arena *arena, const char *path) {
    return json_read_file(arena, path)->child;
}

static Problem problem(Arena *arena, const Json *p) {
    size_t rows = size_of(p, "rows"), columns = size_of(p, "columns");
    size_t small = rows < columns ? rows : columns;
    return (Problem){.name = json_get(p, "name")->text,
                     .rows = rows,
                     .columns = columns,
                     .rank = size_of(p, "rank"),
                     .cutoff = json_double(json_get(p, "cutoff")),
                     .a = numbers(arena, p, "a", rows * columns),
                     .b = numbers(arena, p, "b", rows),
                     .x = numbers(arena, p, "x", columns),
                     .s = numbers(arena, p, "s", small)};
}

/* A as it is taken: a wide one as it stands. */
static double *as_taken(Arena *arena, const Problem *p) {
    double *a = arena_alloc(arena, p->rows * p->columns, sizeof(double));
    if (p->rows < p->columns) {
        memcpy(a, p->a, p->rows * p->columns * sizeof(double));
        return a;
    }
    for (size_t i = 0; i < p->rows; i++) {
        for (size_t j = 0; j < p->columns; j++) {
            a[j * p->rows + i] = p->a[i * p->columns + j];
        }
    }
    return a;
}

static double norm(const double *x, size_t n) { /* safe from overflow: the goldens reach 1e120 */
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum = hypot(sum, x[i]);
    }
    return sum;
}

/* |x - y| in units of |y|. */
static double distance(const double *x, const double *y, size_t n) {
    double sum = 0, size = norm(y, n);
    for (size_t i = 0; i < n; i++) {
        sum = hypot(sum, x[i] - y[i]);
    }
    return size > 0 ? sum / size : sum;
}

/* What rounding may do to a solution: both sides perturb A by about n eps, which the condition
 * number of the part that counts (squared where a residual remains) carries into x. */
static double allowed(const Problem *p) {
    double condition = p->rank > 0 ? p->s[0] / p->s[p->rank - 1] : 1;
    double n = (double)(p->rows + p->columns);
    bool residual = p->rank < p->rows;
    return fmin(1e-3, 10 * n * DBL_EPSILON * condition * (residual ? fmax(1, condition) : 1));
}

Test(linalg, least_squares_as_numpy) {
    Arena *arena = arena_new();
    for (const Json *c = golden(arena, "tests/golden/linalg/least_squares.json"); c != NULL;
         c = c->next) {
        Problem p = problem(arena, c);
        double *work = arena_alloc(arena, least_squares_work(p.rows, p.columns), sizeof(double));
        double *x = arena_alloc(arena, p.columns, sizeof(double));
        least_squares(x, as_taken(arena, &p), p.b, p.rows, p.columns, p.cutoff, work);
        double off = distance(x, p.x, p.columns);
        cr_assert(off <= allowed(&p), "%s: %g of %g", p.name, off, allowed(&p));
    }
    arena_free(arena);
}

/* least_squares_work is enough, to the last element: the memory behind it stays as it was. */
Test(linalg, work_is_large_enough) {
    Random random = random_start(1, RANDOM_TEST);
    for (size_t rows = 0; rows < 7; rows++) {
        for (size_t n = 0; n < 7; n++) {
            size_t size = least_squares_work(rows, n);
            double *work = malloc((size + 1) * sizeof(double)), a[49], b[7], x[8];
            for (size_t i = 0; i < 49; i++) {
                a[i] = (double)random_uniform(&random);
                b[i % 7] = (double)random_uniform(&random);
            }
            work[size] = x[n] = 12345;
            least_squares(x, a, b, rows, n, 1e-10, work);
            cr_assert_eq(work[size], 12345);
            cr_assert_eq(x[n], 12345);
            free(work);
        }
    }
}

Test(linalg, singular_values_as_numpy) {
    Arena *arena = arena_new();
    for (const Json *c = golden(arena, "tests/golden/linalg/least_squares.json"); c != NULL;
         c = c->next) {
        Problem p = problem(arena, c);
        if (p.rows < p.columns) {
            continue;
        }
        size_t n = p.columns, rows = p.rows;
        double *u = as_taken(arena, &p), *s = arena_alloc(arena, n, sizeof(double));
        double *v = arena_alloc(arena, n * n, sizeof(double));
        thin_svd(u, s, v, rows, n);
        for (size_t k = 0; k < n;
             k++) { /* both are backward stable: errors are those of the largest */
            cr_assert(fabs(s[k] - p.s[k]) <= 64 * DBL_EPSILON * p.s[0], "%s: %g, %g", p.name, s[k],
                      p.s[k]);
            cr_assert(k == 0 || s[k] <= s[k - 1], "%s", p.name);
        }
        for (size_t i = 0; i < rows; i++) { /* A = U diag(s) V^T */
            for (size_t j = 0; j < n; j++) {
                double sum = 0;
                for (size_t k = 0; k < n; k++) {
                    sum += u[k * rows + i] * s[k] * v[k * n + j];
                }
                cr_assert(fabs(sum - p.a[i * n + j]) <= 64 * DBL_EPSILON * p.s[0], "%s", p.name);
            }
        }
        for (size_t k = 0; k < n * n; k++) { /* V^T V = 1; U^T U = 1 for the values that count */
            double vv = 0, uu = 0, one = k / n == k % n ? 1 : 0;
            for (size_t i = 0; i < n; i++) {
                vv += v[k / n * n + i] * v[k % n * n + i];
            }
            for (size_t i = 0; i < rows; i++) {
                uu += u[k / n * rows + i] * u[k % n * rows + i];
            }
            cr_assert(fabs(vv - one) < 1e-13, "%s", p.name);
            cr_assert(k / n >= p.rank || k % n >= p.rank || fabs(uu - one) < 1e-12, "%s: %g",
                      p.name, uu - one);
        }
    }
    arena_free(arena);
}

Test(linalg, pseudo_inverse_solves) {
    Arena *arena = arena_new();
    for (const Json *c = golden(arena, "tests/golden/linalg/least_squares.json"); c != NULL;
         c = c->next) {
        Problem p = problem(arena, c);
        if (p.rows < p.columns) {
            continue;
        }
        double *inverse = arena_alloc(arena, p.rows * p.columns, sizeof(double));
        double *work = arena_alloc(arena, p.columns * (p.columns + 1), sizeof(double));
        double *x = arena_alloc(arena, p.columns, sizeof(double));
        pseudo_inverse(inverse, as_taken(arena, &p), p.rows, p.columns, p.cutoff, work);
        for (size_t j = 0; j < p.columns; j++) {
            for (size_t i = 0; i < p.rows; i++) {
                x[j] += inverse[j * p.rows + i] * p.b[i];
            }
        }
        double off = distance(x, p.x, p.columns);
        cr_assert(off <= allowed(&p), "%s: %g of %g", p.name, off, allowed(&p));
    }
    arena_free(arena);
}

Test(linalg, eigenvalues_as_numpy) {
    Arena *arena = arena_new();
    for (const Json *c = golden(arena, "tests/golden/linalg/symmetric.json"); c != NULL;
         c = c->next) {
        const char *name = json_get(c, "name")->text;
        size_t n = size_of(c, "n");
        double *a = numbers(arena, c, "a", n * n), *expected = numbers(arena, c, "values", n);
        double *copy = arena_alloc(arena, n * n, sizeof(double)),
               *values = arena_alloc(arena, n, sizeof(double));
        double *vectors = arena_alloc(arena, n * n, sizeof(double));
        double largest = fmax(fabs(expected[0]), fabs(expected[n - 1]));
        memcpy(copy, a, n * n * sizeof(double));
        symmetric_eigen(copy, values, vectors, n);
        for (size_t k = 0; k < n; k++) {
            cr_assert(fabs(values[k] - expected[k]) <= 64 * DBL_EPSILON * largest, "%s: %g, %g",
                      name, values[k], expected[k]);
            for (size_t i = 0; i < n; i++) { /* A v = lambda v */
                double sum = 0;
                for (size_t j = 0; j < n; j++) {
                    sum += a[i * n + j] * vectors[k * n + j];
                }
                cr_assert(fabs(sum - values[k] * vectors[k * n + i]) <= 64 * DBL_EPSILON * largest,
                          "%s", name);
            }
            for (size_t m = 0; m < n; m++) {
                double dot = 0;
                for (size_t i = 0; i < n; i++) {
                    dot += vectors[k * n + i] * vectors[m * n + i];
                }
                cr_assert(fabs(dot - (k == m ? 1 : 0)) < 1e-13, "%s", name);
            }
        }
    }
    arena_free(arena);
}

/* The normal equations of the least squares problems: (A^T A)^+ A^T b for several b at once. */
Test(linalg, symmetric_solve_of_normal_equations) {
    static const char *const names[] = {"square",      "tall", "column",      "one",
                                        "one_hot",     "zero", "zero_column", "same_columns",
                                        "rank_2_tall", "wide"};
    Arena *arena = arena_new();
    size_t seen = 0;
    for (const Json *c = golden(arena, "tests/golden/linalg/least_squares.json"); c != NULL;
         c = c->next) {
        Problem p = problem(arena, c);
        size_t n = p.columns;
        bool wanted = false;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            wanted = wanted || strcmp(names[i], p.name) == 0;
        }
        if (!wanted) {
            continue;
        }
        double *gram = arena_alloc(arena, n * n, sizeof(double)),
               *right = arena_alloc(arena, 2 * n, sizeof(double));
        double *x = arena_alloc(arena, 2 * n, sizeof(double)),
               *first = arena_alloc(arena, n, sizeof(double));
        double *work = arena_alloc(arena, 2 * n * n + 2 * n, sizeof(double));
        for (size_t r = 0; r < p.rows; r++) {
            for (size_t i = 0; i < n; i++) {
                right[2 * i] += p.a[r * n + i] * p.b[r];
                right[2 * i + 1] -= 3 * p.a[r * n + i] * p.b[r];
                for (size_t j = 0; j < n; j++) {
                    gram[i * n + j] += p.a[r * n + i] * p.a[r * n + j];
                }
            }
        }
        symmetric_solve(x, gram, right, n, 2, 1e-10, work);
        for (size_t i = 0; i < n; i++) {
            first[i] = x[2 * i];
            cr_assert(fabs(x[2 * i + 1] + 3 * x[2 * i]) <= 1e-9 * (1 + fabs(x[2 * i])), "%s",
                      p.name);
        }
        /* Squaring the condition number (at most 100 here) costs 1e4 eps n. */
        cr_assert(distance(first, p.x, n) < 1e-10, "%s: %g", p.name, distance(first, p.x, n));
        seen++;
    }
    cr_assert_eq(seen, sizeof names / sizeof *names);
    arena_free(arena);
}

/* An attribute that does not move a node: its unknown gets exactly 0, and the others what they had.
 */
Test(linalg, an_unknown_without_evidence_is_zero) {
    double a[9] = {2, 0, 1, 0, 0, 0, 1, 0, 3}, b[3] = {1, 0, 2}, x[3], work[24];
    symmetric_solve(x, a, b, 3, 1, 1e-10, work);
    cr_assert_eq(x[1], 0);
    cr_assert_float_eq(x[0], 0.2, 1e-15);
    cr_assert_float_eq(x[2], 0.6, 1e-15);
    double same[4] = {1, 1, 1, 1}, right[2] = {1, 1}; /* collinear: the weight is shared */
    symmetric_solve(x, same, right, 2, 1, 1e-10, work);
    cr_assert_float_eq(x[0], 0.5, 1e-15);
    cr_assert_float_eq(x[1], 0.5, 1e-15);
}

Test(linalg, same_bits_again) {
    Random random = random_start(2, RANDOM_TEST);
    double a[60], copy[60], b[10], x[2][6], work[2][200];
    cr_assert(least_squares_work(10, 6) <= 200);
    for (size_t i = 0; i < 60; i++) {
        a[i] = (double)random_uniform(&random) - 0.5;
        b[i % 10] = (double)random_uniform(&random);
    }
    for (int k = 0; k < 2; k++) { /* what work holds before does not matter */
        memset(work[k], k == 0 ? 0 : 0x7F, sizeof work[k]);
        memcpy(copy, a, sizeof a);
        least_squares(x[k], copy, b, 10, 6, 1e-10, work[k]);
    }
    cr_assert_eq(memcmp(x[0], x[1], sizeof x[0]), 0);
}
