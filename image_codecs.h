/* image_codecs.h: the decoders behind image_decode, one a format. Floor 1, for image.c alone.
 * Pixels are in the arena; messages start with `name`. */
#ifndef REFSAE_IMAGE_CODECS_H
#define REFSAE_IMAGE_CODECS_H

#include "image.h"

Image jpeg_decode(Arena *arena, const unsigned char *data, size_t size, const char *name);
Image png_decode(Arena *arena, const unsigned char *data, size_t size, const char *name);
Image pnm_decode(Arena *arena, const unsigned char *data, size_t size, const char *name);

/* Refuses 0 pixels and more than IMAGE_MAX_PIXELS: called before anything is allocated. */
void image_check_size(size_t width, size_t height, const char *name);
/* Allocates rgb[height * width * 3]. */
Image image_allocate(Arena *arena, size_t width, size_t height, const char *format);

#endif
