/* unicode.c: see unicode.h. */
#include "unicode.h"

#include <stdlib.h>

#include "unicode_tables.h"

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

enum { /* Hangul syllables are arithmetic (The Unicode Standard, 3.12) */
    S_BASE = 0xAC00,
    L_BASE = 0x1100,
    V_BASE = 0x1161,
    T_BASE = 0x11A7,
    L_COUNT = 19,
    V_COUNT = 21,
    T_COUNT = 28,
    S_COUNT = L_COUNT * V_COUNT * T_COUNT
};

/* Value of a step function of `code << 8 | value` entries. */
static uint8_t step_value(const uint32_t *steps, size_t count, uint32_t code) {
    size_t low = 0, high = count; /* steps[low - 1] <= code < steps[high] */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (steps[middle] >> 8 <= code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low == 0 ? 0 : (uint8_t)(steps[low - 1] & 255);
}

unsigned unicode_class(uint32_t code) {
    if (code < 0x80) {
        unsigned folded = code | 32;
        if (folded >= 'a' && folded <= 'z') {
            return UNICODE_LETTER | UNICODE_WORD;
        }
        if (code >= '0' && code <= '9') {
            return UNICODE_NUMBER | UNICODE_WORD;
        }
        return code == ' ' || (code >= 9 && code <= 13) ? UNICODE_SPACE
               : code == '_'                            ? UNICODE_WORD
                                                        : 0;
    }
    return step_value(class_steps, COUNT(class_steps), code);
}

size_t unicode_nfc_stretch(const char *text, size_t length, size_t from, size_t *end) {
    size_t previous = from;
    size_t start = length;
    for (size_t i = from; i < length;) {
        uint32_t code = (unsigned char)text[i];
        size_t step = 1;
        bool active = false;
        if (code >= 0x80) {
            step = utf8_decode(text + i, length - i, &code);
            step = step == 0 ? 1 : step;
            active = code >= 0x300 && (unicode_class(code) & UNICODE_NFC_ACTIVE) != 0;
        }
        if (active && start == length) {
            start = previous;
        }
        if (!active && start < length) {
            *end = i;
            return start;
        }
        previous = i;
        i += step;
    }
    *end = length;
    return start;
}

/* The row of the character `key`, or with `pair` the one of the two characters into which it
 * decomposes and which compose to it; 0: there is none. */
static uint64_t find_row(uint64_t key, bool pair) {
    size_t low = 0, high = pair ? COUNT(compositions) : COUNT(decompositions);
    while (low < high) {
        size_t middle = (low + high) / 2;
        uint64_t row = decompositions[pair ? compositions[middle] : middle];
        uint64_t found = pair ? row & (((uint64_t)1 << 42) - 1) : row >> 42;
        if (found == key) {
            return row;
        }
        low = found < key ? middle + 1 : low;
        high = found < key ? high : middle;
    }
    return 0;
}

/* Full canonical decomposition, appended to `out`; first characters decompose on, to four deep. */
static size_t decompose(uint32_t code, NfcChar *out, size_t count) {
    if (code - S_BASE < S_COUNT) {
        uint32_t index = code - S_BASE;
        out[count++].code = L_BASE + index / (V_COUNT * T_COUNT);
        out[count++].code = V_BASE + index / T_COUNT % V_COUNT;
        if (index % T_COUNT != 0) {
            out[count++].code = T_BASE + index % T_COUNT;
        }
        return count;
    }
    uint64_t row = code < 0xC0 ? 0 : find_row(code, false);
    if (row == 0) {
        out[count++].code = code;
        return count;
    }
    uint32_t second = (uint32_t)(row & 0x1FFFFF);
    count = decompose((uint32_t)(row >> 21 & 0x1FFFFF), out, count);
    return second == 0 ? count : decompose(second, out, count);
}

/* The primary composite of two characters, or 0. */
static uint32_t compose(uint32_t first, uint32_t second) {
    if (first - L_BASE < L_COUNT && second - V_BASE < V_COUNT) {
        return S_BASE + ((first - L_BASE) * V_COUNT + (second - V_BASE)) * T_COUNT;
    }
    if (first - S_BASE < S_COUNT && (first - S_BASE) % T_COUNT == 0 && second > T_BASE &&
        second < T_BASE + T_COUNT) {
        return first + (second - T_BASE);
    }
    return (uint32_t)(find_row((uint64_t)first << 21 | second, true) >> 42);
}

static int compare_marks(const void *a, const void *b) {
    const NfcChar *x = a, *y = b;
    if (x->combining != y->combining) {
        return x->combining < y->combining ? -1 : 1;
    }
    return x->order < y->order ? -1 : x->order > y->order;
}

size_t unicode_nfc(const char *text, size_t length, NfcChar *out) {
    size_t count = 0;
    for (size_t i = 0; i < length;) {
        uint32_t code = 0xFFFD;
        size_t step = utf8_decode(text + i, length - i, &code);
        size_t next = decompose(code, out, count);
        for (size_t k = count; k < next; k++) {
            out[k].change = k > count;
            out[k].order = (uint32_t)k;
            out[k].combining = step_value(combining_steps, COUNT(combining_steps), out[k].code);
        }
        count = next;
        i += step == 0 ? 1 : step;
    }
    for (size_t i = 0; i < count;) { /* canonical order: marks between starters, stably */
        size_t end = i;
        while (end < count && out[end].combining != 0) {
            end++;
        }
        if (end - i > 1) {
            qsort(out + i, end - i, sizeof(*out), compare_marks);
        }
        i = end + 1;
    }
    size_t kept = 0, starter = 0;
    bool have_starter = false;
    int last = -1; /* class of the last character kept after the starter, -1: none */
    for (size_t i = 0; i < count; i++) {
        NfcChar c = out[i];
        if (have_starter && last < (int)c.combining) {
            uint32_t composite = compose(out[starter].code, c.code);
            if (composite != 0) {
                out[starter].code = composite;
                out[starter].change += c.change - 1;
                continue;
            }
        }
        if (c.combining == 0) {
            have_starter = true;
            starter = kept;
            last = -1;
        } else if (have_starter) {
            last = c.combining;
        }
        out[kept++] = c;
    }
    return kept;
}
