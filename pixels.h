/* pixels.h: what the decoders of pictures give, and the most they may be asked for. Floor 4. */
#ifndef REFSAE_PIXELS_H
#define REFSAE_PIXELS_H

#include "base.h"
#include "zip.h"

/* 8-bit RGB as Pillow's Image.open(...).convert("RGB"): rgb[(y * width + x) * 3 + c]. */
typedef struct Image {
    size_t width, height;
    unsigned char *rgb;
    const char *format; /* "JPEG", "PNG", "PPM" ... for info */
    size_t memory;      /* bytes that decoding takes beside the data; the pixels of them stay */
} Image;

/* Pillow's decompression-bomb error bound, 2 * 89478485 */
#define IMAGE_MAX_PIXELS ((size_t)178956970)

/* Refuses 0 pixels and more than IMAGE_MAX_PIXELS: called before anything is allocated. */
static inline void image_check_size(size_t width, size_t height, const char *name) {
    if (width == 0 || height == 0) {
        fail(STATUS_INPUT, "%s: the picture has no pixels (%zu x %zu)", name, width, height);
    }
    if (width > IMAGE_MAX_PIXELS / height) {
        fail(STATUS_INPUT, "%s: the picture is too large: %zu x %zu is above %zu pixels", name,
             width, height, IMAGE_MAX_PIXELS);
    }
}

static inline void image_check_memory(size_t bytes, size_t packed, const char *name) {
    if (inflates_too_far(bytes, packed)) {
        fail(STATUS_INPUT,
             "%s: the picture takes %zu bytes of memory, too many for %zu of data (see --unpack)",
             name, bytes, packed);
    }
}

static inline Image image_new(Arena *arena, size_t width, size_t height, const char *format,
                              size_t beside) {
    return (Image){width, height, arena_alloc(arena, width * height, 3), format,
                   3 * width * height + beside};
}

#endif
