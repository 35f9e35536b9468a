/* png.c: PNG (W3C, third edition), PGM and PPM, to the pixels of Pillow's convert("RGB").
 *
 * PNG: chunks -> one zlib stream -> rows, each with its filter -> samples of 1 to 16 bits -> RGB.
 * What Pillow makes of them: alpha and tRNS are dropped, gray of 16 bits saturates at 255 (!),
 * colour and gray-with-alpha of 16 bits keep the high byte, palette entries that are not there are
 * black. Checksums count up to the first IDAT chunk, then zlib's own. The stream may end, or go on,
 * once all rows are out. An animation gives its default image.
 *
 * PGM (P5), PPM (P6): samples are scaled to 255 by the maximum in binary64, ties to even; gray with
 * a maximum above 255 is scaled to 65535 and saturates at 255. */
#include "png.h"

#include <math.h>
#include <string.h>

#include "zip.h"

/* ---- PNG ---- */

typedef struct Png {
    const char *name;
    size_t width, height;
    unsigned depth, colour, channels;
    bool interlaced;
    unsigned char palette[256][3];
} Png;

enum {
    PNG_GRAY = 0,
    PNG_RGB = 2,
    PNG_PALETTE = 3,
    PNG_RGB_ALPHA = 6
};

/* The pixels in columns x, x + dx ... of rows y, y + dy ..., stored as rows of their own. */
typedef struct PngPass {
    size_t x, y, dx, dy;
    size_t width, height, stride; /* stride: bytes of a row, that of its filter among them */
} PngPass;

REFSAE_NORETURN static void png_fail(const Png *png, const char *what) {
    fail(STATUS_INPUT, "%s: PNG: %s", png->name, what);
}

static void read_header(Png *png, const unsigned char *s, size_t n) {
    static const unsigned char channels[7] = {1, 0, 3, 1, 2, 0, 4};
    /* allowed depths of each colour type, as a set of bits */
    static const uint32_t depths[7] = {0x10116, 0, 0x10100, 0x116, 0x10100, 0, 0x10100};
    if (n < 13) {
        png_fail(png, "the header is too short");
    }
    png->width = big32(s);
    png->height = big32(s + 4);
    png->depth = s[8];
    png->colour = s[9];
    png->interlaced = s[12] != 0;
    if (png->colour > 6 || png->depth > 16 || (depths[png->colour] >> png->depth & 1) == 0) {
        fail(STATUS_INPUT, "%s: PNG: no colour type %u with %u bits exists", png->name, png->colour,
             png->depth);
    }
    if (s[10] != 0 || s[11] != 0) {
        png_fail(png, "unknown compression or filter method");
    }
    png->channels = channels[png->colour];
    image_check_size(png->width, png->height, png->name);
}

/* Pass 0 is the one of a picture that is not interlaced, 1 to 7 are Adam7's. */
static PngPass png_pass(const Png *png, size_t i) {
    static const unsigned char grid[8][4] = {{0, 0, 1, 1}, {0, 0, 8, 8}, {4, 0, 8, 8},
                                             {0, 4, 4, 8}, {2, 0, 4, 4}, {0, 2, 2, 4},
                                             {1, 0, 2, 2}, {0, 1, 1, 2}};
    PngPass p = {.x = grid[i][0], .y = grid[i][1], .dx = grid[i][2], .dy = grid[i][3]};
    p.width = (png->width + p.dx - 1 - p.x) / p.dx;
    p.height = p.width > 0 ? (png->height + p.dy - 1 - p.y) / p.dy : 0;
    size_t bits = png->channels * png->depth; /* times the width they may not fit into 32 bits */
    p.stride = 1 + (bits < 8 ? (p.width * bits + 7) / 8 : p.width * (bits / 8));
    return p;
}

/* row[n] was stored as the difference from a prediction by the bytes one pixel back, above, and
 * both; above: the row before, or zeros. */
static void unfilter(unsigned char *row, const unsigned char *above, size_t n, size_t pixel,
                     unsigned filter) {
    for (size_t i = 0; filter != 0 && i < n; i++) {
        int left = i >= pixel ? row[i - pixel] : 0, up = above[i];
        int corner = i >= pixel ? above[i - pixel] : 0, guess = 0;
        if (filter == 1) {
            guess = left;
        } else if (filter == 2) {
            guess = up;
        } else if (filter == 3) {
            guess = (left + up) / 2;
        } else { /* Paeth: the one nearest to left + up - corner */
            int a = up - corner, b = left - corner, c = a + b;
            a = a < 0 ? -a : a;
            b = b < 0 ? -b : b;
            c = c < 0 ? -c : c;
            guess = a <= b && a <= c ? left : b <= c ? up : corner;
        }
        row[i] = (unsigned char)(row[i] + guess);
    }
}

/* Pixel x of a row of samples. */
static void unpack_pixel(const Png *png, const unsigned char *row, size_t x, unsigned char rgb[3]) {
    size_t bytes = png->depth / 8; /* of a sample; 0: several in a byte, high bits first */
    const unsigned char *p = row + x * png->channels * bytes;
    if (png->colour == PNG_RGB || png->colour == PNG_RGB_ALPHA) {
        rgb[0] = p[0];
        rgb[1] = p[bytes];
        rgb[2] = p[2 * bytes];
        return;
    }
    unsigned value = p[0];
    if (bytes == 0) {
        size_t bit = x * png->depth;
        unsigned most = (1u << png->depth) - 1;
        value = ((unsigned)row[bit / 8] >> (8 - png->depth - bit % 8)) & most;
        value = png->colour == PNG_PALETTE ? value : value * (255 / most);
    } else if (png->colour == PNG_GRAY && bytes == 2) {
        value = p[0] == 0 ? p[1] : 255;
    }
    if (png->colour == PNG_PALETTE) {
        memcpy(rgb, png->palette[value], 3);
    } else {
        rgb[0] = rgb[1] = rgb[2] = (unsigned char)value;
    }
}

/* Undoes the filters of one pass in place and spreads its pixels. */
static void unpack_pass(const Png *png, PngPass pass, unsigned char *raw,
                        const unsigned char *zeros, unsigned char *rgb) {
    const unsigned char *above = zeros;
    for (size_t y = 0; y < pass.height; y++) {
        unsigned char *row = raw + y * pass.stride + 1;
        unsigned char *out = rgb + (pass.y + y * pass.dy) * png->width * 3;
        if (row[-1] > 4) {
            fail(STATUS_INPUT, "%s: PNG: unknown filter %u", png->name, row[-1]);
        }
        unfilter(row, above, pass.stride - 1, (png->channels * png->depth + 7) / 8, row[-1]);
        for (size_t x = 0; x < pass.width; x++) {
            unpack_pixel(png, row, x, out + (pass.x + x * pass.dx) * 3);
        }
        above = row;
    }
}

static Image unpack_image(const Png *png, const unsigned char *stream, size_t size, Arena *arena,
                          Arena *scratch) {
    size_t first = png->interlaced ? 1 : 0, last = png->interlaced ? 7 : 0, expected = 0;
    for (size_t i = first; i <= last; i++) {
        PngPass pass = png_pass(png, i);
        expected += pass.height * pass.stride;
    }
    image_check_memory(3 * png->width * png->height + expected, size, png->name);
    unsigned char *raw = arena_alloc(scratch, expected, 1);
    unsigned char *zeros = arena_alloc(scratch, png_pass(png, last).stride, 1); /* the longest */
    if (inflate_zlib(raw, expected, stream, size, png->name) < expected) {
        png_fail(png, "the file ends before the picture is complete");
    }
    Image image = image_new(arena, png->width, png->height, "PNG", expected);
    for (size_t i = first; i <= last; i++) {
        PngPass pass = png_pass(png, i);
        unpack_pass(png, pass, raw, zeros, image.rgb);
        raw += pass.height * pass.stride;
    }
    return image;
}

/* The data of the IDAT chunks that follow each other from `at` on, one after another. */
static unsigned char *join_stream(const unsigned char *data, size_t size, size_t at, size_t *total,
                                  Arena *scratch) {
    unsigned char *stream = arena_alloc(scratch, size - at, 1);
    *total = 0;
    while (size - at >= 8 && memcmp(data + at + 4, "IDAT", 4) == 0) {
        size_t n = big32(data + at), left = size - at - 8;
        n = n < left ? n : left;
        memcpy(stream + *total, data + at + 8, n);
        *total += n;
        at += 8 + n;
        at += size - at < 4 ? size - at : 4;
    }
    return stream;
}

static Image read_chunks(Png *png, const unsigned char *data, size_t size, Arena *arena,
                         Arena *scratch) {
    for (size_t at = 8;;) {
        if (size - at < 12) {
            png_fail(png, "the file ends before the picture begins");
        }
        const unsigned char *type = data + at + 4, *body = data + at + 8;
        size_t n = big32(data + at);
        if (png->width == 0 && memcmp(type, "IHDR", 4) != 0) {
            png_fail(png, "the file does not begin with its header");
        }
        if (memcmp(type, "IDAT", 4) == 0) {
            size_t total;
            unsigned char *stream = join_stream(data, size, at, &total, scratch);
            return unpack_image(png, stream, total, arena, scratch);
        }
        if (memcmp(type, "IEND", 4) == 0) {
            png_fail(png, "the file holds no picture");
        }
        if (n > size - at - 12) {
            png_fail(png, "a chunk is longer than the file");
        }
        if (crc32_of(0, type, n + 4) != big32(body + n)) {
            png_fail(png, "the checksum of a chunk differs");
        }
        if (memcmp(type, "IHDR", 4) == 0) {
            read_header(png, body, n);
        } else if (memcmp(type, "PLTE", 4) == 0 && png->colour == PNG_PALETTE) {
            if (n > sizeof png->palette) {
                png_fail(png, "the palette has more than 256 entries");
            }
            memset(png->palette, 0, sizeof png->palette);
            memcpy(png->palette, body, n - n % 3);
        }
        at += 12 + n;
    }
}

Image png_decode(Arena *arena, const unsigned char *data, size_t size, const char *name) {
    Png png = {.name = name};
    Arena *scratch = arena_new();
    Image image = read_chunks(&png, data, size, arena, scratch);
    arena_free(scratch);
    return image;
}

/* ---- PGM and PPM ---- */

typedef struct Pnm {
    const unsigned char *data;
    size_t size, at;
    const char *name;
} Pnm;

REFSAE_NORETURN static void pnm_fail(const Pnm *pnm, const char *what) {
    fail(STATUS_INPUT, "%s: PNM: %s", pnm->name, what);
}

static bool is_space(int c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Next byte, comments (from # to the end of the line, and that too) left out; -1: the end. */
static int next_char(Pnm *pnm) {
    while (pnm->at < pnm->size && pnm->data[pnm->at] == '#') {
        while (pnm->at < pnm->size && pnm->data[pnm->at] != '\n' && pnm->data[pnm->at] != '\r') {
            pnm->at++;
        }
        pnm->at += pnm->at < pnm->size;
    }
    return pnm->at < pnm->size ? pnm->data[pnm->at++] : -1;
}

/* A number of at most 10 digits and the one white space after it. */
static size_t next_number(Pnm *pnm) {
    int c = next_char(pnm), digits = 0;
    while (is_space(c)) {
        c = next_char(pnm);
    }
    if (c < 0) {
        pnm_fail(pnm, "the file ends before the picture is complete");
    }
    uint64_t value = 0;
    for (; c >= '0' && c <= '9' && digits < 11; c = next_char(pnm), digits++) {
        value = value * 10 + (uint64_t)(c - '0');
    }
    if (digits == 0 || digits > 10 || (c >= 0 && !is_space(c))) {
        pnm_fail(pnm, "a number was expected");
    }
    return value < SIZE_MAX ? (size_t)value : SIZE_MAX;
}

/* P5 or P6, width, height and maximum in decimal, one white space, the samples: of one byte, or
 * with a maximum above 255 of two, high byte first. */
Image pnm_decode(Arena *arena, const unsigned char *data, size_t size, const char *name) {
    Pnm pnm = {.data = data, .size = size, .at = 3, .name = name};
    bool gray = data[1] == '5';
    size_t width = next_number(&pnm), height = next_number(&pnm), most = next_number(&pnm);
    if (most < 1 || most > 65535) {
        pnm_fail(&pnm, "the maximum must be 1 to 65535");
    }
    image_check_size(width, height, name);
    size_t bytes = most > 255 ? 2 : 1, samples = width * height * (gray ? 1 : 3);
    if ((size - pnm.at) / bytes < samples) {
        pnm_fail(&pnm, "the file ends before the picture is complete");
    }
    Image image = image_new(arena, width, height, gray ? "PGM" : "PPM", 0);
    const unsigned char *p = data + pnm.at;
    double scale = gray && bytes == 2 ? 65535 : 255;
    for (size_t i = 0; i < samples; i++, p += bytes) {
        size_t value = bytes == 2 ? (size_t)p[0] << 8 | p[1] : p[0];
        if (most != 255) {
            double scaled = rint((double)value / (double)most * scale);
            value = scaled > 255 ? 255 : (size_t)scaled;
        }
        if (gray) {
            memset(image.rgb + 3 * i, (int)value, 3);
        } else {
            image.rgb[i] = (unsigned char)value;
        }
    }
    return image;
}
