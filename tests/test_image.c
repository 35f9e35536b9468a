/* test_image.c: pictures and their preprocessing against Pillow and transformers (bit for bit, see
 * tests/reference/make_image_golden.py), and files that must be refused. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "image.h"
#include "jpeg.h"
#include "png.h"
#include "zip.h"

#define GOLDEN "tests/golden/image/"

static void image_digest(const Image *image, char hex[65]) {
    Sha256 sha;
    sha256_start(&sha);
    sha256_add(&sha, image->rgb, image->width * image->height * 3);
    sha256_end(&sha, hex);
}

static Image read_golden(Arena *arena, const char *name) {
    return image_read(arena, arena_format(arena, GOLDEN "%s", name));
}

Test(image, files_equal_pillow) {
    FILE *manifest = fopen(GOLDEN "manifest.txt", "r");
    cr_assert_not_null(manifest);
    char name[128], expected[65], found[65];
    size_t width, height, count = 0;
    while (fscanf(manifest, "%127s %zu %zu %64s", name, &width, &height, expected) == 4) {
        Arena *arena = arena_new();
        Image image = read_golden(arena, name);
        cr_expect(image.width == width && image.height == height, "%s: size", name);
        image_digest(&image, found);
        cr_expect_str_eq(found, expected, "%s: pixels differ", name);
        arena_free(arena);
        count++;
    }
    fclose(manifest);
    cr_assert(count >= 92);
}

Test(image, resize_equals_pillow) {
    FILE *lines = fopen(GOLDEN "resize.txt", "r");
    cr_assert_not_null(lines);
    char name[128], expected[65], found[65];
    size_t width, height, count = 0;
    while (fscanf(lines, "%127s %zu %zu %64s", name, &width, &height, expected) == 4) {
        Arena *arena = arena_new();
        Image image = read_golden(arena, name);
        Preprocess exact = {.do_resize = true, .resize_height = height, .resize_width = width};
        size_t h, w;
        float *values = preprocess_apply(arena, &h, &w, &exact, &image);
        Image resized = image_new(arena, w, h, "none", 0);
        for (size_t i = 0; i < h * w * 3; i++) { /* planes of whole numbers */
            resized.rgb[i] = (unsigned char)values[i % 3 * h * w + i / 3];
        }
        image_digest(&resized, found);
        cr_expect_str_eq(found, expected, "%s to %zu x %zu", name, width, height);
        arena_free(arena);
        count++;
    }
    fclose(lines);
    cr_assert(count >= 22);
}

/* Equality, not closeness: every step is one IEEE operation, in numpy and here. */
Test(image, pixel_values_equal_transformers) {
    FILE *lines = fopen(GOLDEN "settings.txt", "r");
    cr_assert_not_null(lines);
    char setting[64], name[128], path[512];
    size_t height, width, count = 0;
    while (fscanf(lines, "%63s %127s %zu %zu", setting, name, &height, &width) == 4) {
        Arena *arena = arena_new();
        Image image = read_golden(arena, name);
        snprintf(path, sizeof path, GOLDEN "settings/%s", setting);
        Preprocess preprocess = preprocess_open(path, 7);
        size_t h, w;
        float *values = preprocess_apply(arena, &h, &w, &preprocess, &image);
        cr_expect(h == height && w == width, "%s %s: %zu x %zu", setting, name, h, w);
        snprintf(path, sizeof path, GOLDEN "settings/%s/%s.f32", setting, name);
        FileMap map = file_map(arena, path);
        cr_assert_eq(map.size, 3 * h * w * sizeof *values);
        cr_expect_eq(memcmp(map.data, values, map.size), 0, "%s %s: values differ", setting, name);
        arena_free(arena);
        count++;
    }
    fclose(lines);
    cr_assert(count >= 16);
}

/* A picture in exactly so much memory that ASan sees a byte too many; what begins as none does goes
 * through a file. */
static Error attempt_decode(const void *data, size_t size) {
    Error error;
    Arena *arena = arena_new();
    unsigned char *copy = malloc(size > 0 ? size : 1);
    memcpy(copy, data, size);
    if (size >= 3 && memcmp(copy, "\xff\xd8\xff", 3) == 0) {
        ATTEMPT(&error, jpeg_decode(arena, copy, size, "file"));
    } else if (size >= 8 && memcmp(copy, "\x89PNG\r\n\x1a\n", 8) == 0) {
        ATTEMPT(&error, png_decode(arena, copy, size, "file"));
    } else if (size >= 3 && copy[0] == 'P' && (copy[1] == '5' || copy[1] == '6') &&
               strchr(" \t\n\v\f\r", copy[2]) != NULL && copy[2] != 0) {
        ATTEMPT(&error, pnm_decode(arena, copy, size, "file"));
    } else {
        char path[] = "/tmp/refsae-picture-XXXXXX", said[sizeof error.text];
        FILE *stream = fdopen(mkstemp(path), "wb");
        cr_assert(fwrite(data, 1, size, stream) == size);
        fclose(stream);
        ATTEMPT(&error, image_read(arena, path));
        remove(path);
        cr_assert(strncmp(error.text, path, strlen(path)) == 0, "%s", error.text);
        snprintf(said, sizeof said, "file%s", error.text + strlen(path));
        memcpy(error.text, said, sizeof said);
    }
    free(copy);
    arena_free(arena);
    return error;
}

static void expect_refusal(const void *data, size_t size, const char *what) {
    Error error = attempt_decode(data, size);
    cr_expect_eq(error.status, STATUS_INPUT, "%s", what);
    cr_expect(strstr(error.text, what) != NULL, "expected '%s', found '%s'", what, error.text);
}

#define PNG_START "\x89PNG\r\n\x1a\n\0\0\0\rIHDR"

Test(image, other_formats_are_refused_by_name) {
    expect_refusal("", 0, "empty");
    expect_refusal("hello, world", 12, "not a JPEG, PNG, PGM or PPM image");
    expect_refusal("GIF89a\1\0\1\0", 10, "GIF is not supported");
    expect_refusal("RIFF\1\2\3\4WEBPVP8 ", 16, "WebP is not supported");
    expect_refusal("BM\1\2\3\4", 6, "BMP is not supported");
    expect_refusal("II*\0\1\2", 6, "TIFF is not supported");
    expect_refusal("P7\nWIDTH 1", 10, "PAM is not supported");
    expect_refusal("P1 1 1\n0", 8, "PBM (P1) is not supported");
    expect_refusal("P2 1 1 255\n0", 12, "PGM as text (P2) is not supported");
    expect_refusal("P3 1 1 255\n0 0 0", 16, "PPM as text (P3) is not supported");
    expect_refusal("P4 1 1\n0", 8, "PBM (P4) is not supported");
    expect_refusal("P6#c\n1 1 255\nabc", 16, "not a JPEG, PNG, PGM or PPM image");
}

/* The checksums are right, so that what is said is said of the size. */
Test(image, impossible_sizes_are_refused) {
    expect_refusal(PNG_START "\200\000\000\000\200\000\000\000\010\002\000\000\000\162\326\316\035",
                   33, "too large");
    expect_refusal(PNG_START "\000\000\000\000\000\000\000\005\010\002\000\000\000\344\044\172\366",
                   33, "no pixels");
    expect_refusal(PNG_START "\000\000\000\005\000\000\000\005\003\002\000\000\000\165\335\200\243",
                   33, "3 bits");
    expect_refusal(PNG_START
                   "\000\000\047\020\000\000\037\100\020\006\000\000\000\175\334\135\246\000\000"
                   "\000\012\111\104\101\124\170\234\143\000\000\000\001\000\001\061\062\063\064",
                   54, "880008000 bytes of memory, too many for 10");
    expect_refusal("P6 0 5 255\n", 11, "no pixels");
    expect_refusal("P6 2147483648 2147483648 255\n", 29, "too large");
    expect_refusal("P5 60000 60000 255\n", 19, "too large");
    expect_refusal("P5 10000 10000 255\n", 19, "ends before");
    expect_refusal("P5 2 1 255\n1", 12, "ends before");
    expect_refusal("P6 2 1", 6, "ends before");
    expect_refusal("P5 1 -1 255\n1", 13, "number");
    expect_refusal("P5 1 1 65536\nab", 15, "maximum");
    expect_refusal("P5 99999999999 1 255\n", 21, "number");
    expect_refusal("P5 99999999999999 1 255\n", 24, "number");
    expect_refusal("P5 # no end", 11, "ends before");
    expect_refusal("P5  \n1 1 255\n", 13, "ends before");
    static const unsigned char jpeg[] = {0xff, 0xd8, 0xff, 0xc0, 0, 11,   8, 0,
                                         0,    0,    9,    1,    1, 0x11, 0};
    expect_refusal(jpeg, sizeof jpeg, "no pixels");
}

/* Chunks with their checksums right, so that what is said is said of what they hold. */
Test(image, png_chunks_that_cannot_be) {
    static const struct {
        const char *header, *type,
            *body; /* header: depth to interlacing; type: of a second chunk */
        size_t header_size, size;
        const char *what;
    } cases[] = {
        {"\10\0\0\0\0", "IEND", "", 4, 0, "the header is too short"},
        {"\10\7\0\0\0", "IEND", "", 5, 0, "no colour type 7 with 8 bits exists"},
        {"\40\0\0\0\0", "IEND", "", 5, 0, "no colour type 0 with 32 bits exists"},
        {"\10\0\1\0\0", "IEND", "", 5, 0, "unknown compression or filter method"},
        {"\10\0\0\1\0", "IEND", "", 5, 0, "unknown compression or filter method"},
        {"\10\0\0\0\0", "IEND", "", 5, 0, "the file holds no picture"},
        {"\10\0\0\0\0", "IHDR", "", 5, 0, "the header is too short"},
        {"\10\0\0\0\0", "PLTE", "abc", 5, 3, "before the picture begins"},
        {"\10\3\0\0\0", "PLTE", NULL, 5, 769, "the palette has more than 256 entries"},
        {"\10\0\0\0\0", "IDAT", "\x78\1\1\2\0\xfd\xff\5\0\0\14\0\6", 5, 13, "unknown filter 5"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        unsigned char file[1024] = "\x89PNG\r\n\x1a\n", *at = file + 8;
        for (int second = 0; second < 2; second++) {
            size_t n = second ? cases[i].size : 8 + cases[i].header_size;
            at[2] = (unsigned char)(n >> 8);
            at[3] = (unsigned char)n;
            memcpy(at + 4, second ? cases[i].type : "IHDR", 4);
            if (second && cases[i].body != NULL) {
                memcpy(at + 8, cases[i].body, n);
            } else if (!second) {
                at[11] = at[15] = 1; /* width and height */
                memcpy(at + 16, cases[i].header, cases[i].header_size);
            }
            uint32_t crc = crc32_of(0, at + 4, n + 4);
            for (size_t k = 0; k < 4; k++) {
                at[8 + n + k] = (unsigned char)(crc >> (24 - 8 * k));
            }
            at += 12 + n;
        }
        expect_refusal(file, (size_t)(at - file), cases[i].what);
    }
}

/* golden file, offset or -1 - n for the n-th last byte, bytes put there, what the sentence must say
 */
typedef struct Damage {
    const char *name;
    const char *find; /* NULL: cut the file to `offset` bytes; else bytes before the place */
    size_t find_length, offset;
    const char *bytes;
    size_t length;
    const char *what;
} Damage;

static const Damage damages[] = {
    {"sample_2x2.jpg", NULL, 0, 400, NULL, 0, "ends before"},
    {"sample_2x2.jpg", NULL, 0, 1000, NULL, 0, "ends before"},
    {"progressive_420.jpg", NULL, 0, 1100, NULL, 0, "ends before"},
    {"sample_2x2.jpg", "\xff\xc0\0\x11", 4, 4, "\x0c", 1, "12 bits"},
    {"sample_2x2.jpg", "\xff\xc0\0\x11", 4, 11, "\x51", 1, "1 to 4"},
    {"sample_2x2.jpg", "\xff\xc0\0\x11", 4, 11, "\x33", 1, "10 blocks"},
    {"sample_2x2.jpg", "\xff\xc0\0\x11", 4, 14, "\x31", 1, "fractional"},
    {"sample_2x2.jpg", "\xff\xc0\0\x11", 4, 12, "\3", 1, "quantization table that is not"},
    {"sample_2x2.jpg", "\xff\xc0", 2, 1, "\xcb", 1, "lossless"},
    {"sample_2x2.jpg", "\xff\xc0", 2, 1, "\xc9", 1, "arithmetic coding"},
    {"sample_2x2.jpg", "\xff\xc0", 2, 1, "\xca", 1, "arithmetic coding"},
    {"sample_2x2.jpg", "\xff\xdb", 2, 1, "\xcc", 1, "arithmetic coding"},
    {"sample_2x2.jpg", "\xff\xc4", 2, 1, "\xfe", 1, "Huffman table that is not there"},
    {"progressive_420.jpg", "\xff\xda\0\x08", 4, 1, "\xd9", 1, "last scans are missing"},
    {"progressive_420.jpg", "\xff\xda\0\x08\1\1\0\1\x3f\x10", 10, 1, "\xd9", 1,
     "last scans are missing"},
    {"sample_2x2.jpg", "\xff\xc0", 2, 1, "\xc3", 1, "lossless"},
    {"sample_2x2.jpg", "\xff\xc0", 2, 1, "\xc5", 1, "hierarchical"},
    {"sample_2x2.jpg", "\xff\xc0", 2, 1, "\xfe", 1, "before the frame"},
    {"sample_2x2.jpg", "\xff\xc4", 2, 5, "\3\3", 2, "Huffman"},
    {"sample_2x2.jpg", "\xff\xda", 2, 5, "\x09", 1, "component"},
    {"sample_2x2.jpg", "\xff\xda", 2, 6, "\x22", 1, "Huffman table that is not there"},
    {"sample_2x2.jpg", "\xff\xdb", 2, 4, "\x04", 1, "quantization"},
    {"progressive_420.jpg", "\xff\xda", 2, 11, "\5", 1, "progression"},
    {"filters.png", NULL, 0, 900, NULL, 0, "before the picture is complete"},
    {"end_no_checksum.png", NULL, 0, 60, NULL, 0, "before the picture is complete"},
    {"c2_08.png", "IEND", 4, (size_t)-12, "\xff\xff\xff\xff", 4, "checksum differs"},
    {"filters.png", NULL, 0, 18, NULL, 0, "before the picture begins"},
    {"filters.png", "IHDR", 4, 7, "\1", 1, "checksum"},
    {"filters.png", "IDAT", 4, 300, "\x55\x55\x55", 3, "broken"},
    {"c2_08.png", "IDAT", 4, 0, "jDAT", 4, "checksum"},
    {"c3_08.png", "PLTE", 4, 30, "x", 1, "checksum"},
};

Test(image, damage_is_refused) {
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        const Damage *d = &damages[i];
        Arena *arena = arena_new();
        FileMap map = file_map(arena, arena_format(arena, GOLDEN "%s", d->name));
        size_t size = d->find == NULL ? d->offset : map.size, at = 0;
        char *copy = arena_copy(arena, (const char *)map.data, size);
        while (d->find != NULL && memcmp(copy + at, d->find, d->find_length) != 0) {
            at++;
        }
        if (d->length > 0) {
            memcpy(copy + at + d->offset, d->bytes, d->length);
        }
        expect_refusal(copy, size, d->what);
        arena_free(arena);
    }
}

/* Any end of a file, and any byte of it changed, gives pixels or one sentence. */
Test(image, no_damage_breaks_the_decoder) {
    static const char *const names[] = {"sample_2x2.jpg", "progressive_444_restart.jpg",
                                        "cmyk_adobe.jpg", "c3_04_interlaced.png",
                                        "raw_7.ppm",      "raw_300.pgm"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Arena *arena = arena_new();
        FileMap map = file_map(arena, arena_format(arena, GOLDEN "%s", names[i]));
        char *copy = arena_copy(arena, (const char *)map.data, map.size);
        for (size_t k = 0; k < 2 * map.size; k++) {
            bool cut = k < map.size;
            size_t size = cut ? k : map.size;
            if (!cut) {
                copy[k - map.size] ^= (char)(1 + k * 37 % 255);
            }
            Error error = attempt_decode(copy, size);
            cr_assert(error.status == STATUS_OK || strncmp(error.text, "file: ", 6) == 0,
                      "%s: %zu: '%s'", names[i], k, error.text);
            if (!cut) {
                copy[k - map.size] = (char)map.data[k - map.size];
            }
        }
        arena_free(arena);
    }
}

/* ---- settings ---- */

/* Why the settings were refused, if they were. */
static Error open_settings(const char *text, const char *file, Preprocess *preprocess) {
    Error error;
    char directory[] = "/tmp/refsae-image-XXXXXX", path[128];
    cr_assert_not_null(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/%s", directory, file);
    if (text != NULL) {
        FILE *stream = fopen(path, "w");
        fputs(text, stream);
        fclose(stream);
    }
    ATTEMPT(&error, *preprocess = preprocess_open(directory, 30));
    remove(path);
    rmdir(directory);
    return error;
}

Test(image, absent_settings_take_defaults) {
    Preprocess p;
    Error error = open_settings(NULL, "none", &p);
    cr_assert_eq(error.status, STATUS_OK, "%s", error.text);
    cr_expect(p.shortest_edge == 30 && p.crop_height == 30 && p.crop_width == 30);
    cr_assert_eq(open_settings("{}", "preprocessor_config.json", &p).status, STATUS_OK);
    cr_expect(p.shortest_edge == 224 && p.crop_height == 224 && p.do_normalize);
    cr_expect(p.mean[0] == 0.48145466 && p.std[2] == 0.27577711 && p.rescale_factor == 1.0 / 255);
    error =
        open_settings("{\"image_processor\": {\"size\": {\"shortest_edge\": 5}, \"do_pad\": null}}",
                      "processor_config.json", &p);
    cr_assert_eq(error.status, STATUS_OK, "%s", error.text);
    cr_expect(p.shortest_edge == 5 && p.crop_height == 224);
}

Test(image, unknown_settings_are_refused_by_name) {
    static const char *const cases[][2] = {
        {"{\"do_pad\": true}", "do_pad"},
        {"{\"resample\": 2}", "resample"},
        {"{\"resample\": \"bicubic\"}", "resample"},
        {"{\"size\": {\"shortest_edge\": 5, \"longest_edge\": 9}}", "size"},
        {"{\"size\": {\"height\": 5}}", "size"},
        {"{\"size\": 0}", "size"},
        {"{\"size\": 1e9}", "size"},
        {"{\"size\": \"big\"}", "size"},
        {"{\"crop_size\": {\"shortest_edge\": 5}}", "crop_size"},
        {"{\"crop_size\": [5, 6, 7]}", "crop_size"},
        {"{\"crop_size\": [5, null]}", "crop_size"},
        {"{\"image_mean\": [0.5, 0.5]}", "image_mean"},
        {"{\"image_mean\": [0.5, 0.5, \"x\"]}", "image_mean"},
        {"{\"image_std\": [0.5, 0.0, 0.5]}", "image_std"},
        {"{\"image_std\": NaN}", "image_std"},
        {"{\"do_resize\": 1}", "do_resize"},
        {"{\"do_thumbnail\": true}", "do_thumbnail"},
        {"{\"image_processor_type\": \"SiglipImageProcessor\"}", "SiglipImageProcessor"},
        {"{\"feature_extractor_type\": \"ViTFeatureExtractor\"}", "ViTFeatureExtractor"},
        {"[]", "object"},
        {"{", "preprocessor_config.json"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Preprocess p;
        Error error = open_settings(cases[i][0], "preprocessor_config.json", &p);
        cr_expect_eq(error.status, STATUS_INPUT, "%s", cases[i][0]);
        cr_expect(strstr(error.text, cases[i][1]) != NULL, "%s: '%s'", cases[i][0], error.text);
    }
}

/* The wide one is a hostile file's. */
Test(image, a_tall_picture_is_bounded_too) {
    Arena *arena = arena_new();
    Image tall = image_new(arena, 4, 5, "PPM", 0);
    Preprocess p = {.do_resize = true, .shortest_edge = 4096};
    size_t height, width;
    Error error;
    ATTEMPT(&error, (void)preprocess_apply(arena, &height, &width, &p, &tall));
    cr_assert_not_null(strstr(error.text, "makes 4096 x 5120 pixels of 4 x 5"), "%s", error.text);
    arena_free(arena);
}
