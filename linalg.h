/* linalg.h: SAGE's linear algebra, in binary64, with one fixed order of operations. Floor 2. */
#ifndef REFSAE_LINALG_H
#define REFSAE_LINALG_H

#include "base.h"

/* Eigenvalues (descending) and eigenvectors of the symmetric A[n, n] by cyclic Jacobi rotations: A
 * is destroyed, values[n], vectors[n, n] with vector k in row k. */
void symmetric_eigen(double *a, double *values, double *vectors, size_t n);

/* X[n, columns] = A^+ B for symmetric positive semidefinite A[n, n], B[n, columns]; eigenvalues up
 * to cutoff times the largest count as 0. Minimum norm. A is destroyed; work: [n n + n]. */
void symmetric_solve(double *x, double *a, const double *b, size_t n, size_t columns, double cutoff,
                     double *work);

/* Thin singular value decomposition by one-sided Jacobi: A[rows, n] = U diag(s) V^T with rows >= n,
 * A column-major (a[j * rows + i]) and overwritten by U; s[n] descending; V[n, n] column-major. */
void thin_svd(double *a, double *s, double *v, size_t rows, size_t n);

/* The minimum-norm x[n] of least |A x - b| for A[rows, n], column-major where rows >= n, else
 * row-major; singular values at or below cutoff times the largest count as zero. A is destroyed.
 * work: least_squares_work(rows, n) doubles. */
size_t least_squares_work(size_t rows, size_t n);
void least_squares(double *x, double *a, const double *b, size_t rows, size_t n, double cutoff,
                   double *work);

/* P[n, rows] row-major = A^+ of A[rows, n] column-major, destroyed; rows >= n; work: [n n + n]. */
void pseudo_inverse(double *p, double *a, size_t rows, size_t n, double cutoff, double *work);

#endif
