/* image.h: pictures to pixel values: recognised by content, Pillow's bicubic resize, CLIP's
 * preprocessing. Floor 6. */
#ifndef REFSAE_IMAGE_H
#define REFSAE_IMAGE_H

#include "pixels.h"

/* A JPEG, PNG, PGM (P5) or PPM (P6) file, by content, not by name. */
Image image_read(Arena *arena, const char *path);

/* CLIPImageProcessor's settings. */
typedef struct Preprocess {
    bool do_resize, do_center_crop, do_rescale, do_normalize;
    size_t shortest_edge; /* 0: resize to resize_height x resize_width exactly */
    size_t resize_height, resize_width;
    size_t crop_height, crop_width;
    double rescale_factor;
    double mean[3], std[3];
} Preprocess;

/* directory/preprocessor_config.json; when there is none, CLIPImageProcessor's defaults with size
 * and crop = image_size. Unknown steps and resample other than 3 (bicubic) are refused by name. */
Preprocess preprocess_open(const char *directory, size_t image_size);

/* pixel_values[3, H, W] with the height and width that the settings give (crop size, or what resize
 * leaves); *height, *width out. Allocated in the arena. */
float *preprocess_apply(Arena *arena, size_t *height, size_t *width, const Preprocess *preprocess,
                        const Image *image);

#endif
