/* image.c: what every picture passes through: recognition by content, Pillow's bicubic resize, and
 * CLIPImageProcessor's steps up to pixel values. The formats are in jpeg.c and png.c. */
#include "image.h"

#include <math.h>
#include <string.h>

#include "jpeg.h"
#include "json.h"
#include "png.h"

/* ---- files ---- */

typedef struct Signature {
    const char *format;
    size_t offset, length;
    const char *bytes;
} Signature;

/* The formats that people have and refsae does not read. */
static const Signature refused[] = {
    {"GIF", 0, 4, "GIF8"},
    {"WebP", 8, 4, "WEBP"},
    {"BMP", 0, 2, "BM"},
    {"TIFF", 0, 4, "II*\0"},
    {"TIFF", 0, 4, "MM\0*"},
    {"HEIF or AVIF", 4, 4, "ftyp"},
    {"JPEG 2000", 4, 4, "jP  "},
    {"JPEG 2000", 0, 4, "\xff\x4f\xff\x51"},
    {"JPEG XL", 0, 2, "\xff\x0a"},
    {"JPEG XL", 4, 4, "JXL "},
    {"PBM (P1)", 0, 2, "P1"},
    {"PGM as text (P2)", 0, 2, "P2"},
    {"PPM as text (P3)", 0, 2, "P3"},
    {"PBM (P4)", 0, 2, "P4"},
    {"PAM", 0, 3, "P7\n"},
    {"PFM", 0, 3, "Pf\n"},
    {"PFM", 0, 3, "PF\n"},
};

Image image_decode(Arena *arena, const unsigned char *data, size_t size, const char *name) {
    if (size == 0) {
        fail(STATUS_INPUT, "%s: the file is empty", name);
    }
    if (size >= 3 && memcmp(data, "\xff\xd8\xff", 3) == 0) {
        return jpeg_decode(arena, data, size, name);
    }
    if (size >= 8 && memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0) {
        return png_decode(arena, data, size, name);
    }
    if (size >= 3 && data[0] == 'P' && (data[1] == '5' || data[1] == '6') &&
        (data[2] == ' ' || (data[2] >= '\t' && data[2] <= '\r'))) {
        return pnm_decode(arena, data, size, name);
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const Signature *s = &refused[i];
        if (size >= s->offset + s->length && memcmp(data + s->offset, s->bytes, s->length) == 0) {
            fail(STATUS_INPUT, "%s: %s is not supported, only JPEG, PNG, PGM (P5) and PPM (P6)",
                 name, s->format);
        }
    }
    fail(STATUS_INPUT, "%s: not a JPEG, PNG, PGM or PPM image", name);
}

Image image_read(Arena *arena, const char *path) {
    Arena *scratch = arena_new();
    FileMap map = file_map(scratch, path);
    Image image = image_decode(arena, map.data, map.size, path);
    arena_free(scratch);
    return image;
}

/* ---- resize ----
 * As Pillow's ImagingResample on 8-bit channels: one direction, rounded to 8 bits, then the other.
 * The weights of an output pixel are the cubic (a = -1/2) around its centre, stretched by the scale
 * when shrinking, normalised in binary64, then rounded to 22 fractional bits; sums are integers. */

enum {
    WEIGHT_BITS = 32 - 8 - 2
};

typedef struct Weights {
    size_t *first, *count; /* [outputs]: the inputs that an output reads */
    int32_t *weight;       /* [outputs][stride] */
    size_t stride;
} Weights;

static double cubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    }
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

/* Weights of outputs from, from + 1 ... from + n - 1 of `out_size` over in_size inputs. */
static Weights make_weights(size_t in_size, size_t out_size, size_t from, size_t n,
                            Arena *scratch) {
    double scale = (double)in_size / (double)out_size;
    double stretch = scale < 1.0 ? 1.0 : scale, shrink = 1.0 / stretch, support = 2.0 * stretch;
    size_t stride = (size_t)ceil(support) * 2 + 1;
    stride = stride < in_size ? stride : in_size;
    Weights w = {arena_alloc(scratch, n, sizeof *w.first), arena_alloc(scratch, n, sizeof *w.count),
                 arena_alloc(scratch, n, stride * sizeof *w.weight), stride};
    double *exact = arena_alloc(scratch, stride, sizeof *exact);
    for (size_t i = 0; i < n; i++) {
        double centre = ((double)(from + i) + 0.5) * scale, sum = 0.0;
        double low = centre - support + 0.5, high = centre + support + 0.5;
        size_t first = low < 0 ? 0 : (size_t)low;
        size_t end = high > (double)in_size ? in_size : (size_t)high;
        w.first[i] = first;
        w.count[i] = end - first;
        for (size_t k = 0; k < end - first; k++) {
            exact[k] = cubic(((double)(first + k) - centre + 0.5) * shrink);
            sum += exact[k];
        }
        for (size_t k = 0; k < end - first; k++) {
            double share = sum != 0.0 ? exact[k] / sum : exact[k];
            share *= 1 << WEIGHT_BITS;
            w.weight[i * stride + k] = (int32_t)(share < 0 ? share - 0.5 : share + 0.5);
        }
    }
    return w;
}

/* n samples, `step` apart, under their weights. */
static unsigned char weigh(const unsigned char *in, size_t step, const int32_t *weight, size_t n) {
    int32_t sum = 1 << (WEIGHT_BITS - 1);
    for (size_t k = 0; k < n; k++) {
        sum += in[k * step] * weight[k];
    }
    sum >>= WEIGHT_BITS;
    return (unsigned char)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* Rows of `in` (`stride` bytes apart, beginning at pixel `left`) to out[rows][n pixels]. */
static void resize_across(unsigned char *out, size_t n, const unsigned char *in, size_t stride,
                          size_t left, size_t rows, const Weights *w) {
    for (size_t y = 0; y < rows; y++) {
        for (size_t x = 0; x < n; x++) {
            const unsigned char *from = in + y * stride + (w->first[x] - left) * 3;
            for (size_t c = 0; c < 3; c++) {
                *out++ = weigh(from + c, 3, w->weight + x * w->stride, w->count[x]);
            }
        }
    }
}

/* Columns of `in` (rows `stride` bytes apart, beginning at row `top`) to out[n][bytes]. */
static void resize_down(unsigned char *out, size_t n, const unsigned char *in, size_t stride,
                        size_t top, size_t bytes, const Weights *w) {
    for (size_t y = 0; y < n; y++) {
        const unsigned char *from = in + (w->first[y] - top) * stride;
        for (size_t i = 0; i < bytes; i++) {
            *out++ = weigh(from + i, stride, w->weight + y * w->stride, w->count[y]);
        }
    }
}

/* The inputs that n outputs read: from *first on. */
static size_t weights_span(const Weights *w, size_t n, size_t *first) {
    *first = w->first[0];
    return w->first[n - 1] + w->count[n - 1] - *first;
}

/* The part [y0, y0 + out->height) x [x0, x0 + out->width) of `in` resized to width x height. */
static void resize_part(const Image *out, const Image *in, size_t width, size_t height, size_t x0,
                        size_t y0, Arena *scratch) {
    Weights across = make_weights(in->width, width, x0, out->width, scratch);
    Weights down = make_weights(in->height, height, y0, out->height, scratch);
    size_t left, top;
    size_t columns = weights_span(&across, out->width, &left);
    size_t rows = weights_span(&down, out->height, &top);
    /* Pillow 13's rule; until Pillow 12 rows always came first. It matters for tall pictures only.
     */
    bool down_first = in->height > height && in->width != width &&
                      in->height - height + 2 * width > 2 * in->width;
    size_t pixels = down_first ? out->height * columns : rows * out->width;
    unsigned char *middle = arena_alloc(scratch, pixels, 3);
    if (down_first) {
        const unsigned char *corner = in->rgb + (top * in->width + left) * 3;
        resize_down(middle, out->height, corner, in->width * 3, top, columns * 3, &down);
        resize_across(out->rgb, out->width, middle, columns * 3, left, out->height, &across);
    } else {
        resize_across(middle, out->width, in->rgb + top * in->width * 3, in->width * 3, 0, rows,
                      &across);
        resize_down(out->rgb, out->height, middle, out->width * 3, top, out->width * 3, &down);
    }
}

static Image resize_window(Arena *arena, const Image *in, size_t width, size_t height, size_t x0,
                           size_t y0, size_t window_width, size_t window_height) {
    Image out = image_new(arena, window_width, window_height, in->format);
    Arena *scratch = arena_new();
    resize_part(&out, in, width, height, x0, y0, scratch);
    arena_free(scratch);
    return out;
}

Image image_resize(Arena *arena, const Image *in, size_t width, size_t height) {
    image_check_size(width, height, "resize");
    return resize_window(arena, in, width, height, 0, 0, width, height);
}

/* ---- preprocessing ---- */

enum {
    MAX_EDGE = 16384
}; /* of the settings' sizes */

/* `name` is the file's, for messages. */
static bool read_flag(const Json *value, const char *name) {
    if (!json_is(value, JSON_TRUE) && !json_is(value, JSON_FALSE)) {
        fail(STATUS_INPUT, "%s: '%s' must be true or false", name, value->key);
    }
    return json_is(value, JSON_TRUE);
}

static double read_number(const Json *value, const char *key, const char *name) {
    if (!json_is(value, JSON_NUMBER) || !isfinite(json_double(value))) {
        fail(STATUS_INPUT, "%s: '%s' must be a number", name, key);
    }
    return json_double(value);
}

static size_t read_edge(const Json *value, const char *key, const char *name) {
    int64_t number = 0;
    if (!json_int64(value, &number) || number < 1 || number > MAX_EDGE) {
        fail(STATUS_INPUT, "%s: '%s' must be a whole number from 1 to %d", name, key, MAX_EDGE);
    }
    return (size_t)number;
}

/* A number, [height, width], {"height", "width"} or, where allowed, {"shortest_edge"}. A number is
 * the shortest edge if that is allowed, else a square. */
static void read_size(const Json *value, size_t *shortest, size_t *height, size_t *width,
                      const char *name) {
    const char *key = value->key;
    const Json *h = json_get(value, "height"), *w = json_get(value, "width");
    if (json_is(value, JSON_ARRAY) && value->length == 2) {
        h = value->child;
        w = h->next;
    } else if (json_is(value, JSON_NUMBER)) {
        h = w = value;
    }
    if (shortest != NULL) {
        const Json *edge = json_is(value, JSON_NUMBER) ? value : json_get(value, "shortest_edge");
        *shortest = 0;
        if (json_is(value, JSON_NUMBER) || (edge != NULL && value->length == 1)) {
            *shortest = read_edge(edge, key, name);
            return;
        }
    }
    if (h == NULL || w == NULL || (json_is(value, JSON_OBJECT) && value->length != 2)) {
        fail(STATUS_INPUT, "%s: '%s' is not in a form that is supported", name, key);
    }
    *height = read_edge(h, key, name);
    *width = read_edge(w, key, name);
}

/* One number or three. */
static void read_channels(const Json *value, double channel[3], const char *name) {
    const Json *item = json_is(value, JSON_ARRAY) ? value->child : value;
    if (json_is(value, JSON_ARRAY) && value->length != 3) {
        fail(STATUS_INPUT, "%s: '%s' must have 3 numbers", name, value->key);
    }
    for (size_t i = 0; i < 3; i++) {
        channel[i] = read_number(item, value->key, name);
        item = json_is(value, JSON_ARRAY) ? item->next : item;
    }
}

static bool one_of(const char *text, const char *const *list) {
    while (*list != NULL && strcmp(text, *list) != 0) {
        list++;
    }
    return *list != NULL;
}

static void read_setting(Preprocess *p, const Json *v, const char *name) {
    static const char *const harmless[] = {"_valid_processor_keys",
                                           "auto_map",
                                           "data_format",
                                           "device",
                                           "disable_grouping",
                                           "do_convert_rgb",
                                           "input_data_format",
                                           "name_or_path",
                                           "processor_class",
                                           "return_tensors",
                                           "transformers_version",
                                           "_name_or_path",
                                           "num_channels",
                                           "image_seq_length",
                                           NULL};
    static const char *const clip[] = {"CLIPImageProcessor", "CLIPImageProcessorFast",
                                       "CLIPImageProcessorPil", "CLIPFeatureExtractor", NULL};
    if (json_is(v, JSON_NULL)) { /* as if absent */
        return;
    }
    if (strcmp(v->key, "do_resize") == 0) {
        p->do_resize = read_flag(v, name);
    } else if (strcmp(v->key, "do_center_crop") == 0) {
        p->do_center_crop = read_flag(v, name);
    } else if (strcmp(v->key, "do_rescale") == 0) {
        p->do_rescale = read_flag(v, name);
    } else if (strcmp(v->key, "do_normalize") == 0) {
        p->do_normalize = read_flag(v, name);
    } else if (strcmp(v->key, "size") == 0) {
        read_size(v, &p->shortest_edge, &p->resize_height, &p->resize_width, name);
    } else if (strcmp(v->key, "crop_size") == 0) {
        read_size(v, NULL, &p->crop_height, &p->crop_width, name);
    } else if (strcmp(v->key, "rescale_factor") == 0) {
        p->rescale_factor = read_number(v, v->key, name);
    } else if (strcmp(v->key, "image_mean") == 0) {
        read_channels(v, p->mean, name);
    } else if (strcmp(v->key, "image_std") == 0) {
        read_channels(v, p->std, name);
        for (size_t i = 0; i < 3; i++) {
            if ((float)p->std[i] == 0) {
                fail(STATUS_INPUT, "%s: 'image_std' must not be 0", name);
            }
        }
    } else if (strcmp(v->key, "resample") == 0) {
        int64_t filter;
        if (!json_int64(v, &filter) || filter != 3) {
            fail(STATUS_INPUT, "%s: 'resample' must be 3 (bicubic), found %s", name,
                 json_is(v, JSON_NUMBER) ? v->text : "another kind of value");
        }
    } else if (strcmp(v->key, "image_processor_type") == 0 ||
               strcmp(v->key, "feature_extractor_type") == 0) {
        if (!json_is(v, JSON_STRING) || !one_of(v->text, clip)) {
            fail(STATUS_INPUT, "%s: '%s' %s is not supported, only CLIP's", name, v->key,
                 json_is(v, JSON_STRING) ? v->text : "of this kind");
        }
    } else if (!one_of(v->key, harmless) && !json_is(v, JSON_FALSE)) { /* false: not taken */
        fail(STATUS_INPUT, "%s: '%s' is not supported", name, v->key);
    }
}

/* preprocessor_config.json, or what transformers 5 writes for a whole processor:
 * processor_config.json with the member image_processor. NULL: neither is there. */
static const Json *find_settings(Arena *arena, const char *directory, const char **path) {
    *path = path_join(arena, directory, "preprocessor_config.json");
    if (path_exists(*path)) {
        return json_read_file(arena, *path);
    }
    const char *whole = path_join(arena, directory, "processor_config.json");
    if (!path_exists(whole)) {
        return NULL;
    }
    *path = whole;
    return json_get(json_read_file(arena, whole), "image_processor");
}

Preprocess preprocess_open(const char *directory, size_t image_size) {
    Preprocess p = {.do_resize = true,
                    .do_center_crop = true,
                    .do_rescale = true,
                    .do_normalize = true,
                    .shortest_edge = 224,
                    .crop_height = 224,
                    .crop_width = 224,
                    .rescale_factor = 1.0 / 255.0,
                    .mean = {0.48145466, 0.4578275, 0.40821073},
                    .std = {0.26862954, 0.26130258, 0.27577711}};
    Arena *scratch = arena_new();
    const char *path;
    const Json *settings = find_settings(scratch, directory, &path);
    if (settings == NULL) {
        p.shortest_edge = p.crop_height = p.crop_width = image_size;
    } else if (!json_is(settings, JSON_OBJECT)) {
        fail(STATUS_INPUT, "%s: an object was expected", path);
    }
    for (const Json *v = settings == NULL ? NULL : settings->child; v != NULL; v = v->next) {
        if (json_get(settings, v->key) == v) { /* of equal names the last counts */
            read_setting(&p, v, path);
        }
    }
    arena_free(scratch);
    return p;
}

/* floor((size - crop) / 2): where the crop begins, negative if it reaches beyond the picture. */
static int64_t crop_offset(size_t size, size_t crop) {
    return size >= crop ? (int64_t)((size - crop) / 2) : -(int64_t)((crop - size + 1) / 2);
}

float *preprocess_apply(Arena *arena, size_t *height, size_t *width, const Preprocess *preprocess,
                        const Image *image) {
    const Preprocess *p = preprocess;
    size_t h = image->height, w = image->width;
    if (p->do_resize && p->shortest_edge == 0) {
        h = p->resize_height;
        w = p->resize_width;
    } else if (p->do_resize) {
        size_t *shorter = w <= h ? &w : &h,
               *longer = w <= h ? &h : &w; /* Python: int(size * l / s) */
        *longer = (size_t)((double)(p->shortest_edge * *longer) / (double)*shorter);
        *shorter = p->shortest_edge;
    }
    size_t out_h = p->do_center_crop ? p->crop_height : h;
    size_t out_w = p->do_center_crop ? p->crop_width : w;
    image_check_size(out_w, out_h, "the settings of the image processor");

    /* Only what the crop keeps is resized; what it adds around the picture is 0. */
    int64_t top = crop_offset(h, out_h), left = crop_offset(w, out_w);
    size_t pad_y = top < 0 ? (size_t)-top : 0, pad_x = left < 0 ? (size_t)-left : 0;
    size_t y0 = top > 0 ? (size_t)top : 0, x0 = left > 0 ? (size_t)left : 0;
    Image part = *image;
    size_t origin = y0 * w + x0, stride = w;
    if (h != image->height || w != image->width) {
        size_t part_h = h < out_h ? h : out_h, part_w = w < out_w ? w : out_w;
        part = resize_window(arena, image, w, h, x0, y0, part_w, part_h);
        origin = 0;
        stride = part_w;
    }
    float *values = arena_alloc(arena, out_h * out_w, 3 * sizeof *values), *next = values;
    for (size_t c = 0; c < 3; c++) {
        float table[256];
        for (size_t i = 0; i < 256; i++) {
            table[i] = p->do_rescale ? (float)((double)i * p->rescale_factor) : (float)i;
            if (p->do_normalize) {
                table[i] = (table[i] - (float)p->mean[c]) / (float)p->std[c];
            }
        }
        for (size_t y = 0; y < out_h; y++) {
            for (size_t x = 0; x < out_w; x++) {
                bool inside = y >= pad_y && y - pad_y < h && x >= pad_x && x - pad_x < w;
                size_t at = origin + (y - pad_y) * stride + (x - pad_x);
                *next++ = table[inside ? part.rgb[at * 3 + c] : 0];
            }
        }
    }
    *height = out_h;
    *width = out_w;
    return values;
}
