/* simd.h: the few vector operations that products need, for one instruction set a compilation:
 * AVX-512, AVX2 or NEON. Everything else in kernels_simd.c is loops that a compiler vectorises
 * across outputs (LANES). Floor 6. */
#ifndef REFSAE_SIMD_H
#define REFSAE_SIMD_H

#include "elementary.h"

#if defined(SIMD_AVX512) || defined(SIMD_AVX2)
#include <immintrin.h>
#elif defined(SIMD_NEON)
#include <arm_neon.h>
#endif

/* The iterations of this loop are independent: they may run side by side, in place too. */
#define LANES _Pragma("omp simd")

/* vf: VW floats; vu: VW words of 32 bits. `low` and `high` widen one half of every word.
 * vu_transpose: VW vectors of VW words. TILE_M x (TILE_N * VW): the register tile of a product;
 * STREAM_MAX rows at most are streamed, STREAM_GROUPS * VW outputs at a time (2 read more streams
 * than Zen 4's AVX-512 gains from). */
#if defined(SIMD_AVX512)

enum {
    VW = 16,
    TILE_M = 14,
    TILE_N = 2,
    STREAM_MAX = 4,
    STREAM_GROUPS = 1
};
typedef __m512 vf;
typedef __m512i vu;

INLINE vf vf_load(const float *p) {
    return _mm512_loadu_ps(p);
}
INLINE void vf_store(float *p, vf x) {
    _mm512_storeu_ps(p, x);
}
INLINE vf vf_set(float x) {
    return _mm512_set1_ps(x);
}
INLINE vf vf_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}
INLINE vf vf_load_bf16(const void *p) {
    const __m256i x = _mm256_loadu_si256((const __m256i *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
INLINE vf vf_load_f16(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
INLINE vu vu_load(const void *p) {
    return _mm512_loadu_si512(p);
}
INLINE vf vu_float(vu x) {
    return _mm512_castsi512_ps(x);
}
INLINE vf vu_bf16_low(vu x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
INLINE vf vu_bf16_high(vu x) {
    return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000u)));
}
INLINE vf vu_f16_low(vu x) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x));
}
INLINE vf vu_f16_high(vu x) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)));
}
INLINE void vu_transpose(vu r[VW]) {
    vu t[VW];
    UNROLL(8) for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    UNROLL(4) for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    /* r[4 i + j], 128-bit part q: column 4 q + j of rows 4 i .. 4 i + 3 */
    UNROLL(4) for (int j = 0; j < 4; j++) {
        const vu a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
        const vu b = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
        const vu c = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        const vu d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    UNROLL(16) for (int i = 0; i < VW; i++) {
        r[i] = t[i];
    }
}

#elif defined(SIMD_AVX2)

enum {
    VW = 8,
    TILE_M = 4,
    TILE_N = 3,
    STREAM_MAX = 4,
    STREAM_GROUPS = 2
};
typedef __m256 vf;
typedef __m256i vu;

INLINE vf vf_load(const float *p) {
    return _mm256_loadu_ps(p);
}
INLINE void vf_store(float *p, vf x) {
    _mm256_storeu_ps(p, x);
}
INLINE vf vf_set(float x) {
    return _mm256_set1_ps(x);
}
INLINE vf vf_fma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}
INLINE vf vf_load_bf16(const void *p) {
    const __m128i x = _mm_loadu_si128((const __m128i *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
INLINE vf vf_load_f16(const void *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
INLINE vu vu_load(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}
INLINE vf vu_float(vu x) {
    return _mm256_castsi256_ps(x);
}
INLINE vf vu_bf16_low(vu x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
INLINE vf vu_bf16_high(vu x) {
    return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000u)));
}
INLINE vf vu_f16(vu x) { /* words below 2^16 */
    const __m256i pairs = _mm256_packus_epi32(x, x);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08)));
}
INLINE vf vu_f16_low(vu x) {
    return vu_f16(_mm256_and_si256(x, _mm256_set1_epi32(0xffff)));
}
INLINE vf vu_f16_high(vu x) {
    return vu_f16(_mm256_srli_epi32(x, 16));
}
INLINE void vu_transpose(vu r[VW]) {
    vu t[VW];
    UNROLL(4) for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    UNROLL(2) for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    UNROLL(4) for (int j = 0; j < 4; j++) {
        t[j] = _mm256_permute2x128_si256(r[j], r[4 + j], 0x20);
        t[4 + j] = _mm256_permute2x128_si256(r[j], r[4 + j], 0x31);
    }
    UNROLL(8) for (int i = 0; i < VW; i++) {
        r[i] = t[i];
    }
}

#elif defined(SIMD_NEON)

enum {
    VW = 4,
    TILE_M = 8,
    TILE_N = 3,
    STREAM_MAX = 4,
    STREAM_GROUPS = 2
};
typedef float32x4_t vf;
typedef uint32x4_t vu;

INLINE vf vf_load(const float *p) {
    return vreinterpretq_f32_u8(vld1q_u8((const uint8_t *)p));
}
INLINE void vf_store(float *p, vf x) {
    vst1q_u8((uint8_t *)p, vreinterpretq_u8_f32(x));
}
INLINE vf vf_set(float x) {
    return vdupq_n_f32(x);
}
INLINE vf vf_fma(vf a, vf b, vf c) {
    return vfmaq_f32(c, a, b);
}
INLINE vf vf_load_bf16(const void *p) {
    const uint16x4_t x = vreinterpret_u16_u8(vld1_u8((const uint8_t *)p));
    return vreinterpretq_f32_u32(vshll_n_u16(x, 16));
}
INLINE vf vf_load_f16(const void *p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8((const uint8_t *)p)));
}
INLINE vu vu_load(const void *p) {
    return vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)p));
}
INLINE vf vu_float(vu x) {
    return vreinterpretq_f32_u32(x);
}
INLINE vf vu_bf16_low(vu x) {
    return vreinterpretq_f32_u32(vshlq_n_u32(x, 16));
}
INLINE vf vu_bf16_high(vu x) {
    return vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(0xffff0000u)));
}
INLINE vf vu_f16_low(vu x) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(x)));
}
INLINE vf vu_f16_high(vu x) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vshrn_n_u32(x, 16)));
}
INLINE void vu_transpose(vu r[VW]) {
    const uint32x4x2_t a = vtrnq_u32(r[0], r[1]), b = vtrnq_u32(r[2], r[3]);
    r[0] = vcombine_u32(vget_low_u32(a.val[0]), vget_low_u32(b.val[0]));
    r[1] = vcombine_u32(vget_low_u32(a.val[1]), vget_low_u32(b.val[1]));
    r[2] = vcombine_u32(vget_high_u32(a.val[0]), vget_high_u32(b.val[0]));
    r[3] = vcombine_u32(vget_high_u32(a.val[1]), vget_high_u32(b.val[1]));
}

#endif
#endif
