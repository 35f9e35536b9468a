/* zip.c: inflate; then zip archives and gzip, which are packed by it. See zip.h. */
#include "zip.h"

#include <stdlib.h>
#include <string.h>

/* ==== inflate ====
 *
 *   bit buffer (64 bits, low bit first) -> symbol by a table of FAST_BITS bits, longer codes by the
 *   canonical walk -> literal, or length and distance -> copy from the output itself
 *
 * Broken is what zlib refuses: over-subscribed codes, incomplete codes (but for a single one of
 * length 1), more than 286 or 30 symbols, no end of block, distances before the start. */

enum {
    FAST_BITS = 10,
    CODE_BITS = 15,
    LITERALS = 288,
    DISTANCES = 32
};

typedef struct Inflate {
    const unsigned char *at, *end;
    uint64_t hold;
    int count; /* of valid bits in hold; negative: the input ended too early */
    unsigned char *out;
    size_t used, capacity;
    bool stopped;     /* by the end of the input, or of what it may write */
    const char *name; /* for messages */
} Inflate;

typedef struct Code {
    uint16_t fast[1 << FAST_BITS]; /* symbol << 4 | length; 0: longer than FAST_BITS, or invalid */
    uint16_t count[CODE_BITS + 1]; /* codes of each length */
    uint16_t symbol[LITERALS];     /* in canonical order */
} Code;

REFSAE_NORETURN static void inflate_fail(const Inflate *z, const char *what) {
    fail(STATUS_INPUT, "%s: broken deflate data: %s", z->name, what);
}

static inline void inflate_fail_if(bool bad, const Inflate *z, const char *what) {
    if (bad) {
        inflate_fail(z, what);
    }
}

/* Leaves with what was decoded so far, which may be all that is wanted. */
REFSAE_NORETURN static void inflate_stop(Inflate *z, size_t used, bool full) {
    z->used = used;
    z->stopped = true;
    if (full) {
        fail(STATUS_INPUT, "%s: holds more than the %zu bytes that it declares", z->name,
             z->capacity);
    }
    inflate_fail(z, "an early end");
}

/* Afterwards at least 56 bits are there, unless the input ends. */
static inline void refill(Inflate *z) {
    if (z->end - z->at >= 8) {
        uint64_t word;
        little_copy(&word, z->at, 8, 1);
        z->hold |= word << z->count;
        z->at += (63 - z->count) >> 3;
        z->count |= 56;
        return;
    }
    while (z->count <= 56 && z->at < z->end) {
        z->hold |= (uint64_t)*z->at++ << z->count;
        z->count += 8;
    }
}

static inline unsigned bits_take(Inflate *z, int n) {
    unsigned value = (unsigned)(z->hold & (((uint64_t)1 << n) - 1));
    z->hold >>= n;
    z->count -= n;
    return value;
}

/* More bits must not have been taken than there are. */
static inline void bits_check(Inflate *z, size_t used) {
    if (z->count < 0) {
        inflate_stop(z, used, false);
    }
}

/* From the lengths of n symbols' codes. Only an alphabet of one code may be incomplete, and that of
 * code lengths not even then. */
static void code_build(Inflate *z, Code *code, const unsigned char *length, int n,
                       bool lengths_code) {
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
        inflate_fail_if(left < 0, z, "an impossible set of codes");
        offset[l + 1] = (uint16_t)(offset[l] + code->count[l]);
    }
    inflate_fail_if(left > 0 && longest != 0 && (lengths_code || longest != 1), z,
                    "an impossible set of codes");
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
}

/* The next symbol, or -1 if the bits are no code. */
static inline int decode(Inflate *z, const Code *code) {
    unsigned entry = code->fast[z->hold & ((1U << FAST_BITS) - 1)];
    if (entry != 0) {
        bits_take(z, (int)(entry & 15));
        return (int)(entry >> 4);
    }
    int value = 0, first = 0, index = 0;
    for (int l = 1; l <= CODE_BITS; l++) {
        value |= (int)(z->hold >> (l - 1) & 1);
        if (value - code->count[l] < first) {
            bits_take(z, l);
            return code->symbol[index + value - first];
        }
        index += code->count[l];
        first = (first + code->count[l]) << 1;
        value <<= 1;
    }
    return -1;
}

static void fixed_codes(Inflate *z, Code *literal, Code *distance) {
    unsigned char length[LITERALS];
    memset(length, 8, 144);
    memset(length + 144, 9, 112);
    memset(length + 256, 7, 24);
    memset(length + 280, 8, 8);
    code_build(z, literal, length, LITERALS, false);
    memset(length, 5, DISTANCES);
    code_build(z, distance, length, DISTANCES, false);
}

static void dynamic_codes(Inflate *z, Code *literal, Code *distance) {
    static const unsigned char order[19] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                            11, 4,  12, 3, 13, 2, 14, 1, 15};
    unsigned char length[LITERALS + DISTANCES] = {0};
    refill(z);
    int literals = (int)bits_take(z, 5) + 257, distances = (int)bits_take(z, 5) + 1;
    int lengths = (int)bits_take(z, 4) + 4;
    bits_check(z, z->used);
    inflate_fail_if(literals > 286 || distances > 30, z, "too many symbols");
    for (int i = 0; i < lengths; i++) {
        refill(z);
        length[order[i]] = (unsigned char)bits_take(z, 3);
    }
    bits_check(z, z->used);
    code_build(z, literal, length, 19, true);
    memset(length, 0, sizeof length);
    for (int i = 0, repeat; i < literals + distances; i += repeat) {
        refill(z);
        int symbol = decode(z, literal);
        inflate_fail_if(symbol < 0, z, "an invalid code length");
        repeat = symbol < 16    ? 1
                 : symbol == 16 ? 3 + (int)bits_take(z, 2)
                 : symbol == 17 ? 3 + (int)bits_take(z, 3)
                                : 11 + (int)bits_take(z, 7);
        bits_check(z, z->used);
        inflate_fail_if(i + repeat > literals + distances || (symbol == 16 && i == 0), z,
                        "an invalid repeat of code lengths");
        memset(length + i, symbol < 16 ? symbol : symbol == 16 ? length[i - 1] : 0, (size_t)repeat);
    }
    inflate_fail_if(length[256] == 0, z, "a block that cannot end");
    code_build(z, literal, length, literals, false);
    code_build(z, distance, length + literals, distances, false);
}

static void copy_stored(Inflate *z) {
    bits_take(z, z->count & 7);
    z->at -= z->count / 8;
    z->hold = 0;
    z->count = 0;
    if (z->end - z->at < 4) {
        inflate_stop(z, z->used, false);
    }
    size_t size = (size_t)z->at[0] | (size_t)z->at[1] << 8;
    inflate_fail_if((size ^ 0xFFFF) != ((size_t)z->at[2] | (size_t)z->at[3] << 8), z,
                    "a stored block with a wrong length");
    z->at += 4;
    size_t room = z->capacity - z->used, left = (size_t)(z->end - z->at);
    size_t most = left < room ? left : room, copied = size < most ? size : most;
    if (copied != 0) {
        memcpy(z->out + z->used, z->at, copied);
    }
    z->used += copied;
    z->at += copied;
    if (copied < size) {
        inflate_stop(z, z->used, room <= left);
    }
}

static void copy_compressed(Inflate *z, const Code *literal, const Code *distance) {
    static const uint16_t length_base[29] = {3,  4,  5,  6,   7,   8,   9,   10,  11, 13,
                                             15, 17, 19, 23,  27,  31,  35,  43,  51, 59,
                                             67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const unsigned char length_extra[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                                   2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static const uint16_t distance_base[30] = {
        1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
        193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    unsigned char *data = z->out;
    size_t used = z->used, capacity = z->capacity;
    for (;;) {
        refill(z); /* the longest match takes 15 + 5 + 15 + 13 = 48 bits */
        int symbol = decode(z, literal);
        inflate_fail_if(symbol < 0, z, "an invalid code");
        bits_check(z, used);
        if (symbol == 256) {
            break;
        }
        if (symbol < 256) {
            if (used == capacity) {
                inflate_stop(z, used, true);
            }
            data[used++] = (unsigned char)symbol;
            continue;
        }
        symbol -= 257;
        inflate_fail_if(symbol >= 29, z, "an invalid length");
        size_t length = length_base[symbol] + bits_take(z, length_extra[symbol]);
        int far = decode(z, distance);
        bits_check(z, used);
        inflate_fail_if(far < 0 || far >= 30, z, "an invalid distance");
        size_t back = distance_base[far] + bits_take(z, far < 2 ? 0 : far / 2 - 1);
        bits_check(z, used);
        if (used == capacity) { /* as zlib, before it judges the distance */
            inflate_stop(z, used, true);
        }
        inflate_fail_if(back > used, z, "a distance before the start");
        bool full = length > capacity - used;
        length = full ? capacity - used : length;
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
        if (full) {
            inflate_stop(z, used, true);
        }
    }
    z->used = used;
}

static void inflate_blocks(Inflate *z) {
    Code literal = {.fast = {0}}, distance = literal;
    unsigned built = 0; /* the type of block that the codes are of */
    for (bool last = false; !last;) {
        refill(z);
        last = bits_take(z, 1) != 0;
        unsigned type = bits_take(z, 2);
        bits_check(z, z->used);
        inflate_fail_if(type == 3, z, "an invalid block type");
        if (type == 0) {
            copy_stored(z);
            continue;
        }
        if (type == 2 || type != built) {
            (type == 1 ? fixed_codes : dynamic_codes)(z, &literal, &distance);
        }
        built = type;
        copy_compressed(z, &literal, &distance);
    }
    z->at -= z->count / 8; /* what was not needed */
}

size_t inflate_raw(unsigned char *out, size_t capacity, const unsigned char *in, size_t size,
                   size_t *used, const char *name) {
    Inflate z = {.at = in, .end = in + size, .out = out, .capacity = capacity, .name = name};
    inflate_blocks(&z);
    if (used != NULL) {
        *used = (size_t)(z.at - in);
    }
    return z.used;
}

static uint32_t adler32_of(const unsigned char *data, size_t size) {
    uint32_t a = 1, b = 0;
    while (size > 0) {
        size_t n = size < 5552 ? size : 5552; /* as many as cannot overflow b */
        size -= n;
        for (; n > 0; n--) {
            a += *data++;
            b += a;
        }
        a %= 65521;
        b %= 65521;
    }
    return b << 16 | a;
}

static uint64_t most_factor = 100;

void inflate_most(uint64_t factor) {
    most_factor = factor;
}

bool inflates_too_far(uint64_t size, uint64_t packed) {
    return size / most_factor > packed + (1u << 20);
}

uint32_t big32(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

size_t inflate_zlib(unsigned char *out, size_t capacity, const unsigned char *in, size_t size,
                    const char *name) {
    if (size < 2 || (in[0] & 15) != 8 || in[0] >> 4 > 7 || (in[0] << 8 | in[1]) % 31 != 0 ||
        (in[1] & 0x20) != 0) {
        fail(STATUS_INPUT, "%s: not a zlib stream", name);
    }
    Arena *scratch = arena_new();
    Inflate *z = arena_alloc(scratch, 1, sizeof *z);
    *z = (Inflate){.at = in + 2, .end = in + size, .out = out, .capacity = capacity, .name = name};
    Error error;
    ATTEMPT(&error, inflate_blocks(z));
    if (error.status != STATUS_OK && !z->stopped) {
        fail(error.status, "%s", error.text);
    }
    if (!z->stopped && z->end - z->at >= 4 && big32(z->at) != adler32_of(out, z->used)) {
        fail(STATUS_INPUT, "%s: broken zlib stream: its checksum differs", name);
    }
    size_t used = z->used;
    arena_free(scratch);
    return used;
}

/* The reflected polynomial 0xEDB88320, eight bytes at a time: table[k][i] is the effect of byte i
 * followed by k zero bytes. */
uint32_t crc32_of(uint32_t crc, const unsigned char *data, size_t size) {
    uint32_t table[8][256];
    for (uint32_t i = 0; i < 256; i++) {
        table[0][i] = i;
        for (int bit = 0; bit < 8; bit++) {
            table[0][i] = table[0][i] >> 1 ^ ((table[0][i] & 1) != 0 ? 0xEDB88320 : 0);
        }
    }
    for (int k = 1; k < 8; k++) {
        for (int i = 0; i < 256; i++) {
            table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
        }
    }
    crc = ~crc;
    for (; size >= 8; data += 8, size -= 8) {
        uint32_t next = 0;
        for (int k = 0; k < 8; k++) {
            next ^= table[7 - k][data[k] ^ (k < 4 ? crc >> 8 * k & 255 : 0)];
        }
        crc = next;
    }
    for (; size > 0; data++, size--) {
        crc = crc >> 8 ^ table[0][(crc ^ *data) & 255];
    }
    return ~crc;
}

/* ==== archives ====
 *
 *   member = local header (30 + name + extra) | data | ...   directory | end record
 *
 * Only the directory at the end is believed: streaming writers leave local headers empty. */

bool zip_is(const FileMap *map) {
    return map->size >= 4 &&
           (read_little(map->data, 4) == 0x04034B50 || read_little(map->data, 4) == 0x06054B50);
}

static void zip_fail_if(bool bad, const char *path, const char *what) {
    if (bad) {
        fail(STATUS_INPUT, "%s: %s", path, what);
    }
}

typedef struct Directory {
    uint64_t start, size, count;
} Directory;

/* Finds the end record (and its zip64 form) and from it the central directory. */
static Directory zip_directory(const FileMap *map, const char *path) {
    const unsigned char *data = map->data;
    size_t lowest = map->size > 65557 ? map->size - 65557 : 0, at = map->size;
    bool found = false;
    while (!found && at > lowest) {
        at--;
        found = map->size - at >= 22 && read_little(data + at, 4) == 0x06054B50 &&
                read_little(data + at + 20, 2) <= map->size - at - 22;
    }
    zip_fail_if(!found, path, "a zip whose end is missing");
    Directory directory = {.count = read_little(data + at + 10, 2),
                           .size = read_little(data + at + 12, 4),
                           .start = read_little(data + at + 16, 4)};
    if (at >= 20 && read_little(data + at - 20, 4) == 0x07064B50) {
        uint64_t end64 = read_little(data + at - 12, 8);
        zip_fail_if(end64 > map->size || map->size - end64 < 56 ||
                        read_little(data + end64, 4) != 0x06064B50,
                    path, "a zip whose zip64 end is broken");
        directory = (Directory){.count = read_little(data + end64 + 32, 8),
                                .size = read_little(data + end64 + 40, 8),
                                .start = read_little(data + end64 + 48, 8)};
    }
    zip_fail_if(directory.start > map->size || directory.size > map->size - directory.start ||
                    directory.count > directory.size / 46,
                path, "a zip whose directory is not in the file");
    return directory;
}

/* The zip64 extra field (id 1) holds, in order, those of the three values that are all ones. */
static bool zip64_values(const unsigned char *extra, size_t length, uint64_t *values[3]) {
    const unsigned char *field = NULL;
    size_t left = 0, size;
    while (field == NULL && length >= 4 &&
           (size = (size_t)read_little(extra + 2, 2)) <= length - 4) {
        if (read_little(extra, 2) == 1) {
            field = extra + 4;
            left = size;
        }
        extra += 4 + size;
        length -= 4 + size;
    }
    for (int i = 0; i < 3; i++) {
        if (*values[i] == UINT32_MAX) {
            if (left < 8) {
                return false;
            }
            *values[i] = read_little(field, 8);
            field += 8;
            left -= 8;
        }
    }
    return true;
}

/* Reads a directory entry (`left` bytes remain) and finds its data; returns the entry's size. */
static size_t zip_member(const FileMap *map, const unsigned char *entry, uint64_t left,
                         const char *path, Arena *arena, ZipMember *member) {
    zip_fail_if(left < 46 || read_little(entry, 4) != 0x02014B50, path,
                "a zip whose directory is broken");
    size_t name = (size_t)read_little(entry + 28, 2), extra = (size_t)read_little(entry + 30, 2);
    size_t entry_size = 46 + name + extra + (size_t)read_little(entry + 32, 2);
    zip_fail_if(entry_size > left, path, "a zip whose directory is broken");
    uint64_t at = read_little(entry + 42, 4);
    *member = (ZipMember){.method = (unsigned)read_little(entry + 10, 2),
                          .crc = (unsigned)read_little(entry + 16, 4),
                          .packed = read_little(entry + 20, 4),
                          .size = read_little(entry + 24, 4)};
    uint64_t *wide[3] = {&member->size, &member->packed, &at};
    zip_fail_if(!zip64_values(entry + 46 + name, extra, wide), path,
                "a zip whose zip64 sizes are broken");
    member->name = arena_copy(arena, (const char *)entry + 46, name);
    if (strlen(member->name) != name) {
        fail(STATUS_INPUT, "%s: a zip member '%s' with a 0 in its name", path, member->name);
    }
    if ((read_little(entry + 8, 2) & 1) != 0 || (member->method != 0 && member->method != 8)) {
        fail(STATUS_INPUT, "%s: a zip member that is encrypted or packed by method %u", path,
             member->method);
    }
    zip_fail_if(at > map->size || map->size - at < 30 ||
                    read_little(map->data + at, 4) != 0x04034B50,
                path, "a zip member that is not where the directory says");
    member->begin = at;
    uint64_t again = read_little(map->data + at + 26, 2);
    at += 30 + again + read_little(map->data + at + 28, 2);
    zip_fail_if(at <= map->size && (again != name ||
                                    memcmp(map->data + member->begin + 30, entry + 46, name) != 0),
                path, "a zip member whose name is another than in the directory");
    if (at > map->size || member->packed > map->size - at ||
        (member->method == 0 && member->packed != member->size)) {
        fail(STATUS_INPUT, "%s: a zip member of %llu bytes that ends after the file", path,
             (unsigned long long)member->packed);
    }
    member->data = map->data + at;
    member->end = at + member->packed;
    return entry_size;
}

static int compare_places(const void *a, const void *b) {
    const ZipMember *x = a, *y = b;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

Zip zip_open(Arena *arena, const FileMap *map, const char *path) {
    Directory directory = zip_directory(map, path);
    const unsigned char *entry = map->data + directory.start;
    uint64_t left = directory.size;
    size_t count = (size_t)directory.count;
    ZipMember *members = arena_alloc(arena, count, sizeof *members);
    uint64_t unpacked = 0; /* by all of them together */
    for (size_t i = 0; i < count; i++) {
        size_t size = zip_member(map, entry, left, path, arena, &members[i]);
        uint64_t deflated = members[i].method != 0 ? members[i].size : 0;
        unpacked = deflated < UINT64_MAX - unpacked ? unpacked + deflated : UINT64_MAX;
        if (unpacked > SIZE_MAX || inflates_too_far(unpacked, map->size)) {
            fail(STATUS_INPUT,
                 "%s: zip member '%s': unpacks to %llu bytes, too many for %zu (see --unpack)",
                 path, members[i].name, (unsigned long long)members[i].size, map->size);
        }
        entry += size;
        left -= size;
    }
    if (left != 0) {
        fail(STATUS_INPUT, "%s: a zip whose directory holds more than the %zu member%s it counts",
             path, count, plural(count));
    }
    qsort(members, count, sizeof *members, compare_places);
    for (size_t i = 1; i < count; i++) {
        if (members[i].begin < members[i - 1].end) {
            fail(STATUS_INPUT, "%s: zip members '%s' and '%s' overlap", path, members[i - 1].name,
                 members[i].name);
        }
    }
    qsort(members, count, sizeof *members, compare_names);
    for (size_t i = 1; i < count; i++) {
        if (strcmp(members[i - 1].name, members[i].name) == 0) {
            fail(STATUS_INPUT, "%s: zip member '%s' is there twice", path, members[i].name);
        }
    }
    return (Zip){.members = members, .count = count};
}

const ZipMember *zip_find(const Zip *zip, const char *name) {
    ZipMember key = {.name = name};
    return bsearch(&key, zip->members, zip->count, sizeof key, compare_names);
}

const unsigned char *zip_unpack(Arena *arena, const ZipMember *member, const char *what) {
    size_t size = (size_t)member->size, length = size;
    const unsigned char *bytes = member->data;
    if (member->method != 0) {
        unsigned char *unpacked = arena_alloc(arena, size, 1);
        length = inflate_raw(unpacked, size, bytes, (size_t)member->packed, NULL, what);
        bytes = unpacked;
    }
    if (length != size || crc32_of(0, bytes, size) != member->crc) {
        fail(STATUS_INPUT, "%s: %s differs from what the zip states", what,
             length != size ? "its size" : "its CRC-32");
    }
    return bytes;
}

/* ---- gzip (RFC 1952): 10 bytes of header, what its flags say, deflate data, CRC-32, size ---- */

bool gzip_is(const FileMap *map) {
    return map->size >= 2 && read_little(map->data, 2) == 0x8B1F;
}

FileMap gzip_unpack(Arena *arena, const FileMap *map, const char *path) {
    enum {
        HEADER_CRC = 2,
        EXTRA = 4,
        NAME = 8,
        COMMENT = 16
    };
    const unsigned char *data = map->data;
    size_t at = 10, used = 0, end = map->size >= 18 ? map->size - 8 : 0;
    unsigned flags = end > 0 ? data[3] : 0;
    if ((flags & EXTRA) != 0 && at + 2 <= end) {
        at += 2 + (size_t)read_little(data + at, 2);
    }
    for (unsigned text = NAME; text <= COMMENT; text *= 2) {
        if ((flags & text) != 0 && at < end) {
            const unsigned char *zero = memchr(data + at, 0, end - at);
            at = zero != NULL ? (size_t)(zero - data) + 1 : end + 1;
        }
    }
    at += (flags & HEADER_CRC) != 0 ? 2 : 0;
    if (at > end || data[2] != 8 || flags > 31) {
        fail(STATUS_INPUT, "%s: broken gzip header", path);
    }
    size_t size = (size_t)read_little(data + end + 4, 4);
    if (size / most_factor > map->size) { /* text may take much more once it is read */
        fail(STATUS_INPUT, "%s: unpacks to %zu bytes, too many for %zu (see --unpack)", path, size,
             map->size);
    }
    unsigned char *unpacked = arena_alloc(arena, size, 1);
    size_t length = inflate_raw(unpacked, size, data + at, end - at, &used, path);
    if (length != size || used != end - at ||
        crc32_of(0, unpacked, size) != read_little(data + end, 4)) {
        fail(STATUS_INPUT, "%s: differs from what its gzip trailer states", path);
    }
    return (FileMap){.data = unpacked, .size = size};
}
