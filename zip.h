/* zip.h: what is packed: the decoder of RFC 1951, its frames (RFC 1950, gzip), CRC-32, and the
 * members of a zip archive in memory, which npz and torch.save put tensors into. Floor 3. */
#ifndef REFSAE_ZIP_H
#define REFSAE_ZIP_H

#include "base.h"

/* ---- inflate ---- */

/* Whether `packed` bytes would take more memory than any honest file: above --unpack, 100, MiB and
 * so many bytes a byte, of which deflate makes up to 1032. */
bool inflates_too_far(uint64_t size, uint64_t packed);
void inflate_most(uint64_t factor); /* at least 1: other than 100 */

/* Decodes into out[capacity] and returns the bytes that came; more than fit are an error (no
 * bombs). `used` (may be NULL): bytes of input consumed. Messages start with `name`. */
size_t inflate_raw(unsigned char *out, size_t capacity, const unsigned char *in, size_t size,
                   size_t *used, const char *name);
/* The same after zlib's header, as far as out and the input reach: neither more output nor an early
 * end is an error. An Adler-32 that is there is checked. */
size_t inflate_zlib(unsigned char *out, size_t capacity, const unsigned char *in, size_t size,
                    const char *name);
/* Four bytes, the highest first, as zlib and PNG have them. */
uint32_t big32(const unsigned char *p);
uint32_t crc32_of(uint32_t crc, const unsigned char *data, size_t size); /* start with 0 */

/* ---- archives ---- */

typedef struct ZipMember {
    const char *name;          /* first, for compare_names */
    const unsigned char *data; /* stored (method 0) or deflated (8); in the map */
    uint64_t packed, size;     /* bytes in the file and unpacked */
    uint64_t begin, end;       /* local header and data in the file */
    unsigned crc, method;
} ZipMember;

typedef struct Zip {
    ZipMember *members; /* sorted by name (strcmp) */
    size_t count;
} Zip;

bool zip_is(const FileMap *map);

/* Reads the directory (zip64 too). Refuses members that are encrypted, packed otherwise, outside
 * the file, overlapping (they would unpack the same bytes many times), there twice, or that
 * together inflate too far. Names are never used as paths. */
Zip zip_open(Arena *arena, const FileMap *map, const char *path);
const ZipMember *zip_find(const Zip *zip, const char *name); /* NULL: none */
/* The bytes of a member, checked against its CRC-32: in the map if it is stored, else unpacked into
 * the arena. Messages start with `what`. */
const unsigned char *zip_unpack(Arena *arena, const ZipMember *member, const char *what);

bool gzip_is(const FileMap *map);
/* The one file that a gzip file holds, in the arena, checked against its size and CRC-32. */
FileMap gzip_unpack(Arena *arena, const FileMap *map, const char *path);

/* A little-endian number of 1 to 8 bytes at any address. */
static inline uint64_t read_little(const unsigned char *p, int bytes) {
    uint64_t value = 0;
    for (int i = bytes; i-- > 0;) {
        value = value << 8 | p[i];
    }
    return value;
}

#endif
