/* png.h: PNG, and the binary Netpbm formats PGM (P5) and PPM (P6). Floor 5. */
#ifndef REFSAE_PNG_H
#define REFSAE_PNG_H

#include "pixels.h"

/* Pixels are in the arena; messages start with `name`. Data begins as the format does. */
Image png_decode(Arena *arena, const unsigned char *data, size_t size, const char *name);
Image pnm_decode(Arena *arena, const unsigned char *data, size_t size, const char *name);

#endif
