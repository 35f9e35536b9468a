/* kernels_simd.c: the loops of kernels.c, fast: compiled once for each instruction set (see
 * Makefile) into one KernelSet, bit for bit what the plain loops give. SIMD goes across outputs,
 * never along a sum. Nothing else needs this file. Floor 6. */
#include "kernelset.h"
#include "simd.h"

/* ==== products ==== */

enum {
    PANEL = TILE_N * VW,
    GROUP = BLOCK_N / PANEL * PANEL, /* columns of the panels that are packed together */
    GROUPS = (TILE_M + VW - 1) / VW, /* vectors that hold a tile's rows */
    BYTES_AHEAD = 256                /* of a row, fetched before they are read */
};

/* f(dtype, ...) with a dtype that the compiler knows, so that each has its own loop. */
#define BY_DTYPE(dtype, f, ...)                                                                    \
    do {                                                                                           \
        if ((dtype) == DTYPE_F32) {                                                                \
            f(DTYPE_F32, __VA_ARGS__);                                                             \
        } else if ((dtype) == DTYPE_BF16) {                                                        \
            f(DTYPE_BF16, __VA_ARGS__);                                                            \
        } else {                                                                                   \
            f(DTYPE_F16, __VA_ARGS__);                                                             \
        }                                                                                          \
    } while (0)

INLINE void prefetch(const void *p, size_t size) {
    for (size_t i = 0; i < size; i += 64) {
        __builtin_prefetch((const unsigned char *)p + i, 0, 2); /* as far as the second cache */
    }
}

INLINE vf load_widened(Dtype dtype, const unsigned char *p) {
    return dtype == DTYPE_F32    ? vu_float(vu_load(p))
           : dtype == DTYPE_BF16 ? vf_load_bf16(p)
                                 : vf_load_f16(p);
}

/* The first number of every word; and the second, of two that are 16 bits each. */
INLINE vf first_widened(Dtype dtype, vu words) {
    return dtype == DTYPE_F32    ? vu_float(words)
           : dtype == DTYPE_BF16 ? vu_bf16_low(words)
                                 : vu_f16_low(words);
}

INLINE vf second_widened(Dtype dtype, vu words) {
    return dtype == DTYPE_BF16 ? vu_bf16_high(words) : vu_f16_high(words);
}

/* VW rows of VW words each, transposed: a lane is a row. A row that does not exist (rows < VW)
 * repeats the last; words that do not exist (bytes < 4 VW) are 0. */
INLINE void load_transposed(vu r[VW], const unsigned char *p, ptrdiff_t stride, size_t rows,
                            size_t bytes) {
    if (bytes >= VW * 4) {
        UNROLL(16) for (size_t i = 0; i < VW; i++) {
            const unsigned char *row = p + (ptrdiff_t)(i < rows ? i : rows - 1) * stride;
            __builtin_prefetch(row + BYTES_AHEAD);
            r[i] = vu_load(row);
        }
    } else {
        unsigned char words[VW * 4] = {0};
        for (size_t i = 0; i < VW; i++) {
            memcpy(words, p + (ptrdiff_t)(i < rows ? i : rows - 1) * stride, bytes);
            r[i] = vu_load(words);
        }
    }
    vu_transpose(r);
}

/* What a word holds, a row of the panel each, unless fewer are `left`. */
INLINE void store_widened(Dtype dtype, float *out, vu words, size_t left) {
    vf_store(out, first_widened(dtype, words));
    if (dtype != DTYPE_F32 && left > 1) {
        vf_store(out + PANEL, second_widened(dtype, words));
    }
}

/* panel[k][PANEL] = B(n0 .. n0 + columns - 1, k0 .. k0 + depth - 1), B's k contiguous. */
INLINE void pack_rows(Dtype dtype, float *panel, const unsigned char *p, ptrdiff_t stride,
                      size_t columns, size_t depth) {
    const size_t each = dtype == DTYPE_F32 ? 1 : 2,
                 size = 4 / each; /* elements a word; their bytes */
    for (size_t n = 0; n < columns; n += VW, p += VW * stride) {
        for (size_t k = 0; k < depth; k += VW * each) {
            vu r[VW];
            const size_t left = depth - k;
            float *out = panel + k * PANEL + n;
            load_transposed(r, p + k * size, stride, columns - n, left * size);
            if (left >= VW * each) {
                UNROLL(16) for (size_t i = 0; i < VW; i++) {
                    store_widened(dtype, out + i * each * PANEL, r[i], each);
                }
                continue;
            }
            for (size_t i = 0; i * each < left; i++) {
                store_widened(dtype, out + i * each * PANEL, r[i], left - i * each);
            }
        }
    }
}

/* The same for `panels` whole panels of B whose n are contiguous: (k0 .. ) rows, each read once. */
INLINE void pack_columns(Dtype dtype, float *panel, const unsigned char *p, ptrdiff_t stride,
                         size_t panels, size_t depth) {
    for (size_t k = 0; k < depth; k++, p += stride) {
        for (size_t g = 0; g < panels; g++) {
            UNROLL(3) for (int j = 0; j < TILE_N; j++) {
                const size_t n = g * PANEL + (size_t)j * VW;
                vf_store(panel + (g * depth + k) * PANEL + j * VW,
                         load_widened(dtype, p + n * (dtype == DTYPE_F32 ? 4 : 2)));
            }
        }
    }
}

/* Columns n .. n_end - 1 and k .. k_end - 1 of B, which are packed at a time. */
typedef struct Part {
    size_t n, n_end, k, k_end;
} Part;

/* panel[g][k][PANEL] = B(part.n + g PANEL .., part.k ..). */
static void pack_panels(float *panel, const Product *p, Part part) {
    const size_t columns = part.n_end - part.n, depth = part.k_end - part.k;
    const ptrdiff_t size = p->b.dtype == DTYPE_F32 ? 4 : 2;
    const ptrdiff_t first = (ptrdiff_t)part.n * p->b_row + (ptrdiff_t)part.k * p->b_col;
    const unsigned char *from = weight_address(p->b, first);
    size_t done = 0; /* columns */
    for (; p->b_col == 1 && done < columns; done += PANEL, from += PANEL * p->b_row * size) {
        const size_t wide = columns - done < PANEL ? columns - done : PANEL;
        BY_DTYPE(p->b.dtype, pack_rows, panel + done * depth, from, p->b_row * size, wide, depth);
    }
    if (p->b_row == 1 && p->b_col != 1) {
        done = columns / PANEL * PANEL;
        BY_DTYPE(p->b.dtype, pack_columns, panel, from, p->b_col * size, columns / PANEL, depth);
    }
    for (size_t k = 0; k < depth; k++) {
        for (size_t n = done; n < columns; n++) {
            const ptrdiff_t at = first + (ptrdiff_t)n * p->b_row + (ptrdiff_t)k * p->b_col;
            panel[n / PANEL * PANEL * depth + k * PANEL + n % PANEL] = weight_read(p->b, at);
        }
    }
}

/* block[tile][k][TILE_M] = A(m0 .. m0 + rows - 1, k0 .. k0 + depth - 1), tile by tile of rows, so
 * that `tile` reads one stream. Rows that the last tile lacks hold anything. */
static void pack_block(float *block, const Product *p, size_t m0, size_t rows, size_t k0,
                       size_t depth) {
    const ptrdiff_t row = p->a_row * (ptrdiff_t)sizeof(float);
    for (size_t m = 0; m < rows; m += TILE_M, block += TILE_M * depth) {
        const size_t count = rows - m < TILE_M ? rows - m : TILE_M;
        const float *a = p->a + (ptrdiff_t)(m0 + m) * p->a_row + (ptrdiff_t)k0 * p->a_col;
        for (size_t k = 0; p->a_col == 1 && k < depth; k += VW) {
            const size_t left = depth - k < VW ? depth - k : VW;
            vu r[GROUPS][VW];
            UNROLL(2) for (size_t g = 0; g < GROUPS; g++) {
                const size_t first = g * VW < count ? g * VW : 0;
                load_transposed(r[g], (const unsigned char *)(a + k) + (ptrdiff_t)first * row, row,
                                count - first, left * sizeof *a);
            }
            for (size_t i = 0; i < left; i++) { /* lanes behind TILE_M give way to the next k */
                UNROLL(2) for (size_t g = 0; g < GROUPS; g++) {
                    vf_store(block + (k + i) * TILE_M + g * VW, vu_float(r[g][i]));
                }
            }
        }
        for (size_t k = 0; p->a_col != 1 && k < depth; k++) {
            for (size_t i = 0; i < count; i++) {
                block[k * TILE_M + i] = a[(ptrdiff_t)i * p->a_row + (ptrdiff_t)k * p->a_col];
            }
        }
    }
}

/* C[rows, PANEL] continued over `depth` k: rows * TILE_N chains of VW outputs in registers. */
INLINE void tile(int rows, float *c, size_t ldc, const float *a, const float *panel, size_t depth,
                 bool start) {
    vf acc[TILE_M][TILE_N];
    UNROLL(16) for (int m = 0; m < rows; m++) {
        UNROLL(4) for (int j = 0; j < TILE_N; j++) {
            acc[m][j] = start ? vf_set(0.0f) : vf_load(c + (size_t)m * ldc + j * VW);
        }
    }
    UNROLL(1)
    for (size_t k = 0; k < depth; k++) { /* as short as it can be: unrolled it loses 6 % */
        vf b[TILE_N];
        UNROLL(4) for (int j = 0; j < TILE_N; j++) {
            b[j] = vf_load(panel + k * PANEL + (size_t)j * VW);
        }
        UNROLL(16) for (int m = 0; m < rows; m++) {
            const vf x = vf_set(a[k * TILE_M + (size_t)m]);
            UNROLL(4) for (int j = 0; j < TILE_N; j++) {
                acc[m][j] = vf_fma(x, b[j], acc[m][j]);
            }
        }
    }
    UNROLL(16) for (int m = 0; m < rows; m++) {
        UNROLL(4) for (int j = 0; j < TILE_N; j++) {
            vf_store(c + (size_t)m * ldc + j * VW, acc[m][j]);
        }
    }
}

#define TILE_CASE(r)                                                                               \
    case r:                                                                                        \
        if (r <= TILE_M) {                                                                         \
            tile(r <= TILE_M ? r : 1, c, ldc, a, panel, depth, start);                             \
        }                                                                                          \
        break;

static void tile_rows(size_t rows, float *c, size_t ldc, const float *a, const float *panel,
                      size_t depth, bool start) {
    switch (rows) {
        TILE_CASE(1)
        TILE_CASE(2)
        TILE_CASE(3)
        TILE_CASE(4)
        TILE_CASE(5)
        TILE_CASE(6)
        TILE_CASE(7)
        TILE_CASE(8)
        TILE_CASE(9)
        TILE_CASE(10)
        TILE_CASE(11)
        TILE_CASE(12)
        TILE_CASE(13)
        TILE_CASE(14)
    }
}

static void add_bias(const Product *p, size_t m0, size_t m1, size_t n0, size_t n1) {
    for (size_t n = n0; p->bias.data != NULL && n < n1; n += PANEL) {
        float bias[PANEL];
        const size_t columns = n1 - n < PANEL ? n1 - n : PANEL;
        for (size_t i = 0; i < columns; i++) {
            bias[i] = weight_read(p->bias, (ptrdiff_t)(n + i));
        }
        for (size_t m = m0; m < m1; m++) {
            for (size_t i = 0; i < columns; i++) {
                p->c[m * p->ldc + n + i] += bias[i];
            }
        }
    }
}

/* One step of `stream`: VW words of VW rows of B, for k .. of `left` that are left. */
INLINE void stream_step(Dtype dtype, int rows, vf acc[STREAM_MAX], const float *a, ptrdiff_t a_row,
                        ptrdiff_t a_col, const unsigned char *b, ptrdiff_t stride, size_t columns,
                        size_t left) {
    const size_t each = dtype == DTYPE_F32 ? 1 : 2, size = 4 / each;
    const bool whole = left >= VW * each;
    vu r[VW];
    load_transposed(r, b, stride, columns, left * size);
    UNROLL(16) for (size_t i = 0; i < VW; i++) {
        if (!whole && i * each >= left) {
            break;
        }
        const vf first = first_widened(dtype, r[i]), second = second_widened(dtype, r[i]);
        UNROLL(8) for (int m = 0; m < rows; m++) {
            const float *x = a + m * a_row + (ptrdiff_t)(i * each) * a_col;
            acc[m] = vf_fma(vf_set(*x), first, acc[m]);
            if (each == 2 && (whole || i * each + 1 < left)) {
                acc[m] = vf_fma(vf_set(x[a_col]), second, acc[m]);
            }
        }
    }
}

/* groups * VW outputs: two groups are two chains that hide each other's latency. */
INLINE void stream_groups(Dtype dtype, int rows, size_t groups, const Product *p, size_t m0,
                          size_t n, size_t n1) {
    const size_t each = dtype == DTYPE_F32 ? 1 : 2, size = 4 / each, step = VW * each;
    const ptrdiff_t stride = p->b_row * (ptrdiff_t)size;
    const float *a = p->a + (ptrdiff_t)m0 * p->a_row;
    float c[2][STREAM_MAX][VW] = {{{0}}};
    const unsigned char *b[2];
    size_t columns[2];
    vf acc[2][STREAM_MAX];
    UNROLL(2) for (size_t g = 0; g < groups; g++) {
        const size_t first = n + g * VW;
        columns[g] = n1 - first < VW ? n1 - first : VW;
        b[g] = weight_address(p->b, (ptrdiff_t)first * p->b_row);
        UNROLL(8) for (int m = 0; m < rows; m++) {
            if (p->resume) {
                memcpy(c[g][m], p->c + (m0 + (size_t)m) * p->ldc + first,
                       columns[g] * sizeof(float));
            }
            acc[g][m] = vf_load(c[g][m]);
        }
    }
    size_t k = 0;
    for (; k + step <= p->k; k += step) {
        UNROLL(2) for (size_t g = 0; g < groups; g++) {
            stream_step(dtype, rows, acc[g], a + (ptrdiff_t)k * p->a_col, p->a_row, p->a_col,
                        b[g] + k * size, stride, columns[g], step);
        }
    }
    UNROLL(2) for (size_t g = 0; g < groups; g++) {
        if (k < p->k) {
            stream_step(dtype, rows, acc[g], a + (ptrdiff_t)k * p->a_col, p->a_row, p->a_col,
                        b[g] + k * size, stride, columns[g], p->k - k);
        }
        UNROLL(8) for (int m = 0; m < rows; m++) {
            vf_store(c[g][m], acc[g][m]);
            memcpy(p->c + (m0 + (size_t)m) * p->ldc + n + g * VW, c[g][m],
                   columns[g] * sizeof(float));
        }
    }
}

/* Few rows (decoding): B is read once, VW rows by 4 VW bytes a step, transposed in registers, so
 * that lanes are outputs and each chain runs on in its lane. */
INLINE void stream(Dtype dtype, int rows, const Product *p, size_t m0, size_t n0, size_t n1) {
    size_t n = n0;
    for (; STREAM_GROUPS == 2 && n + VW < n1; n += 2 * VW) {
        stream_groups(dtype, rows, 2, p, m0, n, n1);
    }
    for (; n < n1; n += VW) {
        stream_groups(dtype, rows, 1, p, m0, n, n1);
    }
}

INLINE void stream_typed(Dtype dtype, const Product *p, size_t m0, size_t rows, size_t n0,
                         size_t n1) {
    switch (rows) {
    case 1:
        stream(dtype, 1, p, m0, n0, n1);
        break;
    case 2:
        stream(dtype, 2, p, m0, n0, n1);
        break;
    case 3:
        stream(dtype, 3, p, m0, n0, n1);
        break;
    default:
        stream(dtype, 4, p, m0, n0, n1);
        break;
    }
}

/* The rows' chains over SPARSE_COLUMNS columns of W, outputs in registers. W's rows are `stride`
 * bytes apart and, unless ahead is 0, fetched so many entries before they are needed. */
INLINE void sparse_chains(Dtype dtype, const SparseList *list, float *y, const unsigned char *w,
                          ptrdiff_t stride, size_t ahead) {
    enum {
        VECTORS = SPARSE_COLUMNS / VW
    };
    const size_t size = dtype == DTYPE_F32 ? 4 : 2;
    for (size_t row = 0; row < list->part.rows; row++, y += list->part.n) {
        const float *value = list->value + row * list->slot;
        const uint32_t *column = list->column + row * list->slot;
        vf acc[VECTORS];
        UNROLL(16) for (size_t v = 0; v < VECTORS; v++) {
            acc[v] = vf_load(y + v * VW);
        }
        if (row + 2 < list->part.rows) {
            prefetch(y + 2 * list->part.n, SPARSE_COLUMNS * 4);
        }
        for (size_t i = 0; i < list->count[row]; i++) {
            const vf x = vf_set(value[i]);
            const unsigned char *at = w + (ptrdiff_t)column[i] * stride;
            if (ahead > 0 && i + ahead < list->count[row]) {
                prefetch(w + (ptrdiff_t)column[i + ahead] * stride, SPARSE_COLUMNS * size);
            }
            UNROLL(16) for (size_t v = 0; v < VECTORS; v++) {
                acc[v] = vf_fma(x, load_widened(dtype, at + v * VW * size), acc[v]);
            }
        }
        UNROLL(16) for (size_t v = 0; v < VECTORS; v++) {
            vf_store(y + v * VW, acc[v]);
        }
    }
}

/* W's rows read REUSE times or more are packed first: side by side they lie in few pages. */
INLINE void sparse_typed(Dtype dtype, const SparseList *list, size_t c, float *packed) {
    enum {
        AHEAD = 32,
        REUSE = 4
    };
    const Sparse *s = &list->part;
    const size_t size = dtype == DTYPE_F32 ? 4 : 2, room = SCRATCH_SIZE / (SPARSE_COLUMNS * 4);
    const ptrdiff_t stride = s->w_row * (ptrdiff_t)size;
    const unsigned char *w = weight_address(s->w, (ptrdiff_t)c);
    if (s->k > room || list->entries < REUSE * s->k) {
        sparse_chains(dtype, list, s->y + c, w, stride, 8);
        return;
    }
    for (size_t j = 0; j < s->k; j++) {
        const unsigned char *at = w + (ptrdiff_t)j * stride;
        if (j + AHEAD < s->k) {
            prefetch(at + AHEAD * stride, SPARSE_COLUMNS * size);
        }
        UNROLL(16) for (size_t v = 0; v < SPARSE_COLUMNS; v += VW) {
            vf_store(packed + j * SPARSE_COLUMNS + v, load_widened(dtype, at + v * size));
        }
    }
    sparse_chains(DTYPE_F32, list, s->y + c, (const unsigned char *)packed, SPARSE_COLUMNS * 4, 0);
}

static void sparse_block(const SparseList *list, size_t c0, size_t c1, void *scratch) {
    if (list->part.w_col == 1 && c1 - c0 == SPARSE_COLUMNS) {
        BY_DTYPE(list->part.w.dtype, sparse_typed, list, c0, scratch);
    } else {
        sparse_columns(list, c0, c1);
    }
}

/* The first tile of C[left, columns]; the rows of the one below it are fetched meanwhile. */
static void tile_at(size_t left, float *c, size_t ldc, size_t columns, const float *a,
                    const float *panel, size_t depth, bool start) {
    const size_t rows = left < TILE_M ? left : TILE_M;
    if (columns >= PANEL) {
        for (size_t r = TILE_M; r < 2 * TILE_M && r < left; r++) {
            prefetch(c + r * ldc, PANEL * sizeof(float));
        }
        tile_rows(rows, c, ldc, a, panel, depth, start);
        return;
    }
    float edge[TILE_M][PANEL] = {{0}};
    for (size_t r = 0; r < rows && !start; r++) {
        memcpy(edge[r], c + r * ldc, columns * sizeof(float));
    }
    tile_rows(rows, edge[0], PANEL, a, panel, depth, start);
    for (size_t r = 0; r < rows; r++) {
        memcpy(c + r * ldc, edge[r], columns * sizeof(float));
    }
}

static Part part_at(size_t n, size_t n1, size_t k, size_t k1) {
    return (Part){n, n1 - n < GROUP ? n1 : n + GROUP, k, k1 - k < BLOCK_K ? k1 : k + BLOCK_K};
}

/* The share-th of `shares` of what a part reads, while a tile before it computes. */
static void part_fetch(const Product *p, Part part, size_t share, size_t shares) {
    const bool by_column = p->b_col == 1; /* of B, whose k are then contiguous */
    const size_t columns = part.n_end - part.n, depth = part.k_end - part.k;
    const size_t lines = by_column ? columns : depth;
    const size_t bytes = (by_column ? depth : columns) * (p->b.dtype == DTYPE_F32 ? 4 : 2);
    for (size_t i = lines * share / shares; i < lines * (share + 1) / shares; i++) {
        const size_t n = part.n + (by_column ? i : 0), k = part.k + (by_column ? 0 : i);
        prefetch(weight_address(p->b, (ptrdiff_t)n * p->b_row + (ptrdiff_t)k * p->b_col), bytes);
    }
}

static double packing_start(const double *packing) {
    return packing != NULL ? progress_now() : 0.0;
}

static void packing_end(double *packing, double start) {
    if (packing != NULL) {
        *packing += progress_now() - start;
    }
}

static void product_block(const Product *p, size_t m0, size_t m1, size_t n0, size_t n1,
                          void *scratch, double *packing) {
    float *panel = scratch, *block = panel + BLOCK_K * GROUP;
    if (m1 - m0 <= STREAM_MAX && p->b_col == 1) {
        BY_DTYPE(p->b.dtype, stream_typed, p, m0, m1 - m0, n0, n1);
        add_bias(p, m0, m1, n0, n1);
        return;
    }
    for (size_t m = m0; p->k == 0 && !p->resume && m < m1; m++) {
        memset(p->c + m * p->ldc + n0, 0, (n1 - n0) * sizeof(float));
    }
    for (size_t k0 = 0; k0 < p->k; k0 += BLOCK_K) {
        const size_t depth = p->k - k0 < BLOCK_K ? p->k - k0 : BLOCK_K;
        double start = packing_start(packing);
        pack_block(block, p, m0, m1 - m0, k0, depth);
        packing_end(packing, start);
        for (size_t n = n0; n < n1; n += GROUP) {
            const Part part = part_at(n, n1, k0, p->k);
            const Part next = part.n_end < n1 ? part_at(part.n_end, n1, k0, p->k)
                                              : part_at(n0, n1, part.k_end, p->k);
            const size_t columns = part.n_end - n, panels = (columns + PANEL - 1) / PANEL;
            const size_t tiles = (m1 - m0 + TILE_M - 1) / TILE_M * panels;
            size_t done = 0;
            start = packing_start(packing);
            pack_panels(panel, p, part);
            packing_end(packing, start);
            for (size_t m = m0; m < m1; m += TILE_M) {
                for (size_t i = 0; i < columns; i += PANEL) {
                    part_fetch(p, next, done++, tiles);
                    tile_at(m1 - m, p->c + m * p->ldc + n + i, p->ldc, columns - i,
                            block + (m - m0) * depth, panel + i * depth, depth,
                            k0 == 0 && !p->resume);
                }
            }
        }
    }
    add_bias(p, m0, m1, n0, n1);
}

/* ==== rows ====
 * Sums of up to ROWS rows run beside each other, each in its own ascending chain; a row that does
 * not exist stands for the last again. */

enum {
    ROWS = 4
};

#define EACH_ROW(r) UNROLL(4) for (size_t r = 0; r < ROWS; r++)

INLINE size_t row_index(size_t row, size_t last) {
    return row < last ? row : last - 1;
}

static void norm_scale_rows(const Task *t, size_t first, size_t last) {
    const size_t n = t->cols;
    for (size_t row = first; row < last; row += ROWS) {
        const float *x[ROWS];
        double mean[ROWS] = {0}, sum[ROWS] = {0};
        EACH_ROW(r) {
            x[r] = t->a + row_index(row + r, last) * n;
        }
        for (size_t i = 0; t->y != NULL && i < n; i++) {
            EACH_ROW(r) {
                mean[r] += (double)x[r][i];
            }
        }
        EACH_ROW(r) {
            mean[r] /= (double)n; /* stays binary64 for the variance */
        }
        for (size_t i = 0; i < n; i++) {
            EACH_ROW(r) {
                const double d = (double)x[r][i] - mean[r];
                sum[r] += d * d;
            }
        }
        EACH_ROW(r) {
            const size_t at = row_index(row + r, last);
            if (t->y != NULL) {
                t->y[at] = (float)mean[r];
            }
            t->y2[at] = sqrtf((float)(sum[r] / (double)n) + t->scalar);
        }
    }
}

static void norm_normalize_rows(const Task *t, size_t first, size_t last) {
    for (size_t row = first; row < last; row++) {
        const float *x = t->a + row * t->cols, scale = t->scale[row];
        const float mean = t->mean != NULL ? t->mean[row] : 0.0f; /* x - 0 is x */
        float *y = t->y + row * t->cols;
        LANES for (size_t i = 0; i < t->cols; i++) {
            y[i] = (x[i] - mean) / scale;
        }
    }
}

static void norm_weight_rows(const Task *t, size_t first, size_t last) {
    enum {
        CHUNK = 256
    };
    for (size_t i0 = 0; i0 < t->cols; i0 += CHUNK) {
        const size_t count = t->cols - i0 < CHUNK ? t->cols - i0 : CHUNK;
        float w[CHUNK], b[CHUNK];
        for (size_t i = 0; i < count; i++) {
            w[i] = weight_read(t->w, (ptrdiff_t)(i0 + i)) + (t->flag ? 1.0f : 0.0f);
            b[i] = t->bias.data != NULL ? weight_read(t->bias, (ptrdiff_t)(i0 + i)) : -0.0f;
        }
        for (size_t row = first; row < last; row++) {
            const float *x = t->a + row * t->cols + i0;
            float *y = t->y + row * t->cols + i0;
            LANES for (size_t i = 0; i < count; i++) {
                y[i] = x[i] * w[i] + b[i]; /* x + -0 is x, for x = -0 too */
            }
        }
    }
}

/* dscale = -sum dnormalized * (x - mean) / scale^2 */
static void norm_scale_backward_rows(const Task *t, size_t first, size_t last) {
    const size_t n = t->cols;
    for (size_t row = first; row < last; row += ROWS) {
        const float *x[ROWS], *dn[ROWS];
        double sum[ROWS] = {0}, mean[ROWS];
        EACH_ROW(r) {
            const size_t at = row_index(row + r, last);
            x[r] = t->b + at * n;
            dn[r] = t->a + at * n;
            mean[r] = t->mean != NULL ? (double)t->mean[at] : 0.0;
        }
        for (size_t i = 0; i < n; i++) {
            EACH_ROW(r) {
                sum[r] += (double)dn[r][i] * ((double)x[r][i] - mean[r]);
            }
        }
        EACH_ROW(r) {
            const size_t at = row_index(row + r, last);
            const double scale = (double)t->scale[at];
            t->y[at] = (float)(-sum[r] / (scale * scale));
        }
    }
}

/* d = dnormalized / scale + (x - mean) (dscale / (n scale)); dx += d - mean(d), d if no mean */
static void norm_input_backward_rows(const Task *t, size_t first, size_t last) {
    const size_t n = t->cols;
    for (size_t row = first; row < last; row += ROWS) {
        const float *x[ROWS], *dn[ROWS];
        float mean[ROWS], scale[ROWS], factor[ROWS], centre[ROWS] = {0};
        double sum[ROWS] = {0};
        EACH_ROW(r) {
            const size_t at = row_index(row + r, last);
            x[r] = t->b + at * n;
            dn[r] = t->a + at * n;
            mean[r] = t->mean != NULL ? t->mean[at] : 0.0f;
            scale[r] = t->scale[at];
            factor[r] = t->dscale[at] / ((float)n * scale[r]);
        }
        if (t->mean != NULL) {
            for (size_t i = 0; i < n; i++) {
                EACH_ROW(r) {
                    sum[r] += (double)(dn[r][i] / scale[r] + (x[r][i] - mean[r]) * factor[r]);
                }
            }
            EACH_ROW(r) {
                centre[r] = (float)(sum[r] / (double)n);
            }
        }
        for (size_t r = 0; r < ROWS && row + r < last; r++) {
            float *dx = t->y + (row + r) * n;
            LANES for (size_t i = 0; i < n; i++) {
                dx[i] += dn[r][i] / scale[r] + (x[r][i] - mean[r]) * factor[r] - centre[r];
            }
        }
    }
}

/* The largest of n; NaN is passed over (it comes back through the exponentials). */
static float row_max(const float *x, size_t n) {
    enum {
        WAYS = 32
    };
    float max[WAYS];
    size_t i = 0;
    for (size_t j = 0; j < WAYS; j++) {
        max[j] = -INFINITY;
    }
    for (; i + WAYS <= n; i += WAYS) {
        LANES for (size_t j = 0; j < WAYS; j++) {
            max[j] = x[i + j] > max[j] ? x[i + j] : max[j];
        }
    }
    for (; i < n; i++) {
        max[0] = x[i] > max[0] ? x[i] : max[0];
    }
    for (size_t j = 1; j < WAYS; j++) {
        max[0] = max[j] > max[0] ? max[j] : max[0];
    }
    return max[0];
}

/* y = exp(x - max) for up to ROWS rows, and the sum of each. */
static void exp_rows(float *y, const float *x, float max[ROWS], double sum[ROWS], size_t row,
                     size_t last, size_t n) {
    const float *e[ROWS];
    EACH_ROW(r) {
        e[r] = y + row_index(row + r, last) * n;
        sum[r] = 0.0;
    }
    for (size_t r = 0; r < ROWS && row + r < last; r++) {
        const float *from = x + (row + r) * n;
        float *to = y + (row + r) * n;
        const float largest = max[r] = row_max(from, n);
        LANES for (size_t i = 0; i < n; i++) {
            to[i] = exp_one(from[i] - largest);
        }
    }
    for (size_t i = 0; i < n; i++) {
        EACH_ROW(r) {
            sum[r] += (double)e[r][i];
        }
    }
}

/* y = exp(x - max) / sum, the sum rounded to binary32 */
static void softmax_range(const Task *t, size_t first, size_t last) {
    for (size_t row = first; row < last; row += ROWS) {
        float max[ROWS];
        double sum[ROWS];
        exp_rows(t->y, t->a, max, sum, row, last, t->cols);
        for (size_t r = 0; r < ROWS && row + r < last; r++) {
            float *y = t->y + (row + r) * t->cols;
            const float divisor = (float)sum[r];
            LANES for (size_t i = 0; i < t->cols; i++) {
                y[i] = y[i] / divisor;
            }
        }
    }
}

/* dx = y (dy - sum dy y) */
static void softmax_backward_range(const Task *t, size_t first, size_t last) {
    const size_t n = t->cols;
    for (size_t row = first; row < last; row += ROWS) {
        const float *dy[ROWS], *y[ROWS];
        double sum[ROWS] = {0};
        EACH_ROW(r) {
            dy[r] = t->a + row_index(row + r, last) * n;
            y[r] = t->b + row_index(row + r, last) * n;
        }
        for (size_t i = 0; i < n; i++) {
            EACH_ROW(r) {
                sum[r] += (double)dy[r][i] * (double)y[r][i];
            }
        }
        for (size_t r = 0; r < ROWS && row + r < last; r++) {
            float *dx = t->y + (row + r) * n;
            const float centre = (float)sum[r];
            LANES for (size_t i = 0; i < n; i++) {
                dx[i] = y[r][i] * (dy[r][i] - centre);
            }
        }
    }
}

/* loss = log(sum exp(x - max)) - (x[target] - max), in binary64 after the exponentials;
 * dlogits = weight * (e^(x - max) / sum - onehot). */
static void cross_entropy_range(const Task *t, size_t first, size_t last) {
    enum {
        CHUNK = 1024
    };
    const size_t n = t->cols;
    for (size_t row = first; row < last; row++) {
        const float *x = t->a + row * n, max = row_max(x, n);
        const size_t target = (size_t)t->target[row];
        const double logit = (double)x[target] - (double)max;
        double sum = 0.0;
        float part[CHUNK];
        for (size_t i0 = 0; i0 < n; i0 += CHUNK) {
            const size_t count = n - i0 < CHUNK ? n - i0 : CHUNK;
            float *e = t->y != NULL ? t->y + row * n + i0 : part;
            LANES for (size_t i = 0; i < count; i++) {
                e[i] = exp_one(x[i0 + i] - max);
            }
            for (size_t i = 0; i < count; i++) {
                sum += (double)e[i];
            }
        }
        t->loss[row] = log_binary64(sum) - logit;
        if (t->y != NULL) {
            float *y = t->y + row * n;
            const float divisor = (float)sum, weight = t->b[row], hit = y[target];
            LANES for (size_t i = 0; i < n; i++) {
                y[i] = weight * (y[i] / divisor);
            }
            y[target] = weight * (hit / divisor - 1.0f);
        }
    }
}

/* half 1' = half 1 cos - half 2 sin, half 2' = half 2 cos + half 1 sin; backward: sin negated */
static void rope_range(const Task *t, size_t first, size_t last) {
    const size_t half = t->dim / 2, d_head = t->cols, n = t->heads * d_head;
    for (size_t row = first; row < last; row++) {
        const size_t at = (t->table_row != NULL ? t->table_row[row] : row) * half;
        const float *cosine = t->mean + at, *sine = t->scale + at;
        for (size_t head = 0; head < t->heads; head++) {
            const float *x = t->a + row * n + head * d_head;
            float *y = t->y + row * n + head * d_head;
            LANES for (size_t i = 0; i < half; i++) {
                const float a = x[i], b = x[i + half], s = t->flag ? -sine[i] : sine[i];
                y[i] = a * cosine[i] - b * s;
                y[i + half] = b * cosine[i] + a * s;
            }
            if (y != x) {
                memcpy(y + 2 * half, x + 2 * half, (d_head - 2 * half) * sizeof *y);
            }
        }
    }
}

/* ==== elements ==== */

#define LOOP LANES for (size_t i = first; i < last; i++)

#define EACH_ACTIVATION(ONE)                                                                       \
    ONE(ACT_GELU_TANH) ONE(ACT_GELU_ERF) ONE(ACT_QUICK_GELU) ONE(ACT_RELU) ONE(ACT_SILU)

static void activate_range(const Task *t, size_t first, size_t last) {
    const float *x = t->a;
    float *y = t->y;
#define ONE(act)                                                                                   \
    case act:                                                                                      \
        LOOP {                                                                                     \
            y[i] = activation(act, x[i]);                                                          \
        }                                                                                          \
        break;
    switch (t->kind) { EACH_ACTIVATION(ONE) }
#undef ONE
}

static void activate_backward_range(const Task *t, size_t first, size_t last) {
    const float *dy = t->a, *x = t->b;
    float *dx = t->y;
#define ONE(act)                                                                                   \
    case act:                                                                                      \
        LOOP {                                                                                     \
            dx[i] = activation_backward(act, dy[i], x[i]);                                         \
        }                                                                                          \
        break;
    switch (t->kind) { EACH_ACTIVATION(ONE) }
#undef ONE
}

static void softcap_range(const Task *t, size_t first, size_t last) {
    const float *x = t->a, cap = t->scalar;
    float *y = t->y;
    LOOP {
        y[i] = cap * tanh_one(x[i] / cap);
    }
}

static void softcap_backward_range(const Task *t, size_t first, size_t last) {
    const float *dy = t->a, *y = t->b, cap = t->scalar;
    float *dx = t->y;
    LOOP {
        const float th = y[i] / cap;
        dx[i] = dy[i] * (1.0f - th * th);
    }
}

static void add_range(const Task *t, size_t first, size_t last) {
    const float *x = t->a;
    float *y = t->y;
    LOOP {
        y[i] += x[i];
    }
}

static void multiply_range(const Task *t, size_t first, size_t last) {
    const float *a = t->a, *b = t->b;
    float *y = t->y;
    LOOP {
        y[i] = a[i] * b[i];
    }
}

static void scale_range(const Task *t, size_t first, size_t last) {
    const float *x = t->a, factor = t->scalar;
    float *y = t->y;
    LOOP {
        y[i] = x[i] * factor;
    }
}

static void adamw_range(const Task *t, size_t first, size_t last) {
    const float *g = t->a;
    const AdamW s = t->adamw;
    float *p = t->y, *m = t->y2, *v = t->y3;
    LOOP {
        const float decayed = p[i] * s.decay;
        m[i] = m[i] + s.one_minus_beta1 * (g[i] - m[i]);
        v[i] = v[i] * s.beta2 + s.one_minus_beta2 * g[i] * g[i];
        p[i] = decayed - s.lr_over_correction1 * m[i] / (sqrtf(v[i]) / s.sqrt_correction2 + s.eps);
    }
}

static void elementary_range(const Task *t, size_t first, size_t last) {
    const float *x = t->a;
    float *y = t->y;
#define ONE(kind, f)                                                                               \
    case kind:                                                                                     \
        LOOP {                                                                                     \
            y[i] = f(x[i]);                                                                        \
        }                                                                                          \
        break;
    switch (t->kind) {
        ONE(FN_EXP, exp_one)
        ONE(FN_LOG, log_one)
        ONE(FN_TANH, tanh_one)
        ONE(FN_ERF, erf_one)
        ONE(FN_SIN, sin_one)
        ONE(FN_COS, cos_one)
    }
#undef ONE
}

/* ==== limits of the machine, for bench ==== */

static float limit_multiply(size_t rounds, size_t *operations) {
    enum {
        CHAINS = 12
    };
    const vf x = vf_set(0.999f), y = vf_set(0.001f);
    vf acc[CHAINS];
    float out[VW], sum = 0.0f;
    UNROLL(12) for (int i = 0; i < CHAINS; i++) {
        acc[i] = vf_set((float)i);
    }
    for (size_t round = 0; round < rounds; round++) {
        UNROLL(12) for (int i = 0; i < CHAINS; i++) {
            acc[i] = vf_fma(acc[i], x, y);
        }
    }
    UNROLL(12) for (int i = 0; i < CHAINS; i++) {
        vf_store(out, acc[i]);
        sum += out[0];
    }
    *operations = 2 * CHAINS * VW * rounds;
    return sum;
}

static float limit_read(const void *data, size_t size) {
    enum {
        WAYS = 8
    };
    vf acc[WAYS];
    float out[VW], sum = 0.0f;
    const vf one = vf_set(1.0f);
    UNROLL(8) for (int i = 0; i < WAYS; i++) {
        acc[i] = vf_set(0.0f);
    }
    for (const unsigned char *p = data, *end = p + size; p + WAYS * VW * 4 <= end;
         p += WAYS * VW * 4) {
        UNROLL(8) for (int i = 0; i < WAYS; i++) {
            acc[i] = vf_fma(vu_float(vu_load(p + i * VW * 4)), one, acc[i]);
        }
    }
    UNROLL(8) for (int i = 0; i < WAYS; i++) {
        vf_store(out, acc[i]);
        sum += out[0];
    }
    return sum;
}

extern const KernelSet KERNEL_SET;
const KernelSet KERNEL_SET = {
    .name = KERNEL_SET_NAME,
    .panel = PANEL,
    .product = product_block,
    .sparse = sparse_block,
    .limit_multiply = limit_multiply,
    .limit_read = limit_read,
    .run = KERNEL_RUNS,
};
