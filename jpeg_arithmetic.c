/* jpeg_arithmetic.c: arithmetic coding of JPEG coefficients (ITU-T T.81 annexes D, F.1.4 and
 * G.1.3), to what libjpeg-turbo decodes.
 *
 *   decision   the interval a is split in a - Qe, below, for the more probable symbol and Qe for
 * the other; where Qe is the larger part the two change places (conditional exchange) DC         is
 * the difference 0? sign; magnitude in unary; then its lower bits. The first bins are chosen by the
 * last difference of the component: none, small or large, by sign AC         is this the end of the
 * block? is this coefficient 0? sign, magnitude, lower bits
 *
 * Easy to get wrong: the interval is widened just before a decision and not just after one, so that
 * no byte is read that is not needed; a marker gives zeros without end, which is no damage here;
 * bins begin anew at each restart; the end of a block is not asked for up to the last coefficient
 * that an earlier scan left non-zero. */
#include <string.h>

#include "jpeg_parts.h"

/* T.81 table D.3: Qe, the states after the less and after the more probable symbol, whether the
 * symbols change their roles then. The last never moves: probability 1/2. */
static const struct State {
    uint16_t qe;
    unsigned char after_less, after_more, exchange;
} states[114] = {
    {0x5A1D, 1, 1, 1},     {0x2586, 14, 2, 0},    {0x1114, 16, 3, 0},    {0x080B, 18, 4, 0},
    {0x03D8, 20, 5, 0},    {0x01DA, 23, 6, 0},    {0x00E5, 25, 7, 0},    {0x006F, 28, 8, 0},
    {0x0036, 30, 9, 0},    {0x001A, 33, 10, 0},   {0x000D, 35, 11, 0},   {0x0006, 9, 12, 0},
    {0x0003, 10, 13, 0},   {0x0001, 12, 13, 0},   {0x5A7F, 15, 15, 1},   {0x3F25, 36, 16, 0},
    {0x2CF2, 38, 17, 0},   {0x207C, 39, 18, 0},   {0x17B9, 40, 19, 0},   {0x1182, 42, 20, 0},
    {0x0CEF, 43, 21, 0},   {0x09A1, 45, 22, 0},   {0x072F, 46, 23, 0},   {0x055C, 48, 24, 0},
    {0x0406, 49, 25, 0},   {0x0303, 51, 26, 0},   {0x0240, 52, 27, 0},   {0x01B1, 54, 28, 0},
    {0x0144, 56, 29, 0},   {0x00F5, 57, 30, 0},   {0x00B7, 59, 31, 0},   {0x008A, 60, 32, 0},
    {0x0068, 62, 33, 0},   {0x004E, 63, 34, 0},   {0x003B, 32, 35, 0},   {0x002C, 33, 9, 0},
    {0x5AE1, 37, 37, 1},   {0x484C, 64, 38, 0},   {0x3A0D, 65, 39, 0},   {0x2EF1, 67, 40, 0},
    {0x261F, 68, 41, 0},   {0x1F33, 69, 42, 0},   {0x19A8, 70, 43, 0},   {0x1518, 72, 44, 0},
    {0x1177, 73, 45, 0},   {0x0E74, 74, 46, 0},   {0x0BFB, 75, 47, 0},   {0x09F8, 77, 48, 0},
    {0x0861, 78, 49, 0},   {0x0706, 79, 50, 0},   {0x05CD, 48, 51, 0},   {0x04DE, 50, 52, 0},
    {0x040F, 50, 53, 0},   {0x0363, 51, 54, 0},   {0x02D4, 52, 55, 0},   {0x025C, 53, 56, 0},
    {0x01F8, 54, 57, 0},   {0x01A4, 55, 58, 0},   {0x0160, 56, 59, 0},   {0x0125, 57, 60, 0},
    {0x00F6, 58, 61, 0},   {0x00CB, 59, 62, 0},   {0x00AB, 61, 63, 0},   {0x008F, 61, 32, 0},
    {0x5B12, 65, 65, 1},   {0x4D04, 80, 66, 0},   {0x412C, 81, 67, 0},   {0x37D8, 82, 68, 0},
    {0x2FE8, 83, 69, 0},   {0x293C, 84, 70, 0},   {0x2379, 86, 71, 0},   {0x1EDF, 87, 72, 0},
    {0x1AA9, 87, 73, 0},   {0x174E, 72, 74, 0},   {0x1424, 72, 75, 0},   {0x119C, 74, 76, 0},
    {0x0F6B, 74, 77, 0},   {0x0D51, 75, 78, 0},   {0x0BB6, 77, 79, 0},   {0x0A40, 77, 48, 0},
    {0x5832, 80, 81, 1},   {0x4D1C, 88, 82, 0},   {0x438E, 89, 83, 0},   {0x3BDD, 90, 84, 0},
    {0x34EE, 91, 85, 0},   {0x2EAE, 92, 86, 0},   {0x299A, 93, 87, 0},   {0x2516, 86, 71, 0},
    {0x5570, 88, 89, 1},   {0x4CA9, 95, 90, 0},   {0x44D9, 96, 91, 0},   {0x3E22, 97, 92, 0},
    {0x3824, 99, 93, 0},   {0x32B4, 99, 94, 0},   {0x2E17, 93, 86, 0},   {0x56A8, 95, 96, 1},
    {0x4F46, 101, 97, 0},  {0x47E5, 102, 98, 0},  {0x41CF, 103, 99, 0},  {0x3C3D, 104, 100, 0},
    {0x375E, 99, 93, 0},   {0x5231, 105, 102, 0}, {0x4C0F, 106, 103, 0}, {0x4639, 107, 104, 0},
    {0x415E, 103, 99, 0},  {0x5627, 105, 106, 1}, {0x50E7, 108, 107, 0}, {0x4B85, 109, 103, 0},
    {0x5597, 110, 109, 0}, {0x504F, 111, 107, 0}, {0x5A10, 110, 111, 1}, {0x5522, 112, 109, 0},
    {0x59EB, 112, 111, 1}, {0x5A1D, 113, 113, 0}};

enum {
    STATE_EVEN = 113,
    DC_MAGNITUDE = 20,       /* F.1.4.4.1.3: X1 */
    AC_MAGNITUDE_LOW = 189,  /* F.1.4.4.2: X2 of coefficients up to Kx */
    AC_MAGNITUDE_HIGH = 217, /* ... and of those after it */
    LOWER_BITS = 14,         /* from a bin of the magnitude to the one of its lower bits */
    MAGNITUDE_END = 0x8000
};

void arithmetic_defaults(Arithmetic *coder) {
    memset(coder->upper, 1, sizeof coder->upper);
    memset(coder->low, 5, sizeof coder->low);
    coder->even = STATE_EVEN << 1;
}

bool arithmetic_conditioning(Arithmetic *coder, const unsigned char *s, size_t n) {
    for (size_t i = 0; i + 1 < n; i += 2) {
        unsigned index = s[i], value = s[i + 1];
        if (index >= 32) {
            return false;
        }
        if (index >= 16) {
            coder->low[index - 16] = (unsigned char)value;
            continue;
        }
        coder->lower[index] = value & 15;
        coder->upper[index] = (unsigned char)(value >> 4);
        if (coder->lower[index] > coder->upper[index]) {
            return false;
        }
    }
    return n % 2 == 0;
}

void arithmetic_reset(Jpeg *j) {
    Arithmetic *m = &j->coder;
    for (size_t i = 0; j->arithmetic && i < j->in_scan; i++) {
        Component *c = j->scan[i];
        if (!j->progressive || (j->first == 0 && j->high == 0)) {
            memset(m->dc[c->dc_table], 0, sizeof m->dc[0]);
            c->dc_context = 0;
        }
        if (!j->progressive || j->first > 0) {
            memset(m->ac[c->ac_table], 0, sizeof m->ac[0]);
        }
    }
    m->a = m->c = 0;
    m->bits = 0;
    m->failed = false;
}

/* ---- decisions ---- */

static uint32_t next_code_byte(Jpeg *j) {
    if (j->marker != 0) {
        return 0;
    }
    int byte = j->at < j->size ? j->data[j->at++] : -1;
    bool escaped = byte == 0xFF;
    while (byte == 0xFF) {
        byte = j->at < j->size ? j->data[j->at++] : -1;
    }
    if (byte < 0) {
        j->truncated = true;
        return 0;
    }
    if (escaped && byte > 0) {
        j->marker = byte;
        return 0;
    }
    return escaped ? 0xFF : (uint32_t)byte;
}

static void widen(Jpeg *j) {
    Arithmetic *m = &j->coder;
    if (m->a == 0) {
        m->c = next_code_byte(j) << 24;
        m->c |= next_code_byte(j) << 16;
        m->a = 0x10000;
    }
    while (m->a < 0x8000) {
        if (m->bits == 0) {
            m->c |= next_code_byte(j) << 8;
            m->bits = 8;
        }
        m->a <<= 1;
        m->c <<= 1;
        m->bits--;
    }
}

static int decide(Jpeg *j, unsigned char *bin) {
    Arithmetic *m = &j->coder;
    if (m->a < 0x8000) {
        widen(j);
    }
    const struct State *state = &states[*bin >> 1];
    int symbol = *bin & 1;
    bool more;
    m->a -= state->qe;
    if (m->c >> 16 < m->a) {
        if (m->a >= 0x8000) {
            return symbol;
        }
        more = m->a >= state->qe;
    } else {
        more = m->a < state->qe;
        m->c -= m->a << 16;
        m->a = state->qe;
    }
    if (more) {
        *bin = (unsigned char)(state->after_more << 1 | symbol);
        return symbol;
    }
    *bin = (unsigned char)(state->after_less << 1 | (symbol ^ state->exchange));
    return !symbol;
}

/* From the first doubling of a magnitude on: at[0], at[1] ... ask whether it doubles again. Then
 * the bits below its highest, by the bin LOWER_BITS further on. 0: impossible. */
static int magnitude(Jpeg *j, unsigned char *at, int value, int *category) {
    while (decide(j, at)) {
        value <<= 1;
        at++;
        if (value == MAGNITUDE_END) {
            j->coder.failed = true;
            return 0;
        }
    }
    *category = value;
    for (int bit = value >> 1; bit > 0; bit >>= 1) {
        value |= decide(j, at + LOWER_BITS) ? bit : 0;
    }
    return value + 1;
}

/* ---- blocks ---- */

/* The component's next DC value; false: impossible data. */
static bool next_dc(Jpeg *j, Component *c) {
    Arithmetic *m = &j->coder;
    unsigned char *bins = m->dc[c->dc_table], *at = bins + c->dc_context;
    if (!decide(j, at)) {
        c->dc_context = 0;
        return true;
    }
    int negative = decide(j, at + 1), value = 1, category = 0;
    if (decide(j, at + 2 + negative)) {
        value = magnitude(j, bins + DC_MAGNITUDE, 1, &category);
    }
    if (value == 0) {
        return false;
    }
    int small = (1 << m->lower[c->dc_table]) >> 1, large = (1 << m->upper[c->dc_table]) >> 1;
    int context = category < small ? 0 : (category > large ? 12 : 4) + 4 * negative;
    c->dc_context = (unsigned char)context;
    c->dc += negative ? 0u - (uint32_t)value : (uint32_t)value;
    return true;
}

static void store(int16_t *coef, uint32_t value) {
    *coef = (int16_t)(uint16_t)value;
}

/* Coefficients first .. last, shifted left by `low`. */
static void ac_band(Jpeg *j, const Component *c, int16_t *block, int first, int last, int low) {
    Arithmetic *m = &j->coder;
    unsigned char *bins = m->ac[c->ac_table];
    for (int k = first; k <= last; k++) {
        if (decide(j, bins + 3 * (k - 1))) {
            return;
        }
        while (!decide(j, bins + 3 * (k - 1) + 1)) {
            if (++k > last) {
                m->failed = true;
                return;
            }
        }
        int negative = decide(j, &m->even), value = 1, category = 0;
        unsigned char *at = bins + 3 * (k - 1) + 2;
        if (decide(j, at)) {
            /* the same bin asks whether it is more than 2 */
            value = 2;
            if (decide(j, at)) {
                unsigned char *further =
                    bins + (k <= m->low[c->ac_table] ? AC_MAGNITUDE_LOW : AC_MAGNITUDE_HIGH);
                value = magnitude(j, further, 2, &category);
            }
        }
        if (value == 0) {
            return;
        }
        uint32_t bits = (uint32_t)value << low;
        store(&block[jpeg_zigzag[k]], negative ? 0u - bits : bits);
    }
}

void arithmetic_dc_first(Jpeg *j, Component *c, int16_t *block) {
    if (!j->coder.failed && next_dc(j, c)) {
        store(&block[0], c->dc << j->low);
    }
}

void arithmetic_sequential(Jpeg *j, Component *c, int16_t *block) {
    if (!j->coder.failed && next_dc(j, c)) {
        store(&block[0], c->dc);
        ac_band(j, c, block, 1, 63, 0);
    }
}

void arithmetic_ac_first(Jpeg *j, Component *c, int16_t *block) {
    if (!j->coder.failed) {
        ac_band(j, c, block, j->first, j->last, j->low);
    }
}

void arithmetic_dc_refine(Jpeg *j, Component *c, int16_t *block) {
    (void)c;
    if (decide(j, &j->coder.even)) {
        store(&block[0], (uint32_t)block[0] | 1u << j->low);
    }
}

void arithmetic_ac_refine(Jpeg *j, Component *c, int16_t *block) {
    Arithmetic *m = &j->coder;
    unsigned char *bins = m->ac[c->ac_table];
    uint32_t bit = 1u << j->low;
    int known = j->last; /* the last coefficient that earlier scans made non-zero */
    while (known > 0 && block[jpeg_zigzag[known]] == 0) {
        known--;
    }
    for (int k = j->first; !m->failed && k <= j->last; k++) {
        if (k > known && decide(j, bins + 3 * (k - 1))) {
            return;
        }
        for (;; k++) {
            if (k > j->last) {
                m->failed = true;
                return;
            }
            int16_t *coef = &block[jpeg_zigzag[k]];
            unsigned char *at = bins + 3 * (k - 1);
            if (*coef != 0) {
                if (decide(j, at + 2)) {
                    store(coef, (uint32_t)*coef + (*coef < 0 ? 0u - bit : bit));
                }
                break;
            }
            if (decide(j, at + 1)) {
                store(coef, decide(j, &m->even) ? 0u - bit : bit);
                break;
            }
        }
    }
}
