/* inflate.h: the decoder of RFC 1951 and its frame RFC 1950, and CRC-32, which zip and PNG share.
 * Floor 2. */
#ifndef REFSAE_INFLATE_H
#define REFSAE_INFLATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whether `packed` bytes would take more memory than any honest file: above 100 MiB and 100 bytes a
 * byte, of which deflate makes up to 1032. */
bool inflates_too_far(uint64_t size, uint64_t packed);

/* Decodes into out[capacity] and returns the bytes that came; more than fit are an error (no
 * bombs). `used` (may be NULL): bytes of input consumed. Messages start with `name`. */
size_t inflate_raw(unsigned char *out, size_t capacity, const unsigned char *in, size_t size,
                   size_t *used, const char *name);
/* The same after zlib's header, as far as out and the input reach: neither more output nor an early
 * end is an error. An Adler-32 that is there is checked. */
size_t inflate_zlib(unsigned char *out, size_t capacity, const unsigned char *in, size_t size,
                    const char *name);
uint32_t
big32(const unsigned char *p); /* four bytes, the highest first, as zlib and PNG have them */
uint32_t crc32_of(uint32_t crc, const unsigned char *data, size_t size); /* start with 0 */

#endif
