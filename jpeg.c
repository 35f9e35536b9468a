/* jpeg.c: JPEG (ITU-T T.81): baseline, extended sequential and progressive files of 8 bits with
 * Huffman codes, one, three or four components, to the pixels of Pillow's convert("RGB").
 *
 *   markers -> scans -> coefficients [block][64] -> inverse DCT -> planes -> upsampling -> RGB
 *
 * JPEG leaves the arithmetic to the decoder, so "equal pixels" means equal to one decoder:
 * libjpeg-turbo with its defaults (accurate integer DCT, triangle upsampling), which is what Pillow
 * uses. Easy to get wrong:
 *
 *   - The inverse DCT rounds between its passes and, in the SIMD forms that everybody runs, keeps
 *     16 bits there: dequantised values and sums wrap, results of a pass saturate.
 *   - Triangle upsampling exists for 2:1 horizontal, vertical and both; it needs more than two
 *     samples a row when horizontal; every other ratio repeats samples. Rounding alternates.
 *   - Its neighbours end at the component's true size, ceil(size * sampling / maximum), not at the
 *     block edge.
 *   - Damaged data is decoded on, as zeros up to the next restart; a file that ends before its last
 *     scan does is an error, as in Pillow.
 *   - Four components are inverted (Adobe's habit) before CMYK -> RGB, marker or not. */
#include "jpeg.h"

#include <string.h>

enum {
    MAX_COMPONENTS = 4,
    MAX_MCU_BLOCKS = 10,   /* T.81 B.2.3 */
    MAX_SCANS = 500,       /* real files have about 10 */
    FREE_VISITS = 1 << 22, /* of blocks in all scans: below a second, or as the file's length */
    BYTE_VISITS = 64,
    SMOOTHED = 10 /* DC and the AC coefficients without which libjpeg-turbo smooths */
};

typedef struct HuffmanTable {
    bool defined;
    unsigned char count[17]; /* codes of each length */
    unsigned char symbol[256];
    /* derived when a scan uses it */
    int32_t max_code[18]; /* of each length, -1: none; [17] ends every search */
    int32_t offset[18];   /* symbol index = code + offset[length] */
    uint16_t look[256];   /* next 8 bits -> length << 8 | symbol; 0: longer code */
} HuffmanTable;

typedef struct Component {
    unsigned char id, quant_index, dc_table, ac_table;
    size_t h, v;                     /* sampling factors */
    size_t blocks_wide, blocks_high; /* that hold samples of the picture */
    size_t stride;                   /* allocated blocks in a row: whole MCUs */
    size_t width, height;            /* samples of the picture */
    int16_t *coef;        /* [mcu_rows * v][stride][64] row-major blocks, not dequantised */
    unsigned char *plane; /* [blocks_high * 8][blocks_wide * 8] */
    uint16_t quant[64];   /* latched at the component's first scan; 0 before */
    bool quant_latched;
    uint32_t dc;           /* prediction; wraps on hostile data */
    int missing[SMOOTHED]; /* progressive: bits still missing of coefficient k, -1: all */
} Component;

typedef struct Jpeg {
    const unsigned char *data;
    size_t size, at;
    const char *name;
    Arena *scratch;
    int marker; /* read and not yet acted on; 0: none */

    bool saw_frame, progressive, saw_jfif, saw_adobe;
    unsigned char adobe_transform;
    size_t width, height, n_components, h_max, v_max, mcu_rows, mcu_columns;
    Component component[MAX_COMPONENTS];
    uint16_t quant[4][64];
    bool quant_defined[4];
    HuffmanTable dc[4], ac[4];

    /* scan */
    size_t scans, visits, in_scan, restart_interval, restarts_left, next_restart;
    Component *scan[MAX_COMPONENTS];
    int first, last, high, low; /* Ss, Se, Ah, Al */

    /* bits */
    uint64_t bits;
    int n_bits;
    bool starved;   /* a marker came too early: zeros until the next restart */
    bool truncated; /* the file ended */
    uint32_t end_of_band_run;
} Jpeg;

/* zigzag[k]: place of coefficient k in the 8x8 block, row-major. Damaged runs reach k = 79. */
static const unsigned char zigzag[80] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33,
    40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36,
    29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};

REFSAE_NORETURN static void jpeg_fail(Jpeg *j, const char *what) {
    fail(STATUS_INPUT, "%s: JPEG: %s", j->name, what);
}

REFSAE_NORETURN static void jpeg_truncated(Jpeg *j) {
    jpeg_fail(j, "the file ends before the picture is complete");
}

/* ---- bytes and markers ---- */

/* Next byte, or -1 at the end of the file. */
static int next_byte(Jpeg *j) {
    return j->at < j->size ? j->data[j->at++] : -1;
}

/* Skips to the next marker (any run of FF, then neither 0 nor FF); false at the end of the file. */
static bool next_marker(Jpeg *j) {
    int c = 0;
    while (c == 0) {
        do {
            c = next_byte(j);
        } while (c >= 0 && c != 0xFF);
        while (c == 0xFF) {
            c = next_byte(j);
        }
    }
    j->marker = c < 0 ? 0 : c;
    return c > 0;
}

/* The segment after a marker, without its length word (below 2: nothing). False: the file ends. */
static bool read_segment(Jpeg *j, const unsigned char **segment, size_t *length) {
    if (j->size - j->at < 2) {
        return false;
    }
    size_t n = (size_t)j->data[j->at] << 8 | j->data[j->at + 1];
    n = n < 2 ? 0 : n - 2;
    j->at += 2;
    if (j->size - j->at < n) {
        return false;
    }
    *segment = j->data + j->at;
    *length = n;
    j->at += n;
    return true;
}

static void read_quant_tables(Jpeg *j, const unsigned char *s, size_t n) {
    while (n > 0) {
        size_t wide = s[0] >> 4 ? 2 : 1, index = s[0] & 15;
        if (index > 3 || n < 1 + 64 * wide) {
            jpeg_fail(j, "bad quantization table");
        }
        for (size_t k = 0; k < 64; k++) {
            const unsigned char *p = s + 1 + k * wide;
            j->quant[index][zigzag[k]] = (uint16_t)(wide == 2 ? p[0] << 8 | p[1] : p[0]);
        }
        j->quant_defined[index] = true;
        s += 1 + 64 * wide;
        n -= 1 + 64 * wide;
    }
}

static void read_huffman_tables(Jpeg *j, const unsigned char *s, size_t n) {
    while (n > 16) {
        size_t index = s[0] & 0xEF, count = 0;
        HuffmanTable *table = s[0] & 0x10 ? j->ac : j->dc;
        for (size_t i = 1; i <= 16; i++) {
            count += s[i];
        }
        if (index > 3 || count > 256 || count > n - 17) {
            jpeg_fail(j, "bad Huffman table");
        }
        table += index;
        memset(table, 0, sizeof *table);
        table->defined = true;
        memcpy(table->count + 1, s + 1, 16);
        memcpy(table->symbol, s + 17, count);
        s += 17 + count;
        n -= 17 + count;
    }
    if (n != 0) {
        jpeg_fail(j, "bad Huffman table");
    }
}

static void read_frame(Jpeg *j, const unsigned char *s, size_t n) {
    if (n < 6 || n != 6 + (size_t)s[5] * 3) {
        jpeg_fail(j, "bad frame header");
    }
    if (s[0] != 8) {
        fail(STATUS_INPUT, "%s: JPEG: %d bits a sample are not supported, only 8", j->name, s[0]);
    }
    j->height = (size_t)s[1] << 8 | s[2];
    j->width = (size_t)s[3] << 8 | s[4];
    j->n_components = s[5];
    if (j->n_components != 1 && j->n_components != 3 && j->n_components != 4) {
        fail(STATUS_INPUT, "%s: JPEG: %d components are not supported", j->name, (int)s[5]);
    }
    image_check_size(j->width, j->height, j->name);
    image_check_memory(3 * j->width * j->height, j->size, j->name);
    j->h_max = j->v_max = 1;
    for (size_t i = 0; i < j->n_components; i++) {
        Component *c = &j->component[i];
        const unsigned char *p = s + 6 + i * 3;
        c->id = p[0];
        c->h = p[1] >> 4;
        c->v = p[1] & 15;
        c->quant_index = p[2];
        if (c->h < 1 || c->h > 4 || c->v < 1 || c->v > 4) {
            jpeg_fail(j, "sampling factors must be 1 to 4");
        }
        j->h_max = c->h > j->h_max ? c->h : j->h_max;
        j->v_max = c->v > j->v_max ? c->v : j->v_max;
    }
    j->mcu_rows = (j->height + 8 * j->v_max - 1) / (8 * j->v_max);
    j->mcu_columns = (j->width + 8 * j->h_max - 1) / (8 * j->h_max);
    for (size_t i = 0; i < j->n_components; i++) {
        Component *c = &j->component[i];
        if (j->h_max % c->h != 0 || j->v_max % c->v != 0) {
            jpeg_fail(j, "fractional sampling ratios are not supported");
        }
        c->width = (j->width * c->h + j->h_max - 1) / j->h_max;
        c->height = (j->height * c->v + j->v_max - 1) / j->v_max;
        c->blocks_wide = (c->width + 7) / 8;
        c->blocks_high = (c->height + 7) / 8;
        c->stride = j->mcu_columns * c->h;
        memset(c->missing, -1, sizeof c->missing);
    }
    j->saw_frame = true;
}

static void read_scan_header(Jpeg *j, const unsigned char *s, size_t n) {
    if (!j->saw_frame) {
        jpeg_fail(j, "a scan before the frame header");
    }
    if (n < 1 || s[0] < 1 || s[0] > MAX_COMPONENTS || n != 4 + 2 * (size_t)s[0]) {
        jpeg_fail(j, "bad scan header");
    }
    j->in_scan = s[0];
    memset(j->scan, 0, sizeof j->scan);
    for (size_t i = 0; i < j->in_scan; i++) {
        size_t found = 0; /* of components with equal ids, each is taken once, in order */
        while (found < j->n_components &&
               (j->component[found].id != s[1 + 2 * i] || j->scan[found] != NULL)) {
            found++;
        }
        for (size_t k = 0; found < j->n_components && k < i; k++) {
            found = j->scan[k] == &j->component[found] ? j->n_components : found;
        }
        if (found >= j->n_components) {
            jpeg_fail(j, "a scan names a component that the frame does not have");
        }
        j->scan[i] = &j->component[found];
        j->scan[i]->dc_table = s[2 + 2 * i] >> 4;
        j->scan[i]->ac_table = s[2 + 2 * i] & 15;
    }
    j->first = j->progressive ? s[n - 3] : 0;
    j->last = j->progressive ? s[n - 2] : 63;
    j->high = j->progressive ? s[n - 1] >> 4 : 0;
    j->low = j->progressive ? s[n - 1] & 15 : 0;
    j->next_restart = 0;
    for (size_t i = 0; i < j->in_scan; i++) {
        j->visits += j->scan[i]->blocks_wide * j->scan[i]->blocks_high;
    }
    if (++j->scans > MAX_SCANS || j->visits > FREE_VISITS + BYTE_VISITS * j->size) {
        fail(STATUS_INPUT, "%s: JPEG: too many scans (%zu) for its size", j->name, j->scans);
    }
}

/* Markers that cannot be followed, and why. */
static const struct Refusal {
    int first, last;
    const char *what;
} refusals[] = {
    {0x02, 0xBF, "unknown marker"},
    {0xC3, 0xC3, "lossless files are not supported"},
    {0xC5, 0xC7, "hierarchical files are not supported"},
    {0xC8, 0xC8, "unknown marker"},
    {0xC9, 0xCA, "arithmetic coding is not supported"},
    {0xCB, 0xCB, "lossless files are not supported"},
    {0xCC, 0xCC, "arithmetic coding is not supported"},
    {0xCD, 0xCF, "hierarchical files are not supported"},
    {0xD8, 0xD8, "a second start of image"},
    {0xDE, 0xDF, "hierarchical files are not supported"},
    {0xF0, 0xFD, "unknown marker"},
};

/* Acts on markers until a scan has been announced; false: the picture is over. At the end of the
 * file: an error, or if `lenient` the end of the picture. */
static bool read_markers(Jpeg *j, bool lenient) {
    while (j->marker != 0 || next_marker(j)) {
        int marker = j->marker;
        j->marker = 0;
        if ((marker >= 0xD0 && marker <= 0xD7) || marker == 0x01) {
            continue; /* restart, TEM: nothing follows them */
        }
        if (marker == 0xD9) {
            return false;
        }
        for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
            if (marker >= refusals[i].first && marker <= refusals[i].last) {
                fail(STATUS_INPUT, "%s: JPEG: %s (0x%02X)", j->name, refusals[i].what, marker);
            }
        }
        if (marker <= 0xC2 && j->saw_frame) {
            jpeg_fail(j, "two frame headers");
        }
        const unsigned char *s;
        size_t n;
        if (!read_segment(j, &s, &n)) {
            break;
        }
        switch (marker) {
        case 0xC0:
        case 0xC1:
        case 0xC2:
            j->progressive = marker == 0xC2;
            read_frame(j, s, n);
            break;
        case 0xC4:
            read_huffman_tables(j, s, n);
            break;
        case 0xDA:
            read_scan_header(j, s, n);
            return true;
        case 0xDB:
            read_quant_tables(j, s, n);
            break;
        case 0xDD:
            if (n != 2) {
                jpeg_fail(j, "bad restart interval");
            }
            j->restart_interval = (size_t)s[0] << 8 | s[1];
            break;
        case 0xE0:
            j->saw_jfif = j->saw_jfif || (n >= 14 && memcmp(s, "JFIF", 5) == 0);
            break;
        case 0xEE:
            if (n >= 12 && memcmp(s, "Adobe", 5) == 0) {
                j->saw_adobe = true;
                j->adobe_transform = s[11];
            }
            break;
        default: /* APPn, COM, DNL say nothing about the pixels here */
            break;
        }
    }
    if (!lenient) {
        jpeg_truncated(j);
    }
    return false;
}

/* ---- Huffman codes ---- */

/* Builds the search tables of T.81 C.2 and F.2.2.3; refuses codes that do not fit their length. */
static void derive_table(Jpeg *j, HuffmanTable *tables, size_t index, bool dc) {
    if (index > 3 || !tables[index].defined) {
        jpeg_fail(j, "a scan uses a Huffman table that is not there");
    }
    HuffmanTable *t = &tables[index];
    int32_t code = 0, p = 0;
    memset(t->look, 0, sizeof t->look);
    for (int length = 1; length <= 16; length++) {
        int32_t n = t->count[length];
        if (n > 0 && code + n > (1 << length) - 1) { /* all ones is no code */
            jpeg_fail(j, "impossible Huffman table");
        }
        t->offset[length] = p - code;
        t->max_code[length] = n > 0 ? code + n - 1 : -1;
        for (int32_t i = 0; i < n; i++, p++, code++) {
            if (dc && t->symbol[p] > 15) {
                jpeg_fail(j, "impossible Huffman table");
            }
            for (int32_t k = 0; length <= 8 && k < 1 << (8 - length); k++) {
                t->look[(code << (8 - length)) + k] = (uint16_t)(length << 8 | t->symbol[p]);
            }
        }
        code <<= 1;
    }
    t->max_code[17] = INT32_MAX;
}

/* Loads at least 57 bits, unless a marker comes first; then zeros, if `need` bits are not there. */
static void fill_bits(Jpeg *j, int need) {
    while (j->marker == 0 && j->n_bits <= 56) {
        int c = next_byte(j);
        if (c == 0xFF) {
            do {
                c = next_byte(j);
            } while (c == 0xFF);
            if (c > 0) {
                j->marker = c;
                break;
            }
            c = c == 0 ? 0xFF : c;
        }
        if (c < 0) {
            j->truncated = true;
            c = 0;
        }
        j->bits = j->bits << 8 | (unsigned)c;
        j->n_bits += 8;
    }
    if (need > j->n_bits) {
        j->starved = true;
        j->bits <<= 57 - j->n_bits;
        j->n_bits = 57;
    }
}

static inline int read_bits(Jpeg *j, int n) {
    if (j->n_bits < n) {
        fill_bits(j, n);
    }
    j->n_bits -= n;
    return (int)(j->bits >> j->n_bits & ((1u << n) - 1));
}

/* T.81 F.2.2.1: n bits as a signed difference. */
static inline int read_signed(Jpeg *j, int n) {
    int value = read_bits(j, n);
    return value < 1 << (n - 1) ? value - (1 << n) + 1 : value;
}

static int read_symbol(Jpeg *j, const HuffmanTable *t) {
    if (j->n_bits < 8) {
        fill_bits(j, 0);
    }
    int length = 1;
    if (j->n_bits >= 8) {
        unsigned look = t->look[j->bits >> (j->n_bits - 8) & 255];
        if (look != 0) {
            j->n_bits -= (int)(look >> 8);
            return (int)(look & 255);
        }
        length = 9;
    }
    int32_t code = read_bits(j, length);
    while (code > t->max_code[length]) {
        code = code << 1 | read_bits(j, 1);
        length++;
    }
    return length > 16 ? 0 : t->symbol[(code + t->offset[length]) & 255]; /* no such code: 0 */
}

/* ---- blocks ---- */

static int16_t wrap16(int value) {
    return (int16_t)(uint16_t)value;
}

/* How many bands, this one among them, end here: of T.81 G.1.2.2; a sequential block ends alone. */
static uint32_t read_band_run(Jpeg *j, int run) {
    return j->progressive ? (1u << run) + (uint32_t)(run > 0 ? read_bits(j, run) : 0) : 1;
}

/* The first bits of the scan's coefficients; of a sequential file, all. */
static void decode_first(Jpeg *j, Component *c, int16_t *block) {
    if (j->first == 0) {
        int n = read_symbol(j, &j->dc[c->dc_table]);
        c->dc += (uint32_t)(n > 0 ? read_signed(j, n) : 0);
        block[0] = wrap16((int)(c->dc << j->low));
    }
    if (j->end_of_band_run > 0) {
        j->end_of_band_run--;
        return;
    }
    int last = j->last, scale = 1 << j->low;
    for (int k = j->first > 0 ? j->first : 1; k <= last; k++) { /* a scan of DC has no AC table */
        int symbol = read_symbol(j, &j->ac[c->ac_table]), run = symbol >> 4, n = symbol & 15;
        if (n == 0 && run != 15) {
            j->end_of_band_run = read_band_run(j, run) - 1;
            break;
        }
        k += run;
        if (n > 0) {
            block[zigzag[k]] = wrap16(read_signed(j, n) * scale);
        }
    }
}

/* One more bit for a coefficient, unless it is zero. */
static void refine(Jpeg *j, int16_t *coef) {
    int bit = 1 << j->low;
    if (*coef != 0 && read_bits(j, 1) && (*coef & bit) == 0) {
        *coef = wrap16(*coef + (*coef >= 0 ? bit : -bit));
    }
}

/* One more bit of what earlier scans began. */
static void decode_refine(Jpeg *j, Component *c, int16_t *block) {
    if (j->first == 0) {
        block[0] = (int16_t)(block[0] | read_bits(j, 1) << j->low);
        return;
    }
    int k = j->first;
    while (j->end_of_band_run == 0 && k <= j->last) {
        int symbol = read_symbol(j, &j->ac[c->ac_table]), run = symbol >> 4, value = 0;
        if ((symbol & 15) > 0) {
            value = read_bits(j, 1) ? 1 << j->low : -(1 << j->low);
        } else if (run != 15) {
            j->end_of_band_run = read_band_run(j, run);
            break;
        }
        /* over `run` zeros, refining what is not zero on the way, to the zero that becomes value */
        for (; k <= j->last && (block[zigzag[k]] != 0 || --run >= 0); k++) {
            refine(j, &block[zigzag[k]]);
        }
        if (value != 0) {
            block[zigzag[k]] = wrap16(value);
        }
        k++;
    }
    if (j->end_of_band_run > 0) {
        for (; k <= j->last; k++) {
            refine(j, &block[zigzag[k]]);
        }
        j->end_of_band_run--;
    }
}

/* ---- inverse DCT ---- */

enum {
    DCT_BITS = 13,
    PASS_BITS = 2
};

/* Eight values `step` apart, in place: libjpeg's accurate integer DCT (Loeffler, Ligtenberg,
 * Moschytz 1989, 11 multiplications), constants scaled by 2^13, result shifted right by `shift`
 * with rounding and saturated. No sum below exceeds 2^31 for any input. */
static void dct_8(int16_t *v, ptrdiff_t step, int shift) {
    int32_t v0 = v[0], v1 = v[step], v2 = v[2 * step], v3 = v[3 * step];
    int32_t v4 = v[4 * step], v5 = v[5 * step], v6 = v[6 * step], v7 = v[7 * step];

    int32_t sum = wrap16(v0 + v4) * (1 << DCT_BITS), diff = wrap16(v0 - v4) * (1 << DCT_BITS);
    int32_t even3 = v2 * 10703 + v6 * 4433, even2 = v2 * 4433 - v6 * 10704;
    int32_t even[4] = {sum + even3, diff + even2, diff - even2, sum - even3};

    int32_t z3 = wrap16(v7 + v3), z4 = wrap16(v5 + v1);
    int32_t w3 = z4 * 9633 - z3 * 6436, w4 = z3 * 9633 + z4 * 6437;
    int32_t odd[4] = {v1 * 4926 - v7 * 7373 + w4, v3 * 4177 - v5 * 20995 + w3,
                      -v5 * 4176 - v3 * 20995 + w4, -v7 * 4927 - v1 * 7373 + w3};

    int32_t half = 1 << (shift - 1);
    for (int i = 0; i < 4; i++) {
        int32_t a = (even[i] + odd[i] + half) >> shift, b = (even[i] - odd[i] + half) >> shift;
        v[i * step] = (int16_t)(a < INT16_MIN ? INT16_MIN : a > INT16_MAX ? INT16_MAX : a);
        v[(7 - i) * step] = (int16_t)(b < INT16_MIN ? INT16_MIN : b > INT16_MAX ? INT16_MAX : b);
    }
}

static unsigned char clamp8(int32_t value) {
    return (unsigned char)(value < 0 ? 0 : value > 255 ? 255 : value);
}

/* coef[64], quant[64] -> 8 rows of 8 samples at `out`, rows `stride` apart. */
static void inverse_dct(const int16_t *coef, const uint16_t *quant, unsigned char *out,
                        size_t stride) {
    static const int16_t zeros[56];
    int16_t v[64];
    /* nothing below the first row: the column pass is a shift, and it wraps */
    if (memcmp(coef + 8, zeros, sizeof zeros) == 0) {
        for (size_t x = 0; x < 8; x++) {
            v[x] = wrap16((int32_t)((uint32_t)coef[x] * quant[x] << PASS_BITS));
        }
        if ((v[1] | v[2] | v[3] | v[4] | v[5] | v[6] | v[7]) == 0) {
            unsigned char sample =
                clamp8(((v[0] + (1 << (PASS_BITS + 2))) >> (PASS_BITS + 3)) + 128);
            for (size_t y = 0; y < 8; y++) {
                memset(out + y * stride, sample, 8);
            }
            return;
        }
        for (size_t y = 1; y < 8; y++) {
            memcpy(v + 8 * y, v, 8 * sizeof *v);
        }
    } else {
        for (size_t i = 0; i < 64; i++) {
            v[i] = wrap16((int32_t)((uint32_t)coef[i] * quant[i]));
        }
        for (size_t x = 0; x < 8; x++) {
            dct_8(v + x, 8, DCT_BITS - PASS_BITS);
        }
    }
    for (size_t y = 0; y < 8; y++) {
        dct_8(v + 8 * y, 1, DCT_BITS + PASS_BITS + 3);
        for (size_t x = 0; x < 8; x++) {
            out[y * stride + x] = clamp8(v[8 * y + x] + 128);
        }
    }
}

/* ---- scans ---- */

static void reset_segment(Jpeg *j) {
    for (size_t i = 0; i < j->in_scan; i++) {
        j->scan[i]->dc = 0;
    }
    j->end_of_band_run = 0;
    j->n_bits = 0;
    j->restarts_left = j->restart_interval;
}

/* T.81 leaves open what to do when another marker stands where a restart marker should: one of the
 * two that come next, or no restart marker at all, means that data is missing (the segment is taken
 * as empty); one of the two before, that there is too much (skip to the next marker). */
static void next_segment(Jpeg *j) {
    reset_segment(j);
    bool found = j->marker != 0 || next_marker(j);
    for (;;) {
        size_t ahead = ((size_t)j->marker - 0xD0 - j->next_restart) & 7;
        if (!found) {
            j->truncated = true;
            return;
        }
        if (j->marker < 0xC0) {
            found = next_marker(j);
        } else if (j->marker < 0xD0 || j->marker > 0xD7 || ahead == 1 || ahead == 2) {
            break;
        } else if (ahead >= 6) {
            found = next_marker(j);
        } else {
            j->marker = 0;
            break;
        }
    }
    j->next_restart = (j->next_restart + 1) & 7;
    j->starved = j->starved && j->marker != 0;
}

/* Checks the scan against T.81 G.1.1.1 and its tables; keeps what is known of each coefficient. */
static void start_scan(Jpeg *j) {
    size_t blocks = 0;
    bool dc_band = j->first == 0, fresh = j->high == 0;
    if (j->progressive &&
        ((dc_band ? j->last != 0 : j->last < j->first || j->last > 63 || j->in_scan != 1) ||
         (!fresh && j->low != j->high - 1) || j->low > 13)) {
        jpeg_fail(j, "bad progression parameters");
    }
    for (size_t i = 0; i < j->in_scan; i++) {
        Component *c = j->scan[i];
        blocks += c->h * c->v;
        if (!c->quant_latched) {
            if (c->quant_index > 3 || !j->quant_defined[c->quant_index]) {
                jpeg_fail(j, "a scan uses a quantization table that is not there");
            }
            memcpy(c->quant, j->quant[c->quant_index], sizeof c->quant);
            c->quant_latched = true;
        }
        if (dc_band && fresh) {
            derive_table(j, j->dc, c->dc_table, true);
        }
        if (j->last > 0) {
            derive_table(j, j->ac, c->ac_table, false);
        }
        for (int k = j->first; k <= j->last && k < SMOOTHED; k++) {
            c->missing[k] = j->low;
        }
    }
    if (j->in_scan > 1 && blocks > MAX_MCU_BLOCKS) {
        jpeg_fail(j, "more than 10 blocks in a unit");
    }
    reset_segment(j);
    j->starved = false;
}

/* The unit at (y, x): where several components alternate, h x v blocks of each; else one block. */
static void decode_unit(Jpeg *j, size_t y, size_t x) {
    void (*decode)(Jpeg *, Component *, int16_t *) = j->high == 0 ? decode_first : decode_refine;
    for (size_t i = 0; i < j->in_scan; i++) {
        Component *c = j->scan[i];
        size_t h = j->in_scan > 1 ? c->h : 1, v = j->in_scan > 1 ? c->v : 1;
        for (size_t by = y * v; by < (y + 1) * v; by++) {
            for (size_t bx = x * h; bx < (x + 1) * h; bx++) {
                decode(j, c, c->coef + (by * c->stride + bx) * 64);
            }
        }
    }
}

static void decode_scan(Jpeg *j) {
    start_scan(j);
    bool alone = j->in_scan == 1;
    size_t rows = alone ? j->scan[0]->blocks_high : j->mcu_rows;
    size_t columns = alone ? j->scan[0]->blocks_wide : j->mcu_columns;
    for (size_t i = 0; i < rows * columns; i++) {
        if (j->restart_interval > 0 && j->restarts_left == 0) {
            next_segment(j);
        }
        j->restarts_left--; /* wraps where there are none */
        if (!j->starved) {
            decode_unit(j, i / columns, i % columns);
        }
        if (j->truncated) {
            jpeg_truncated(j);
        }
    }
}

/* Where the first AC coefficients of a progressive file never came whole, libjpeg-turbo estimates
 * them from the blocks around; that is not done here. (Without DC it does not either.) */
static void refuse_incomplete(Jpeg *j) {
    bool missing = false;
    for (size_t i = 0; i < j->n_components; i++) {
        const Component *c = &j->component[i];
        if (!j->progressive || c->missing[0] < 0) {
            return;
        }
        for (int k = 1; k < SMOOTHED; k++) {
            missing = missing || c->missing[k] != 0;
        }
    }
    if (missing) {
        jpeg_fail(j, "a progressive file whose last scans are missing is not supported");
    }
}

static void transform_component(Component *c) {
    size_t width = c->blocks_wide * 8;
    for (size_t y = 0; y < c->blocks_high; y++) {
        for (size_t x = 0; x < c->blocks_wide; x++) {
            inverse_dct(c->coef + (y * c->stride + x) * 64, c->quant,
                        c->plane + y * 8 * width + x * 8, width);
        }
    }
}

/* ---- upsampling and colour ---- */

/* Row y of the picture, from a component's plane: width samples, in `out` or in the plane itself.
 * Triangle filter: 3/4 of the nearest sample and 1/4 of the next, in each direction; ties are
 * rounded by turns. Edges are repeated. sum: [c->width]. */
static const unsigned char *upsample_row(const Jpeg *j, const Component *c, size_t y, uint16_t *sum,
                                         unsigned char *out) {
    size_t h = j->h_max / c->h, v = j->v_max / c->v, stride = c->blocks_wide * 8, n = c->width;
    const unsigned char *near = c->plane + y / v * stride;
    bool triangle_h = h == 2 && v <= 2 && n > 2, triangle_v = v == 2 && (h == 1 || triangle_h);
    if (h == 1 && v == 1) {
        return near;
    }
    const unsigned char *far = near;
    if (triangle_v && y % 2 == 0 && y > 0) {
        far = near - stride;
    } else if (triangle_v && y % 2 == 1 && y / 2 + 1 < c->height) {
        far = near + stride;
    }
    for (size_t x = 0; x < n; x++) {
        sum[x] = (uint16_t)(triangle_v ? near[x] * 3 + far[x] : near[x]);
    }
    if (!triangle_h) {
        for (size_t x = 0; x < j->width; x++) {
            out[x] = triangle_v ? (unsigned char)((sum[x] + 1 + (int)(y % 2)) >> 2) : near[x / h];
        }
        return out;
    }
    int shift = triangle_v ? 4 : 2, left = triangle_v ? 8 : 1, right = triangle_v ? 7 : 2;
    for (size_t x = 0; x < n; x++) {
        int three = sum[x] * 3;
        out[2 * x] = (unsigned char)((three + sum[x > 0 ? x - 1 : 0] + left) >> shift);
        out[2 * x + 1] = (unsigned char)((three + sum[x + 1 < n ? x + 1 : x] + right) >> shift);
    }
    return out;
}

typedef enum JpegColour {
    COLOUR_GRAY,
    COLOUR_YCC,
    COLOUR_RGB,
    COLOUR_YCCK,
    COLOUR_CMYK
} JpegColour;

/* As libjpeg guesses it: JFIF means YCbCr, else Adobe's marker says, else the component ids do. */
static JpegColour guess_colour(const Jpeg *j) {
    const Component *c = j->component;
    if (j->n_components == 1) {
        return COLOUR_GRAY;
    }
    if (j->n_components == 4) {
        return j->saw_adobe && j->adobe_transform != 0 ? COLOUR_YCCK : COLOUR_CMYK;
    }
    if (j->saw_jfif) {
        return COLOUR_YCC;
    }
    if (j->saw_adobe) {
        return j->adobe_transform == 0 ? COLOUR_RGB : COLOUR_YCC;
    }
    return c[0].id == 'R' && c[1].id == 'G' && c[2].id == 'B' ? COLOUR_RGB : COLOUR_YCC;
}

/* p: the samples of each component in this row -> rgb[3 n]. YCbCr is BT.601, full range, with 16
 * fractional bits, R and B rounded by themselves: 1.402, 1.772; 0.71414 and 0.34414 together. */
static void convert_row(JpegColour colour, const unsigned char *const p[4], size_t n,
                        unsigned char *rgb) {
    const int32_t half = 1 << 15;
    for (size_t x = 0; x < n; x++, rgb += 3) {
        if (colour == COLOUR_GRAY) {
            rgb[0] = rgb[1] = rgb[2] = p[0][x];
        } else if (colour == COLOUR_RGB || colour == COLOUR_CMYK) {
            rgb[0] = p[0][x];
            rgb[1] = p[1][x];
            rgb[2] = p[2][x];
        } else {
            int32_t luma = p[0][x], cb = p[1][x] - 128, cr = p[2][x] - 128;
            rgb[0] = clamp8(luma + ((91881 * cr + half) >> 16));
            rgb[1] = clamp8(luma + ((half - 22554 * cb - 46802 * cr) >> 16));
            rgb[2] = clamp8(luma + ((116130 * cb + half) >> 16));
        }
        if (colour >= COLOUR_YCCK) { /* stored as light, not ink; YCC gives C, M, Y as ink */
            int32_t light = p[3][x];
            for (size_t i = 0; i < 3; i++) {
                int32_t ink = colour == COLOUR_YCCK ? rgb[i] : 255 - rgb[i];
                int32_t product = ink * light + 128;
                rgb[i] = clamp8(light - ((product + (product >> 8)) >> 8));
            }
        }
    }
}

static Image make_picture(const Jpeg *j, size_t beside, Arena *arena) {
    Image image = image_new(arena, j->width, j->height, "JPEG", beside);
    JpegColour colour = guess_colour(j);
    unsigned char *row[MAX_COMPONENTS] = {NULL};
    for (size_t i = 0; i < j->n_components; i++) {
        row[i] = arena_alloc(j->scratch, j->width + 8, 1);
    }
    uint16_t *sum = arena_alloc(j->scratch, j->width + 8, sizeof *sum);
    for (size_t y = 0; y < j->height; y++) {
        const unsigned char *p[MAX_COMPONENTS] = {NULL};
        for (size_t i = 0; i < j->n_components; i++) {
            p[i] = upsample_row(j, &j->component[i], y, sum, row[i]);
        }
        convert_row(colour, p, j->width, image.rgb + y * j->width * 3);
    }
    return image;
}

Image jpeg_decode(Arena *arena, const unsigned char *data, size_t size, const char *name) {
    Jpeg jpeg = {.data = data, .size = size, .at = 2, .name = name, .scratch = arena_new()};
    Jpeg *j = &jpeg;
    bool more = read_markers(j, false);
    if (!more) {
        jpeg_fail(j, "the file holds no picture");
    }
    bool single = !j->progressive && j->in_scan == j->n_components; /* the scan is the picture */
    size_t beside = 0;
    for (size_t i = 0; i < j->n_components; i++) {
        Component *c = &j->component[i];
        size_t blocks = j->mcu_rows * c->v * c->stride, seen = c->blocks_high * c->blocks_wide;
        c->coef = arena_alloc(j->scratch, blocks, 64 * sizeof *c->coef);
        c->plane = arena_alloc(j->scratch, seen, 64);
        beside += 64 * (blocks * sizeof *c->coef + seen);
    }
    while (more) {
        decode_scan(j);
        more = read_markers(j, single);
        if (single && more) {
            jpeg_fail(j, "another scan after the picture is complete");
        }
    }
    refuse_incomplete(j);
    for (size_t i = 0; i < j->n_components; i++) {
        transform_component(&j->component[i]);
    }
    Image image = make_picture(j, beside, arena);
    arena_free(j->scratch);
    return image;
}
