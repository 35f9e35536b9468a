/* elementary.h: exp, log, tanh, erf, sin, cos rounded correctly to binary32, without a branch, so
 * that a loop over them vectorises with the same operations. Each is evaluated in binary64 with an
 * error near 2^-53 and rounded once; of all 2^32 inputs only those that lie that close to the
 * middle of two floats can go wrong, and `make prove` lists them: they are patched by name.
 * Coefficients are printed by tests/reference/make_elementary.py. Only + - * / fma and integer
 * operations are used. Floor 2. */
#ifndef REFSAE_ELEMENTARY_H
#define REFSAE_ELEMENTARY_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Unrolled by pragma: by hand the accumulators would spill, unrolled not at all they would live in
 * memory. */
#define UNROLL_TEXT(text) _Pragma(#text)
#if defined(__clang__)
#define UNROLL(n) UNROLL_TEXT(unroll n)
#pragma clang diagnostic ignored "-Wpass-failed" /* a request, not a need */
#elif defined(__GNUC__)
#define UNROLL(n) UNROLL_TEXT(GCC unroll n)
#else
#define UNROLL(n)
#endif

#define INLINE static inline __attribute__((always_inline, unused))

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE uint64_t bits_of_double(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE double double_of(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#if FLT_EVAL_METHOD != 0
#error "float is computed wider: i386 needs -msse2 -mfpmath=sse, s390x -fexcess-precision=fast"
#endif

/* Rounded once. In whole numbers and binary64, for machines whose libm has no right or no fast fma:
 * with REFSAE_OWN_FMA (make FMA=own) these are what is called. */
float fma_f32(float x, float y, float z);
double fma_f64(double x, double y, double z);
#ifdef REFSAE_OWN_FMA
#define fmaf(x, y, z) fma_f32(x, y, z)
#define fma(x, y, z) fma_f64(x, y, z)
#endif

/* ---- one value; the same results ---- */
float exp_f32(float x);
float log_f32(float x);
float tanh_f32(float x);
float erf_f32(float x);
float sin_f32(float x);          /* |x| <= 2^20, else NaN */
float cos_f32(float x);          /* |x| <= 2^20, else NaN */
double cos_pi_f64(double t);     /* cos(pi t), t in [0, 1]: not the libm of the machine */
float pow_f32(float x, float y); /* x > 0 finite, y finite */

#define LN2_HIGH 0x1.62e42fefa39efp-1
#define LN2_LOW 0x1.abc9e3b39803fp-56
#define ROUND_SHIFT                                                                                \
    0x1.8p52 /* x + ROUND_SHIFT - ROUND_SHIFT: x to the nearest integer, |x| < 2^51 */

#define HORNER(p, c, x)                                                                            \
    double p = c[sizeof c / sizeof *c - 1];                                                        \
    UNROLL(32) for (int i_ = (int)(sizeof c / sizeof *c) - 2; i_ >= 0; i_--) {                     \
        p = fma(p, x, c[i_]);                                                                      \
    }

/* exp(x) = 2^k (1 + q), q = expm1(x - k ln 2), |x - k ln 2| <= ln 2 / 2. The first step of the
 * reduction is exact: x and k LN2_HIGH are multiples of 2^-53 and close to each other. `scale` =
 * 2^k, |x| < 700. */
INLINE double expm1_reduced(double x, double *scale) {
    static const double c[] = {0x1.000000000000cp-1,  0x1.555555555555cp-3,  0x1.555555554fe23p-5,
                               0x1.111111110eabfp-7,  0x1.6c16c18601fbap-10, 0x1.a01a01b40924ap-13,
                               0x1.a01995c69b213p-16, 0x1.71ddeeed0ebb1p-19, 0x1.28b0ece3c8a52p-22,
                               0x1.af6dcb9301b44p-26};
    const double shifted = fma(x, 0x1.71547652b82fep+0, ROUND_SHIFT); /* log2 e */
    const double k = shifted - ROUND_SHIFT;
    const double r = fma(-k, LN2_LOW, fma(-k, LN2_HIGH, x));
    HORNER(p, c, r)
    *scale = double_of((bits_of_double(shifted) + 1023) << 52);
    return fma(r * r, p, r);
}

INLINE float exp_one(float x) {
    double wide = (double)x, scale;
    wide = wide > 89.0 ? 89.0 : wide; /* 89: overflows when rounded; NaN passes */
    wide = wide < -104.0 ? -104.0 : wide;
    const double q = expm1_reduced(wide, &scale);
    return (float)fma(scale, q, scale);
}

/* tanh |x| = u / (u + 2), u = expm1(2 |x|) = 2^k q + (2^k - 1); 1 from 10 on. */
INLINE float tanh_one(float x) {
    const float magnitude = float_of(bits_of(x) & 0x7fffffffu);
    double y = 2.0 * (double)magnitude, scale;
    y = y > 20.0 ? 20.0 : y;
    const double q = expm1_reduced(y, &scale);
    const double u = fma(scale, q, scale - 1.0);
    return float_of(bits_of((float)(u / (u + 2.0))) | (bits_of(x) & 0x80000000u));
}

/* erf |x| = -expm1(-x P(x)), x P(x) = -log(erfc(x)); 1 from 4 on. */
INLINE float erf_one(float x) {
    static const double c[] = {
        0x1.20dd750429b6dp+0,   0x1.45f306dc9c898p-1,   0x1.a4f4e2a1b1e26p-4,
        -0x1.39668593c193cp-6,  -0x1.b6b68cb86631fp-13, 0x1.bca67cd9af814p-10,
        -0x1.35655d84ecfe0p-11, 0x1.b233ceea23d5dp-16,  0x1.0e78e5edd6c52p-14,
        -0x1.f26d1a362f064p-16, 0x1.c55bdf94c5e01p-19,  0x1.825dbc15f57a7p-19,
        -0x1.e113ad8987c1bp-20, 0x1.9b6985b39982cp-22,  0x1.b8977ffacb7bfp-24,
        -0x1.0464e5fe9feadp-23, 0x1.e1069bb3636a3p-25,  -0x1.28d30edd4fb98p-26,
        0x1.0ba6301843d0bp-28,  -0x1.65e437a9a5303p-31, 0x1.5c0acd12a8036p-34,
        -0x1.d356a4f66670bp-38, 0x1.84364ed13bc5cp-42,  -0x1.2cf3c0f640ce2p-47};
    double y = (double)float_of(bits_of(x) & 0x7fffffffu), scale;
    y = y > 4.0 ? 4.0 : y;
    HORNER(p, c, y)
    const double q = expm1_reduced(-(y * p), &scale);
    const double minus = fma(scale, q, scale - 1.0);
    return float_of((bits_of((float)minus) & 0x7fffffffu) | (bits_of(x) & 0x80000000u));
}

/* x = 2^k m, sqrt(1/2) <= m < sqrt 2; f = m - 1, s = f / (2 + f): log m = 2 atanh(s) = f - f^2/2 +
 * s (f^2/2 + R(s^2)), which keeps f exact. k LN2's first 40 bits are exact too. x > 0, any binary64
 * >= 2^-1022. */
INLINE double log_binary64(double x) {
    static const double c[] = {0x1.5555555555555p-1, 0x1.9999999999e13p-2, 0x1.249249242a0bap-2,
                               0x1.c71c725a2293fp-3, 0x1.745cdde916da5p-3, 0x1.3b20b6cc8442dp-3,
                               0x1.0f5bea793bdd5p-3, 0x1.0f6a2106e2dc3p-3};
    const uint64_t bits = bits_of_double(x);
    const uint64_t biased = (bits + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu)) >> 52;
    const double k = double_of(biased | 0x4330000000000000u) - (0x1p52 + 1023.0);
    const double f = double_of(bits - (biased << 52) + 0x3ff0000000000000u) - 1.0;
    const double s = f / (2.0 + f), z = s * s, h = 0.5 * f * f;
    HORNER(p, c, z)
    const double tail = fma(s, fma(z, p, h), k * -0x1.8432a1b0e2634p-43);
    const double y = fma(k, 0x1.62e42fefa4000p-1, f - (h - tail));
    return x < INFINITY ? y : x; /* +inf, NaN */
}

INLINE float log_one(float x) {
    float y = (float)log_binary64((double)x);
    y = x == 0x1.827a74p-7f ? -0x1.1c2b1ep+2f : y; /* all that `make prove` found */
    y = x == 0x1.2f1fd6p+3f ? 0x1.1fcbcep+1f : y;
    y = x == 0x1.bacb4ap+25f ? 0x1.1e0696p+4f : y;
    y = x == 0x1.b121a6p+76f ? 0x1.a9a3f2p+5f : y;
    y = x == 0x1.6351d8p+95f ? 0x1.08b512p+6f : y;
    const float special = x == 0.0f ? -INFINITY : NAN;
    return x > 0.0f ? y : special;
}

/* r = x - n pi/2, |r| <= pi/4 (and a little). The first step is exact as in exp, the second leaves
 * a relative error of 2^-53: no float up to 2^20 comes closer to n pi/2 than 2^-30 or so. Quadrant
 * n + `shift`: 0 sin, 1 cos, 2 -sin, 3 -cos. */
INLINE double sine_shifted(double x, uint64_t shift) {
    static const double sine[] = {-0x1.5555555555555p-3,  0x1.111111111110bp-7,
                                  -0x1.a01a01a018a9bp-13, 0x1.71de3a53348d3p-19,
                                  -0x1.ae645292c311ep-26, 0x1.61208f9972bb4p-33,
                                  -0x1.aaa3e33ea34b5p-41};
    static const double cosine[] = {0x1.5555555555555p-5,  -0x1.6c16c16c16c10p-10,
                                    0x1.a01a01a018d6ap-16, -0x1.27e4fb75f5f75p-22,
                                    0x1.1eed8c9c27238p-29, -0x1.9393308fe2f3ep-37,
                                    0x1.aac281aa35fbcp-45};
    const double shifted = fma(x, 0x1.45f306dc9c883p-1, ROUND_SHIFT); /* 2 / pi */
    const double n = shifted - ROUND_SHIFT;
    const double r = fma(-n, 0x1.1a62633145c07p-54, fma(-n, 0x1.921fb54442d18p+0, x)), z = r * r;
    const uint64_t quadrant = bits_of_double(shifted) + shift;
    HORNER(p, sine, z)
    HORNER(q, cosine, z)
    const double s = fma(r * z, p, r), half = 0.5 * z, w = 1.0 - half;
    const double c = w + fma(z * z, q, (1.0 - w) - half);
    const double y = (quadrant & 1) != 0 ? c : s;
    return double_of(bits_of_double(y) ^ (quadrant & 2) << 62);
}

INLINE float sin_one(float x) {
    const float y = (float)sine_shifted((double)x, 0);
    float kept = x == 0.0f ? x : y;                      /* -0 */
    kept = x == 0x1.33333p+13f ? -0x1.63f4bap-2f : kept; /* all that `make prove` found */
    kept = x == -0x1.33333p+13f ? 0x1.63f4bap-2f : kept;
    return float_of(bits_of(x) & 0x7fffffffu) <= 0x1p20f ? kept : NAN;
}

INLINE float cos_one(float x) {
    const float y = (float)sine_shifted((double)x, 1);
    return float_of(bits_of(x) & 0x7fffffffu) <= 0x1p20f ? y : NAN;
}

#endif
