/* jpeg_parts.h: what jpeg.c and jpeg_arithmetic.c share. */
#ifndef REFSAE_JPEG_PARTS_H
#define REFSAE_JPEG_PARTS_H

#include "image_codecs.h"

enum {
    MAX_COMPONENTS = 4,
    MAX_MCU_BLOCKS = 10,  /* T.81 B.2.3 */
    MAX_SCANS = 500,      /* real files have about 10 */
    MAX_VISITS = 1 << 28, /* of blocks in all scans: some seconds, 8 times the largest picture */
    SMOOTHED = 10         /* DC and the AC coefficients that smoothing estimates */
};

typedef struct HuffmanTable {
    bool defined;
    unsigned char count[17]; /* codes of each length */
    unsigned char symbol[256];
    /* derived when a scan uses it */
    int32_t max_code[18]; /* of each length, -1: none; [17] ends every search */
    int32_t offset[18];   /* symbol index = code + offset[length] */
    uint16_t look[256];   /* next 8 bits -> length << 8 | symbol; 0: longer code */
} HuffmanTable;

typedef struct Component {
    unsigned char id, quant_index, dc_table, ac_table;
    size_t h, v;                     /* sampling factors */
    size_t blocks_wide, blocks_high; /* that hold samples of the picture */
    size_t stride, rows;  /* allocated blocks: whole MCUs; rows: one MCU row if single scan */
    size_t width, height; /* samples of the picture */
    int16_t *coef;        /* [rows][stride][64] row-major blocks, not dequantised */
    unsigned char *plane; /* [blocks_high * 8][blocks_wide * 8] */
    uint16_t quant[64];   /* latched at the component's first scan; 0 before */
    bool quant_latched;
    uint32_t dc;              /* prediction; wraps on hostile data */
    unsigned char dc_context; /* arithmetic: bin that the last difference leads to */
    /* progressive: bits still missing of coefficient k, -1: all; and the same one scan earlier */
    int missing[64], missing_before[SMOOTHED];
} Component;

/* T.81 annex D. A bin is the index of its state << 1 | its more probable symbol. */
typedef struct Arithmetic {
    uint32_t a,
        c;    /* size of the interval (0: not begun); code, 16 bits before the interval's point */
    int bits; /* of c that are still to come before another byte is needed */
    bool failed;        /* impossible data: nothing more until the next restart */
    unsigned char even; /* the bin of probability 1/2 */
    unsigned char dc[16][64], ac[16][256];       /* bins, 16 tables of each (F.1.4.4) */
    unsigned char lower[16], upper[16], low[16]; /* conditioning: L and U of DC, Kx of AC */
} Arithmetic;

typedef struct Jpeg {
    const unsigned char *data;
    size_t size, at;
    const char *name;
    Arena *scratch;
    int marker; /* read and not yet acted on; 0: none */

    bool saw_frame, progressive, arithmetic, saw_jfif, saw_adobe;
    unsigned char adobe_transform;
    size_t width, height, n_components, h_max, v_max, mcu_rows;
    Component component[MAX_COMPONENTS];
    uint16_t quant[4][64];
    bool quant_defined[4];
    HuffmanTable dc[4], ac[4];

    /* scan */
    size_t scans, visits, in_scan, restart_interval, restarts_left, next_restart;
    Component *scan[MAX_COMPONENTS];
    int first, last, high, low; /* Ss, Se, Ah, Al */
    bool single;                /* one scan holds everything: rows are transformed as they come */
    size_t last_good_row;       /* last MCU row of the last scan that had data */

    /* bits */
    uint64_t bits;
    int n_bits;
    bool starved;   /* a marker came too early: zeros until the next restart */
    bool truncated; /* the file ended */
    uint32_t end_of_band_run;
    Arithmetic coder;
} Jpeg;

/* jpeg_zigzag[k]: place of coefficient k in the 8x8 block, row-major. Damaged runs reach k = 79. */
extern const unsigned char jpeg_zigzag[80];

/* Decodes one block of a scan's kind into block[64]. */
typedef void BlockDecoder(Jpeg *j, Component *c, int16_t *block);

/* ---- jpeg_arithmetic.c ---- */

void arithmetic_defaults(Arithmetic *coder);
/* A DAC segment (B.2.4.3); false: it cannot be. */
bool arithmetic_conditioning(Arithmetic *coder, const unsigned char *s, size_t n);
void arithmetic_reset(Jpeg *j); /* at the beginning of a scan and after each restart */
BlockDecoder arithmetic_sequential, arithmetic_dc_first, arithmetic_dc_refine, arithmetic_ac_first,
    arithmetic_ac_refine;

#endif
