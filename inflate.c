/* inflate.c: the decoder of RFC 1951 and 1950 that npz and PNG share, and CRC-32. See tensor.h.
 *
 *   bit buffer (64 bits, low bit first) -> symbol by a table of FAST_BITS bits, longer codes by the
 *   canonical walk -> literal, or length and distance -> copy from the output itself
 *
 * What counts as broken is what zlib refuses: over-subscribed codes, incomplete codes (but for a
 * single one of length 1), more than 286 or 30 symbols, no end of block, distances before the
 * start.
 */
#include "tensor.h"

#include <string.h>

enum {
    FAST_BITS = 10,
    CODE_BITS = 15,
    LITERALS = 288,
    DISTANCES = 32
};

typedef struct Bits {
    const unsigned char *at, *end;
    uint64_t hold;
    int count; /* of valid bits in hold; negative: the input ended too early */
} Bits;

typedef struct Code {
    uint16_t fast[1 << FAST_BITS]; /* symbol << 4 | length; 0: longer than FAST_BITS, or invalid */
    uint16_t count[CODE_BITS + 1]; /* codes of each length */
    uint16_t symbol[LITERALS];     /* in canonical order */
} Code;

/* Afterwards at least 56 bits are there, unless the input ends. */
static inline void refill(Bits *b) {
    if (b->end - b->at >= 8) {
        uint64_t word;
        memcpy(&word, b->at, 8);
        b->hold |= word << b->count;
        b->at += (63 - b->count) >> 3;
        b->count |= 56;
        return;
    }
    while (b->count <= 56 && b->at < b->end) {
        b->hold |= (uint64_t)*b->at++ << b->count;
        b->count += 8;
    }
}

static inline unsigned take(Bits *b, int n) {
    unsigned value = (unsigned)(b->hold & (((uint64_t)1 << n) - 1));
    b->hold >>= n;
    b->count -= n;
    return value;
}

static bool code_build(Code *code, const unsigned char *length, int n, bool lengths_code) {
    uint16_t offset[CODE_BITS + 2] = {0};
    memset(code, 0, sizeof *code);
    int longest = 0;
    for (int s = 0; s < n; s++) {
        code->count[length[s]]++;
        longest = length[s] > longest ? length[s] : longest;
    }
    code->count[0] = 0;
    int left = 1;
    for (int l = 1; l <= CODE_BITS; l++) {
        left = 2 * left - code->count[l];
        if (left < 0) {
            return false;
        }
        offset[l + 1] = (uint16_t)(offset[l] + code->count[l]);
    }
    if (left > 0 && longest != 0 && (lengths_code || longest != 1)) {
        return false;
    }
    for (int s = 0; s < n; s++) {
        if (length[s] != 0) {
            code->symbol[offset[length[s]]++] = (uint16_t)s;
        }
    }
    unsigned next = 0, index = 0; /* canonical code and its place in symbol[] */
    for (int l = 1; l <= FAST_BITS; l++, next <<= 1) {
        for (int i = 0; i < code->count[l]; i++, next++, index++) {
            unsigned reversed = 0;
            for (int bit = 0; bit < l; bit++) {
                reversed |= (next >> bit & 1) << (l - 1 - bit);
            }
            for (unsigned j = reversed; j < 1U << FAST_BITS; j += 1U << l) {
                code->fast[j] = (uint16_t)(code->symbol[index] << 4 | l);
            }
        }
    }
    return true;
}

/* The next symbol, or -1 if the bits are no code. */
static inline int decode(Bits *b, const Code *code) {
    unsigned entry = code->fast[b->hold & ((1U << FAST_BITS) - 1)];
    if (entry != 0) {
        take(b, (int)(entry & 15));
        return (int)(entry >> 4);
    }
    int value = 0, first = 0, index = 0;
    for (int l = 1; l <= CODE_BITS; l++) {
        value |= (int)(b->hold >> (l - 1) & 1);
        if (value - code->count[l] < first) {
            take(b, l);
            return code->symbol[index + value - first];
        }
        index += code->count[l];
        first = (first + code->count[l]) << 1;
        value <<= 1;
    }
    return -1;
}

static bool fixed_codes(Code *literal, Code *distance) {
    unsigned char length[LITERALS];
    memset(length, 8, 144);
    memset(length + 144, 9, 112);
    memset(length + 256, 7, 24);
    memset(length + 280, 8, 8);
    bool good = code_build(literal, length, LITERALS, false);
    memset(length, 5, DISTANCES);
    return code_build(distance, length, DISTANCES, false) && good;
}

/* NULL, or what is wrong. */
static const char *dynamic_codes(Bits *b, Code *literal, Code *distance) {
    static const unsigned char order[19] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                            11, 4,  12, 3, 13, 2, 14, 1, 15};
    unsigned char length[LITERALS + DISTANCES] = {0};
    refill(b);
    int literals = (int)take(b, 5) + 257, distances = (int)take(b, 5) + 1;
    int lengths = (int)take(b, 4) + 4;
    if (literals > 286 || distances > 30) {
        return "too many symbols";
    }
    for (int i = 0; i < lengths; i++) {
        refill(b);
        length[order[i]] = (unsigned char)take(b, 3);
    }
    if (!code_build(literal, length, 19, true)) {
        return "an impossible set of code lengths";
    }
    memset(length, 0, sizeof length);
    for (int i = 0; i < literals + distances;) {
        refill(b);
        int symbol = decode(b, literal);
        if (symbol < 0 || b->count < 0) {
            return "an invalid code length";
        }
        if (symbol < 16) {
            length[i++] = (unsigned char)symbol;
            continue;
        }
        int repeat = symbol == 16   ? 3 + (int)take(b, 2)
                     : symbol == 17 ? 3 + (int)take(b, 3)
                                    : 11 + (int)take(b, 7);
        if (i + repeat > literals + distances || (symbol == 16 && i == 0)) {
            return "an invalid repeat of code lengths";
        }
        memset(length + i, symbol == 16 ? length[i - 1] : 0, (size_t)repeat);
        i += repeat;
    }
    if (length[256] == 0) {
        return "a block that cannot end";
    }
    if (!code_build(literal, length, literals, false) ||
        !code_build(distance, length + literals, distances, false)) {
        return "an impossible set of codes";
    }
    return NULL;
}

typedef struct Output {
    unsigned char *data;
    size_t used, capacity;
    bool full; /* more was to come than fits */
} Output;

static const char *copy_stored(Bits *b, Output *out) {
    take(b, b->count & 7);
    b->at -= b->count / 8;
    b->hold = 0;
    b->count = 0;
    if (b->end - b->at < 4) {
        return "an early end";
    }
    unsigned size = (unsigned)b->at[0] | (unsigned)b->at[1] << 8;
    if ((size ^ 0xFFFF) != ((unsigned)b->at[2] | (unsigned)b->at[3] << 8)) {
        return "a stored block with a wrong length";
    }
    b->at += 4;
    if ((size_t)(b->end - b->at) < size) {
        return "an early end";
    }
    size_t room = out->capacity - out->used;
    size_t n = size < room ? size : room;
    if (n != 0) {
        memcpy(out->data + out->used, b->at, n);
    }
    out->used += n;
    out->full = size > room;
    b->at += size;
    return NULL;
}

static const char *copy_compressed(Bits *b, Output *out, const Code *literal,
                                   const Code *distance) {
    static const uint16_t length_base[29] = {3,  4,  5,  6,   7,   8,   9,   10,  11, 13,
                                             15, 17, 19, 23,  27,  31,  35,  43,  51, 59,
                                             67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const unsigned char length_extra[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                                   2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static const uint16_t distance_base[30] = {
        1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
        193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    unsigned char *data = out->data;
    size_t used = out->used, capacity = out->capacity;
    const char *problem = NULL;
    for (;;) {
        refill(b); /* the longest match takes 15 + 5 + 15 + 13 = 48 bits */
        int symbol = decode(b, literal);
        if (symbol < 0 || b->count < 0) {
            problem = symbol < 0 ? "an invalid code" : "an early end";
            break;
        }
        if (symbol < 256) {
            if (used == capacity) {
                out->full = true;
                break;
            }
            data[used++] = (unsigned char)symbol;
            continue;
        }
        if (symbol == 256) {
            break;
        }
        symbol -= 257;
        if (symbol >= 29) {
            problem = "an invalid length";
            break;
        }
        size_t length = length_base[symbol] + take(b, length_extra[symbol]);
        int far = decode(b, distance);
        if (far < 0 || far >= 30) {
            problem = "an invalid distance";
            break;
        }
        size_t back = distance_base[far] + take(b, far < 2 ? 0 : far / 2 - 1);
        if (b->count < 0) {
            problem = "an early end";
            break;
        }
        if (back > used) {
            problem = "a distance before the start";
            break;
        }
        if (length > capacity - used) {
            length = capacity - used;
            out->full = true;
        }
        unsigned char *to = data + used;
        const unsigned char *from = to - back;
        used += length;
        if (back >= 8 && capacity - used >= 8) { /* eight at a time, up to 7 too many */
            for (unsigned char *stop = data + used; to < stop; to += 8, from += 8) {
                memcpy(to, from, 8);
            }
        } else {
            for (size_t i = 0; i < length; i++) {
                to[i] = from[i];
            }
        }
        if (out->full) {
            break;
        }
    }
    out->used = used;
    return problem;
}

/* Decodes blocks until the last one or until the output is full. */
static const char *inflate_blocks(Output *out, Bits *b) {
    Code literal, distance;
    for (bool last = false; !last && !out->full;) {
        refill(b);
        last = take(b, 1) != 0;
        unsigned type = take(b, 2);
        const char *problem = NULL;
        if (b->count < 0) {
            return "an early end";
        }
        if (type == 0) {
            problem = copy_stored(b, out);
        } else if (type == 3) {
            problem = "an invalid block type";
        } else {
            problem = type == 2                          ? dynamic_codes(b, &literal, &distance)
                      : fixed_codes(&literal, &distance) ? NULL
                                                         : "an impossible set of codes";
            problem = problem == NULL ? copy_compressed(b, out, &literal, &distance) : problem;
        }
        if (problem != NULL) {
            return problem;
        }
    }
    return NULL;
}

size_t inflate_prefix(unsigned char *out, size_t capacity, const unsigned char *in, size_t size) {
    Output output = {.data = out, .capacity = capacity};
    Bits bits = {.at = in, .end = in + size};
    return inflate_blocks(&output, &bits) == NULL ? output.used : 0;
}

size_t inflate_raw(unsigned char *out, size_t capacity, const unsigned char *in, size_t size,
                   size_t *used, const char *name) {
    Output output = {.data = out, .capacity = capacity};
    Bits bits = {.at = in, .end = in + size};
    const char *problem = inflate_blocks(&output, &bits);
    if (problem != NULL) {
        fail(STATUS_INPUT, "%s: broken deflate data: %s", name, problem);
    }
    if (output.full) {
        fail(STATUS_INPUT, "%s: holds more than the %zu bytes that it declares", name, capacity);
    }
    if (used != NULL) {
        *used = (size_t)(bits.at - in) - (size_t)(bits.count / 8);
    }
    return output.used;
}

static uint32_t adler32_of(const unsigned char *data, size_t size) {
    uint32_t a = 1, b = 0;
    while (size > 0) {
        size_t n = size < 5552 ? size : 5552; /* as many as cannot overflow b */
        for (size_t i = 0; i < n; i++) {
            a += data[i];
            b += a;
        }
        a %= 65521;
        b %= 65521;
        data += n;
        size -= n;
    }
    return b << 16 | a;
}

size_t inflate_zlib(unsigned char *out, size_t capacity, const unsigned char *in, size_t size,
                    size_t *used, const char *name) {
    size_t body = 0;
    if (size < 2 || (in[0] & 15) != 8 || in[0] >> 4 > 7 || (in[0] << 8 | in[1]) % 31 != 0 ||
        (in[1] & 0x20) != 0) {
        fail(STATUS_INPUT, "%s: not a zlib stream", name);
    }
    size_t length = inflate_raw(out, capacity, in + 2, size - 2, &body, name);
    const unsigned char *sum = in + 2 + body;
    if (size - 2 - body < 4) {
        fail(STATUS_INPUT, "%s: broken zlib stream: an early end", name);
    }
    uint32_t stated =
        (uint32_t)sum[0] << 24 | (uint32_t)sum[1] << 16 | (uint32_t)sum[2] << 8 | sum[3];
    if (stated != adler32_of(out, length)) {
        fail(STATUS_INPUT, "%s: broken zlib stream: its checksum differs", name);
    }
    if (used != NULL) {
        *used = body + 6;
    }
    return length;
}

/* The reflected polynomial 0xEDB88320. Large inputs go eight bytes at a time through tables that
 * are made on the spot: table[k][i] is the effect of byte i followed by k zero bytes. */
uint32_t crc32_of(uint32_t crc, const unsigned char *data, size_t size) {
    static const uint32_t nibble[16] = {0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC,
                                        0x76DC4190, 0x6B6B51F4, 0x4DB26158, 0x5005713C,
                                        0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C,
                                        0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C};
    crc = ~crc;
    if (size >= 4096) {
        uint32_t table[8][256];
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t half = nibble[i & 15] ^ i >> 4;
            table[0][i] = nibble[half & 15] ^ half >> 4;
        }
        for (int k = 1; k < 8; k++) {
            for (uint32_t i = 0; i < 256; i++) {
                table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
            }
        }
        for (; size >= 8; data += 8, size -= 8) {
            uint32_t low, high;
            memcpy(&low, data, 4);
            memcpy(&high, data + 4, 4);
            low ^= crc;
            crc = table[7][low & 255] ^ table[6][low >> 8 & 255] ^ table[5][low >> 16 & 255] ^
                  table[4][low >> 24] ^ table[3][high & 255] ^ table[2][high >> 8 & 255] ^
                  table[1][high >> 16 & 255] ^ table[0][high >> 24];
        }
    }
    for (; size > 0; data++, size--) {
        crc ^= *data;
        crc = nibble[crc & 15] ^ crc >> 4;
        crc = nibble[crc & 15] ^ crc >> 4;
    }
    return ~crc;
}
