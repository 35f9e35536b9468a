/* jpeg.h: baseline, extended sequential and progressive JPEG with Huffman codes. Floor 5. */
#ifndef REFSAE_JPEG_H
#define REFSAE_JPEG_H

#include "pixels.h"

/* Pixels are in the arena; messages start with `name`. Data begins with FF D8. Arithmetic coding,
 * lossless and hierarchical files, tables that are not there, and progressive files that end before
 * their first AC coefficients are complete (libjpeg would smooth them) are refused by name. */
Image jpeg_decode(Arena *arena, const unsigned char *data, size_t size, const char *name);

#endif
