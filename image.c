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

static Image image_decode(Arena *arena, const unsigned char *data, size_t size, const char *name) {
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
    size_t outputs, begin, span; /* inputs begin ... begin + span - 1 are read */
    size_t *first, *count;       /* [outputs]: the inputs that an output reads, from begin on */
    int32_t *weight;             /* [outputs][stride] */
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
    Weights w = {.outputs = n,
                 .first = arena_alloc(scratch, n, sizeof *w.first),
                 .count = arena_alloc(scratch, n, sizeof *w.count),
                 .weight = arena_alloc(scratch, n, stride * sizeof *w.weight),
                 .stride = stride};
    double *exact = arena_alloc(scratch, stride, sizeof *exact);
    for (size_t i = 0; i < n; i++) {
        double centre = ((double)(from + i) + 0.5) * scale, sum = 0.0;
        double low = centre - support + 0.5, high = centre + support + 0.5;
        size_t first = low < 0 ? 0 : (size_t)low;
        size_t end = high > (double)in_size ? in_size : (size_t)high;
        w.begin = i == 0 ? first : w.begin;
        w.first[i] = first - w.begin;
        w.count[i] = end - first;
        w.span = end - w.begin;
        for (size_t k = 0; k < end - first; k++) {
            exact[k] = cubic(((double)(first + k) - centre + 0.5) * shrink);
            sum += exact[k];
        }
        for (size_t k = 0; k < end - first; k++) {
            double share = exact[k] / sum * (1 << WEIGHT_BITS);
            w.weight[i * stride + k] = (int32_t)(share < 0 ? share - 0.5 : share + 0.5);
        }
    }
    return w;
}

/* in[lines][inputs][samples], lines `pitch` bytes apart, to out[lines][outputs][samples]. */
static void resize_axis(unsigned char *out, const unsigned char *in, size_t lines, size_t pitch,
                        size_t samples, const Weights *w) {
    for (const unsigned char *line = in; lines-- > 0; line += pitch) {
        for (size_t i = 0; i < w->outputs; i++) {
            const unsigned char *from = line + w->first[i] * samples;
            const int32_t *weight = w->weight + i * w->stride;
            size_t n = w->count[i];
            for (size_t c = 0; c < samples; c++, from++) {
                int32_t sum = 1 << (WEIGHT_BITS - 1);
                for (size_t k = 0; k < n; k++) {
                    sum += from[k * samples] * weight[k];
                }
                sum >>= WEIGHT_BITS;
                *out++ = (unsigned char)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
            }
        }
    }
}

/* The part [y0, y0 + part_height) x [x0, x0 + part_width) of `in` resized to width x height. */
static Image resize_part(Arena *arena, const Image *in, size_t width, size_t height, size_t x0,
                         size_t y0, size_t part_width, size_t part_height) {
    Image out = image_new(arena, part_width, part_height, in->format, 0);
    Arena *scratch = arena_new();
    Weights across = make_weights(in->width, width, x0, part_width, scratch);
    Weights down = make_weights(in->height, height, y0, part_height, scratch);
    size_t row = in->width * 3;
    const unsigned char *rows = in->rgb + down.begin * row;
    /* Pillow 13's rule; until Pillow 12 rows always came first. It matters for tall pictures. */
    if (in->height > height && in->width != width &&
        in->height - height + 2 * width > 2 * in->width) {
        unsigned char *middle = arena_alloc(scratch, part_height, row);
        resize_axis(middle, rows, 1, 0, row, &down);
        resize_axis(out.rgb, middle + across.begin * 3, part_height, row, 3, &across);
    } else {
        unsigned char *middle = arena_alloc(scratch, down.span, part_width * 3);
        resize_axis(middle, rows + across.begin * 3, down.span, row, 3, &across);
        resize_axis(out.rgb, middle, 1, 0, part_width * 3, &down);
    }
    arena_free(scratch);
    return out;
}

/* ---- preprocessing ---- */

enum {
    MAX_EDGE = 4096
}; /* of the settings' sizes */

static size_t read_edge(const Json *settings, const char *key, const Json *edge) {
    int64_t number = 0;
    if (!json_is(edge, JSON_NUMBER) || !json_int64(edge, &number) || number < 1 ||
        number > MAX_EDGE) {
        json_refuse(settings, key, "sizes from 1 to 4096 in a form that CLIP's processor takes");
    }
    return (size_t)number;
}

/* A number, [height, width], {"height", "width"} or, where allowed, {"shortest_edge"}. A number is
 * the shortest edge if that is allowed, else a square. */
static void read_size(const Json *settings, const char *key, size_t *shortest, size_t *height,
                      size_t *width) {
    const Json *value = json_get(settings, key), *edge = json_get(value, "shortest_edge");
    const Json *h = json_get(value, "height"), *w = json_get(value, "width");
    bool number = json_is(value, JSON_NUMBER), list = json_is(value, JSON_ARRAY);
    if (json_set(settings, key) == NULL) {
        return;
    }
    if (shortest != NULL) {
        *shortest = 0;
        if (number || (edge != NULL && value->length == 1)) {
            *shortest = read_edge(settings, key, number ? value : edge);
            return;
        }
    }
    if (number) {
        h = w = value;
    } else if (value->length != 2) {
        h = w = NULL;
    } else if (list) {
        h = value->child;
        w = h->next;
    }
    *height = read_edge(settings, key, h);
    *width = read_edge(settings, key, w);
}

/* One number or three. */
static void read_channels(const Json *settings, const char *key, double channel[3]) {
    const Json *value = json_get(settings, key);
    bool list = json_is(value, JSON_ARRAY);
    const Json *item = list && value->length == 3 ? value->child : value;
    for (size_t i = 0; json_set(settings, key) != NULL && i < 3;
         i++, item = list ? item->next : item) {
        if (!json_is(item, JSON_NUMBER) || !isfinite(json_double(item))) {
            json_refuse(settings, key, "a number or 3");
        }
        channel[i] = json_double(item);
    }
}

static bool one_of(const char *text, const char *const *list) {
    while (*list != NULL && strcmp(text, *list) != 0) {
        list++;
    }
    return *list != NULL;
}

static void read_settings(Preprocess *p, const Json *s, const char *name) {
    static const char *const known[] = {
        /* read */
        "do_resize", "do_center_crop", "do_rescale", "do_normalize", "size", "crop_size",
        "rescale_factor", "image_mean", "image_std", "resample", "image_processor_type",
        "feature_extractor_type",
        /* harmless */
        "_valid_processor_keys", "auto_map", "data_format", "device", "disable_grouping",
        "do_convert_rgb", "input_data_format", "name_or_path", "processor_class", "return_tensors",
        "transformers_version", "_name_or_path", "num_channels", "image_seq_length", NULL};
    static const char *const types[] = {"image_processor_type", "feature_extractor_type"};
    static const char *const clip[] = {"CLIPImageProcessor", "CLIPImageProcessorFast",
                                       "CLIPImageProcessorPil", "CLIPFeatureExtractor", NULL};
    for (const Json *v = s->child; v != NULL; v = v->next) { /* null and false: not taken */
        if (!one_of(v->key, known) && !json_is(v, JSON_NULL) && !json_is(v, JSON_FALSE)) {
            fail(STATUS_INPUT, "%s: '%s' is not supported", name, v->key);
        }
    }
    p->do_resize = json_bool(s, "do_resize", true);
    p->do_center_crop = json_bool(s, "do_center_crop", true);
    p->do_rescale = json_bool(s, "do_rescale", true);
    p->do_normalize = json_bool(s, "do_normalize", true);
    read_size(s, "size", &p->shortest_edge, &p->resize_height, &p->resize_width);
    read_size(s, "crop_size", NULL, &p->crop_height, &p->crop_width);
    if (json_set(s, "rescale_factor") != NULL) {
        p->rescale_factor = json_number(s, "rescale_factor", 0, -1e300, 1e300);
    }
    read_channels(s, "image_mean", p->mean);
    read_channels(s, "image_std", p->std);
    for (size_t i = 0; i < 3; i++) {
        if ((float)p->std[i] == 0) {
            json_refuse(s, "image_std", "no 0");
        }
    }
    if (json_set(s, "resample") != NULL && json_size(s, "resample", 3, 0, 9) != 3) {
        json_refuse(s, "resample", "3 (bicubic)");
    }
    for (size_t i = 0; i < 2; i++) {
        if (!one_of(json_text(s, types[i], clip[0]), clip)) {
            json_refuse(s, types[i], "CLIP's");
        }
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
    } else {
        read_settings(&p, settings, path);
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
    if (out_w > MAX_EDGE || out_h > MAX_EDGE) {
        fail(STATUS_INPUT, "the image processor makes %zu x %zu pixels of %zu x %zu, at most %d",
             out_w, out_h, image->width, image->height, MAX_EDGE);
    }

    /* Only what the crop keeps is resized; what it adds around the picture is 0. */
    int64_t top = crop_offset(h, out_h), left = crop_offset(w, out_w);
    size_t pad_y = top < 0 ? (size_t)-top : 0, pad_x = left < 0 ? (size_t)-left : 0;
    size_t y0 = top > 0 ? (size_t)top : 0, x0 = left > 0 ? (size_t)left : 0;
    Image part = *image;
    size_t origin = y0 * w + x0, stride = w;
    if (h != image->height || w != image->width) {
        size_t part_h = h < out_h ? h : out_h, part_w = w < out_w ? w : out_w;
        part = resize_part(arena, image, w, h, x0, y0, part_w, part_h);
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
