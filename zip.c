/* zip.c: reads the directory of a zip archive, and gzip. See zip.h.
 *
 *   member = local header (30 + name + extra) | data | ...   directory | end record
 *
 * Only the directory at the end is believed: sizes and CRC-32 of local headers may be empty, as
 * streaming writers (torch.save) leave them. */
#include "zip.h"

#include "inflate.h"

#include <stdlib.h>
#include <string.h>

bool zip_is(const FileMap *map) {
    return map->size >= 4 &&
           (read_little(map->data, 4) == 0x04034B50 || read_little(map->data, 4) == 0x06054B50);
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
    if (!found) {
        fail(STATUS_INPUT, "%s: a zip whose end is missing", path);
    }
    Directory directory = {.count = read_little(data + at + 10, 2),
                           .size = read_little(data + at + 12, 4),
                           .start = read_little(data + at + 16, 4)};
    if (at >= 20 && read_little(data + at - 20, 4) == 0x07064B50) {
        uint64_t end64 = read_little(data + at - 12, 8);
        if (end64 > map->size || map->size - end64 < 56 ||
            read_little(data + end64, 4) != 0x06064B50) {
            fail(STATUS_INPUT, "%s: a zip whose zip64 end is broken", path);
        }
        directory = (Directory){.count = read_little(data + end64 + 32, 8),
                                .size = read_little(data + end64 + 40, 8),
                                .start = read_little(data + end64 + 48, 8)};
    }
    if (directory.start > map->size || directory.size > map->size - directory.start ||
        directory.count > directory.size / 46) {
        fail(STATUS_INPUT, "%s: a zip whose directory is not in the file", path);
    }
    return directory;
}

/* The zip64 extra field (id 1) holds, in this order, those of the three values that are all ones.
 */
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

/* Reads the directory entry at `entry` (`left` bytes remain) and finds the member's data. Returns
 * the size of the entry. */
static size_t zip_member(const FileMap *map, const unsigned char *entry, uint64_t left,
                         const char *path, Arena *arena, ZipMember *member) {
    if (left < 46 || read_little(entry, 4) != 0x02014B50) {
        fail(STATUS_INPUT, "%s: a zip whose directory is broken", path);
    }
    size_t name = (size_t)read_little(entry + 28, 2), extra = (size_t)read_little(entry + 30, 2);
    size_t entry_size = 46 + name + extra + (size_t)read_little(entry + 32, 2);
    if (entry_size > left) {
        fail(STATUS_INPUT, "%s: a zip whose directory is broken", path);
    }
    uint64_t at = read_little(entry + 42, 4);
    *member = (ZipMember){.method = (unsigned)read_little(entry + 10, 2),
                          .crc = (unsigned)read_little(entry + 16, 4),
                          .packed = read_little(entry + 20, 4),
                          .size = read_little(entry + 24, 4)};
    uint64_t *wide[3] = {&member->size, &member->packed, &at};
    if (!zip64_values(entry + 46 + name, extra, wide)) {
        fail(STATUS_INPUT, "%s: a zip whose zip64 sizes are broken", path);
    }
    member->name = arena_copy(arena, (const char *)entry + 46, name);
    if (strlen(member->name) != name) {
        fail(STATUS_INPUT, "%s: a zip member '%s' with a 0 in its name", path, member->name);
    }
    if ((read_little(entry + 8, 2) & 1) != 0 || (member->method != 0 && member->method != 8)) {
        fail(STATUS_INPUT, "%s: a zip member that is encrypted or packed by method %u", path,
             member->method);
    }
    if (at > map->size || map->size - at < 30 || read_little(map->data + at, 4) != 0x04034B50) {
        fail(STATUS_INPUT, "%s: a zip member that is not where the directory says", path);
    }
    member->begin = at;
    at += 30 + read_little(map->data + at + 26, 2) + read_little(map->data + at + 28, 2);
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

static int compare_members(const void *a, const void *b) {
    return strcmp(((const ZipMember *)a)->name, ((const ZipMember *)b)->name);
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
            fail(STATUS_INPUT, "%s: zip member '%s': unpacks to %llu bytes, too many for %zu", path,
                 members[i].name, (unsigned long long)members[i].size, map->size);
        }
        entry += size;
        left -= size;
    }
    qsort(members, count, sizeof *members, compare_places);
    for (size_t i = 1; i < count; i++) {
        if (members[i].begin < members[i - 1].end) {
            fail(STATUS_INPUT, "%s: zip members '%s' and '%s' overlap", path, members[i - 1].name,
                 members[i].name);
        }
    }
    qsort(members, count, sizeof *members, compare_members);
    for (size_t i = 1; i < count; i++) {
        if (strcmp(members[i - 1].name, members[i].name) == 0) {
            fail(STATUS_INPUT, "%s: zip member '%s' is there twice", path, members[i].name);
        }
    }
    return (Zip){.members = members, .count = count};
}

const ZipMember *zip_find(const Zip *zip, const char *name) {
    ZipMember key = {.name = name};
    return bsearch(&key, zip->members, zip->count, sizeof key, compare_members);
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
    if (inflates_too_far(size, map->size)) {
        fail(STATUS_INPUT, "%s: unpacks to %zu bytes, too many for %zu", path, size, map->size);
    }
    unsigned char *unpacked = arena_alloc(arena, size, 1);
    size_t length = inflate_raw(unpacked, size, data + at, end - at, &used, path);
    if (length != size || used != end - at ||
        crc32_of(0, unpacked, size) != read_little(data + end, 4)) {
        fail(STATUS_INPUT, "%s: differs from what its gzip trailer states", path);
    }
    return (FileMap){.data = unpacked, .size = size};
}
