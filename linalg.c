/* linalg.c: Jacobi methods (slow, short, accurate to the last digits) behind a QR step where the
 * matrix is tall, and alone that step where it is surely of full rank. Sums ascend, in binary64. */
#include "linalg.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum {
    MAX_SWEEPS = 60
};

/* Makes [app apq; apq aqq] diagonal: Golub and Van Loan, "Matrix Computations", 8.5.2. */
static void rotation(double app, double apq, double aqq, double *c, double *s) {
    double tau = (aqq - app) / (2.0 * apq);
    double t = 1.0 / (fabs(tau) + sqrt(1.0 + tau * tau));
    t = tau < 0.0 ? -t : t;
    *c = 1.0 / sqrt(1.0 + t * t);
    *s = t * *c;
}

static void jacobi_rotate(double *x, double *y, size_t n, size_t stride, double c, double s) {
    for (size_t i = 0; i < n; i++) {
        double a = x[i * stride], b = y[i * stride];
        x[i * stride] = c * a - s * b;
        y[i * stride] = s * a + c * b;
    }
}

static void swap_vectors(double *x, double *y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        double swap = x[i];
        x[i] = y[i];
        y[i] = swap;
    }
}

/* By falling value; beside value k stand the vectors k of u [n, u_size] and v [n, v_size]. */
static void sort_vectors(double *values, size_t n, double *u, size_t u_size, double *v,
                         size_t v_size) {
    for (size_t k = 0; k + 1 < n; k++) {
        size_t top = k;
        for (size_t j = k + 1; j < n; j++) {
            top = values[j] > values[top] ? j : top;
        }
        swap_vectors(values + k, values + top, 1);
        swap_vectors(u + k * u_size, u + top * u_size, u_size);
        swap_vectors(v + k * v_size, v + top * v_size, v_size);
    }
}

void symmetric_eigen(double *a, double *values, double *vectors, size_t n) {
    memset(vectors, 0, n * n * sizeof(double));
    for (size_t i = 0; i < n; i++) {
        vectors[i * n + i] = 1.0;
    }
    for (int sweep = 0; sweep < MAX_SWEEPS; sweep++) {
        bool changed = false;
        for (size_t p = 0; p < n; p++) {
            for (size_t q = p + 1; q < n; q++) {
                double apq = a[p * n + q], c, s;
                if (fabs(apq) <= DBL_MIN ||
                    fabs(apq) <= DBL_EPSILON * 0.5 * sqrt(fabs(a[p * n + p] * a[q * n + q]))) {
                    continue;
                }
                changed = true;
                rotation(a[p * n + p], apq, a[q * n + q], &c, &s);
                jacobi_rotate(a + p, a + q, n, n, c, s);         /* columns */
                jacobi_rotate(a + p * n, a + q * n, n, 1, c, s); /* rows */
                jacobi_rotate(vectors + p * n, vectors + q * n, n, 1, c, s);
            }
        }
        if (!changed) {
            break;
        }
    }
    for (size_t i = 0; i < n; i++) {
        values[i] = a[i * n + i];
    }
    sort_vectors(values, n, vectors, n, vectors, 0);
}

void symmetric_solve(double *x, double *a, const double *b, size_t n, size_t columns, double cutoff,
                     double *work) {
    double *vectors = work, *values = work + n * n;
    symmetric_eigen(a, values, vectors, n);
    memset(x, 0, n * columns * sizeof(double));
    for (size_t k = 0; k < n && values[k] > cutoff * values[0] && values[k] > 0.0; k++) {
        for (size_t j = 0; j < columns; j++) {
            double dot = 0.0;
            for (size_t i = 0; i < n; i++) {
                dot += vectors[k * n + i] * b[i * columns + j];
            }
            dot /= values[k];
            for (size_t i = 0; i < n; i++) {
                x[i * columns + j] += dot * vectors[k * n + i];
            }
        }
    }
}

void thin_svd(double *a, double *s, double *v, size_t rows, size_t n) {
    memset(v, 0, n * n * sizeof(double));
    for (size_t i = 0; i < n; i++) {
        v[i * n + i] = 1.0;
    }
    for (int sweep = 0; sweep < MAX_SWEEPS; sweep++) {
        bool changed = false;
        for (size_t p = 0; p < n; p++) {
            for (size_t q = p + 1; q < n; q++) {
                double *x = a + p * rows, *y = a + q * rows, app = 0.0, apq = 0.0, aqq = 0.0, c,
                       sine;
                for (size_t i = 0; i < rows; i++) {
                    app += x[i] * x[i];
                    apq += x[i] * y[i];
                    aqq += y[i] * y[i];
                }
                if (fabs(apq) <= DBL_MIN ||
                    fabs(apq) <= 4.0 * DBL_EPSILON * sqrt(app) * sqrt(aqq)) {
                    continue;
                }
                changed = true;
                rotation(app, apq, aqq, &c, &sine);
                jacobi_rotate(x, y, rows, 1, c, sine);
                jacobi_rotate(v + p * n, v + q * n, n, 1, c, sine);
            }
        }
        if (!changed) {
            break;
        }
    }
    for (size_t j = 0; j < n; j++) {
        double sum = 0.0;
        for (size_t i = 0; i < rows; i++) {
            sum += a[j * rows + i] * a[j * rows + i];
        }
        s[j] = sqrt(sum);
        for (size_t i = 0; i < rows && s[j] > 0.0; i++) {
            a[j * rows + i] /= s[j];
        }
    }
    sort_vectors(s, n, a, rows, v, n);
}

/* y -= (v . y / vv) v for each column y[rows] of `columns`; four sums run side by side, each
 * ascending. */
static void reflect(const double *v, double vv, double *y, size_t stride, size_t columns,
                    size_t rows) {
    for (; columns >= 4; columns -= 4, y += 4 * stride) {
        double *y1 = y + stride, *y2 = y1 + stride, *y3 = y2 + stride, a = 0.0, b = 0.0, c = 0.0,
               d = 0.0;
        for (size_t i = 0; i < rows; i++) {
            a += v[i] * y[i];
            b += v[i] * y1[i];
            c += v[i] * y2[i];
            d += v[i] * y3[i];
        }
        a /= vv;
        b /= vv;
        c /= vv;
        d /= vv;
        for (size_t i = 0; i < rows; i++) {
            y[i] -= a * v[i];
            y1[i] -= b * v[i];
            y2[i] -= c * v[i];
            y3[i] -= d * v[i];
        }
    }
    for (; columns > 0; columns--, y += stride) {
        double dot = 0.0;
        for (size_t i = 0; i < rows; i++) {
            dot += v[i] * y[i];
        }
        dot /= vv;
        for (size_t i = 0; i < rows; i++) {
            y[i] -= dot * v[i];
        }
    }
}

/* Householder QR of A[rows, n], rows >= n, column-major: R into the upper triangle of r[n, n]
 * (column-major), and the reflections applied to b[rows]. */
static void qr_reduce(double *a, double *b, double *r, size_t rows, size_t n) {
    memset(r, 0, n * n * sizeof(double));
    for (size_t k = 0; k < n; k++) {
        double *x = a + k * rows, norm = 0.0;
        for (size_t i = k; i < rows; i++) {
            norm += x[i] * x[i];
        }
        norm = sqrt(norm);
        double alpha = x[k] > 0.0 ? -norm : norm, v0 = x[k] - alpha,
               vv = norm * norm - alpha * x[k];
        for (size_t i = 0; i < k; i++) {
            r[k * n + i] = x[i];
        }
        r[k * n + k] = alpha;
        if (!(vv > 0.0)) {
            continue;
        }
        x[k] = v0;
        reflect(x + k, vv, x + rows + k, rows, n - k - 1, rows - k);
        reflect(x + k, vv, b + k, rows, 1, rows - k);
    }
}

/* x[count] = R^-1 x for the leading part of the upper triangle r[n, n] (column-major). */
static void back_substitute(double *x, const double *r, size_t n, size_t count) {
    for (size_t k = count; k-- > 0;) {
        x[k] /= r[k * n + k];
        for (size_t i = 0; i < k; i++) {
            x[i] -= r[k * n + i] * x[k];
        }
    }
}

/* Is no singular value of the triangle R at or below cutoff times the largest? |R|_F |R^-1|_F, at
 * least their ratio, says so for all but badly conditioned ones. work: [n]. */
static bool surely_full_rank(const double *r, size_t n, double cutoff, double *work) {
    double size = 0.0, inverse = 0.0;
    for (size_t j = 0; j < n; j++) {
        memset(work, 0, n * sizeof(double));
        work[j] = 1.0;
        back_substitute(work, r, n, j + 1);
        for (size_t i = 0; i <= j; i++) {
            size += r[j * n + i] * r[j * n + i];
            inverse += work[i] * work[i];
        }
    }
    return sqrt(size) * sqrt(inverse) * cutoff < 1.0;
}

size_t least_squares_work(size_t rows, size_t n) {
    size_t small = rows < n ? rows : n, large = rows < n ? n : rows;
    return 2 * small * small + large + small;
}

/* x[n] = sum_k v_k (u_k . b) / s_k over the s[count] above the cutoff, of u_k[rows], v_k[n]. */
static void svd_solve(double *x, const double *v, size_t n, const double *u, size_t rows,
                      const double *s, size_t count, const double *b, double cutoff) {
    for (size_t k = 0; k < count && s[k] > cutoff * s[0]; k++) {
        double dot = 0.0;
        for (size_t i = 0; i < rows; i++) {
            dot += u[k * rows + i] * b[i];
        }
        dot /= s[k];
        for (size_t i = 0; i < n; i++) {
            x[i] += dot * v[k * n + i];
        }
    }
}

void least_squares(double *x, double *a, const double *b, size_t rows, size_t n, double cutoff,
                   double *work) {
    memset(x, 0, n * sizeof(double));
    if (rows < n) { /* A^T = U diag(s) V^T */
        double *v = work, *s = v + rows * rows;
        thin_svd(a, s, v, n, rows);
        svd_solve(x, a, n, v, rows, s, rows, b, cutoff);
        return;
    }
    double *r = work, *v = r + n * n, *s = v + n * n, *rhs = s + n;
    memcpy(rhs, b, rows * sizeof(double));
    qr_reduce(a, rhs, r, rows, n);
    if (surely_full_rank(r, n, cutoff, s)) {
        memcpy(x, rhs, n * sizeof(double));
        back_substitute(x, r, n, n);
        return;
    }
    thin_svd(r, s, v, n, n);
    svd_solve(x, v, n, r, n, s, n, rhs, cutoff);
}

void pseudo_inverse(double *p, double *a, size_t rows, size_t n, double cutoff, double *work) {
    double *v = work, *s = v + n * n;
    thin_svd(a, s, v, rows, n);
    memset(p, 0, n * rows * sizeof(double));
    for (size_t k = 0; k < n && s[k] > cutoff * s[0]; k++) {
        for (size_t i = 0; i < n; i++) {
            double factor = v[k * n + i] / s[k];
            for (size_t r = 0; r < rows; r++) {
                p[i * rows + r] += factor * a[k * rows + r];
            }
        }
    }
}
