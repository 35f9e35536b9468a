/* elementary.c: the elementary functions for one value, and pow. Floor 2. */
#include "elementary.h"

#include <stdbool.h>

/* ---- fma ---- */

/* The product is exact in binary64, and rounding the sum there first does no harm unless that lands
 * on the middle of two floats (whose last place is 2^29 of binary64's, or more below 2^-126). There
 * the sum is rounded to odd (Boldo and Melquiond 2008): no odd number is such a middle. */
float fma_f32(float x, float y, float z) {
    const double product = (double)x * (double)y, c = (double)z, sum = product + c;
    uint64_t bits = bits_of_double(sum);
    if ((bits & 0x1fffffff) != 0x10000000 && fabs(sum) >= 0x1p-126) {
        return (float)sum;
    }
    const double t = sum - product, rest = (product - (sum - t)) + (c - t);
    if (rest != 0.0 && (bits & 1) == 0) {
        bits = (rest > 0.0) == (sum > 0.0) ? bits + 1 : bits - 1;
    }
    return (float)double_of(bits);
}

/* high 2^64 + low */
typedef struct Wide {
    uint64_t high, low;
} Wide;

/* By n bits to the right; the last bit stands for all that were lost. */
static Wide wide_shift(Wide w, int n) {
    uint64_t lost = 0;
    for (n = n < 128 ? n : 128; n > 0; n -= 32) {
        const int step = n < 32 ? n : 32;
        lost |= w.low << (64 - step);
        w.low = w.high << (64 - step) | w.low >> step;
        w.high >>= step;
    }
    w.low |= lost != 0;
    return w;
}

static Wide wide_multiply(uint64_t a, uint64_t b) { /* both below 2^63 */
    const uint64_t a0 = a & UINT32_MAX, b0 = b & UINT32_MAX,
                   middle = a0 * (b >> 32) + (a >> 32) * b0;
    const uint64_t low = a0 * b0 + (middle << 32);
    return (Wide){(a >> 32) * (b >> 32) + (middle >> 32) + (low < a0 * b0), low};
}

/* a + b, or a - b, modulo 2^128 */
static Wide wide_sum(Wide a, Wide b, bool minus) {
    const uint64_t low = minus ? a.low - b.low : a.low + b.low;
    const uint64_t carry = minus ? a.low < b.low : low < a.low;
    return (Wide){minus ? a.high - b.high - carry : a.high + b.high + carry, low};
}

/* x, not 0, is m 2^(e - 1075) with 2^52 <= m < 2^53. */
static uint64_t mantissa(double x, int *e) {
    const bool small = fabs(x) < 0x1p-1022;
    const uint64_t bits = bits_of_double(small ? x * 0x1p54 : x);
    *e = (int)(bits >> 52 & 0x7ff) - (small ? 54 : 0);
    return (bits & 0xfffffffffffff) | 0x10000000000000;
}

/* Product and z as 125 or 126 bits of a common exponent, added exactly but for a last bit that
 * stands for all below, then rounded. */
double fma_f64(double x, double y, double z) {
    if (x == 0.0 || y == 0.0 || !(fabs(x) <= DBL_MAX && fabs(y) <= DBL_MAX)) {
        return x * y + z;
    }
    if (z == 0.0 || !(fabs(z) <= DBL_MAX)) {
        return z == 0.0 ? x * y : z;
    }
    int ex, ey, ez;
    const uint64_t mx = mantissa(x, &ex), my = mantissa(y, &ey), mz = mantissa(z, &ez);
    const int ep = ex + ey - 1023; /* both are now of 2^(e - 1075 - 72) */
    Wide product = wide_multiply(mx << 10, my << 10), term = {mz << 8, 0};
    product = wide_shift(product, ez - ep);
    term = wide_shift(term, ep - ez);
    bool minus = (x < 0.0) != (y < 0.0), differ = minus != (z < 0.0);
    Wide sum = wide_sum(product, term, differ);
    if (sum.high >> 63 != 0) { /* the difference is negative */
        sum = wide_sum((Wide){0, 0}, sum, true);
        minus = !minus;
    }
    if (sum.high == 0 && sum.low == 0) {
        return 0.0;
    }
    int e = ep > ez ? ep : ez;
    for (int n = 128; n > 0; n /= 2) { /* until 2^62 <= high < 2^63 */
        const int step = n < 32 ? n : 32;
        if (sum.high >> (63 - step) == 0) {
            sum.high = sum.high << step | sum.low >> (64 - step);
            sum.low <<= step;
            e -= step;
        }
    }
    e += 2; /* of the result, biased; below 1 it is subnormal */
    sum = wide_shift(sum, 1 - e);
    const uint64_t kept = sum.high >> 10, rest = (sum.high & 1023) << 1 | (sum.low != 0);
    const uint64_t up = rest > 1024 || (rest == 1024 && kept % 2 == 1);
    const uint64_t bits = ((uint64_t)(e > 1 ? e - 1 : 0) << 52) + kept + up;
    const double magnitude = e > 2046 ? HUGE_VAL : double_of(bits);
    return minus ? -magnitude : magnitude;
}

/* ---- the functions ---- */

float exp_f32(float x) {
    return exp_one(x);
}

float log_f32(float x) {
    return log_one(x);
}

float tanh_f32(float x) {
    return tanh_one(x);
}

float erf_f32(float x) {
    return erf_one(x);
}

/* By its series around the nearest of 0, 1/2 and 1: the cosine of pi t is minus that of pi (1 - t)
 * and, from t = 1/4, the sine of pi (1/2 - t). */
double cos_pi_f64(double t) {
    bool flip = t > 0.5;
    double u = flip ? 1.0 - t : t;
    bool sine = u > 0.25;
    double x = 3.14159265358979323846 * (sine ? 0.5 - u : u), sum = 0.0;
    for (int k = sine ? 19 : 18; k >= 2; k -= 2) {
        sum = (1.0 + sum) * (-x * x) / (double)(k * (k - 1));
    }
    sum = sine ? x * (1.0 + sum) : 1.0 + sum;
    return flip ? -sum : sum;
}

float sin_f32(float x) {
    return sin_one(x);
}

float cos_f32(float x) {
    return cos_one(x);
}

/* ---- pow: exp(y log x) in pairs of binary64 (Dekker 1971), error below 2^-90 or so. RoPE asks for
 * a few hundred values, so series are summed plainly. Not proved like the others: the chance that
 * one value rounds wrongly is about 2^-60. ---- */

typedef struct Pair {
    double high, low;
} Pair;

static Pair pair_sum(double a, double b) { /* exact */
    const double s = a + b, t = s - a;
    return (Pair){s, (a - (s - t)) + (b - t)};
}

static Pair pair_add(Pair a, Pair b) {
    const Pair s = pair_sum(a.high, b.high), t = pair_sum(a.low, b.low);
    const Pair u = pair_sum(s.high, s.low + t.high);
    return pair_sum(u.high, u.low + t.low);
}

static Pair pair_multiply(Pair a, Pair b) {
    const double p = a.high * b.high;
    const double e = fma(a.high, b.high, -p) + (a.high * b.low + a.low * b.high);
    return pair_sum(p, e);
}

static Pair pair_divide(Pair a, Pair b) {
    Pair q = {a.high / b.high, 0.0};
    for (int i = 0; i < 2; i++) { /* each round adds 53 bits */
        const Pair product = pair_multiply(q, b);
        const Pair rest = pair_add(a, (Pair){-product.high, -product.low});
        q = pair_add(q, (Pair){rest.high / b.high, 0.0});
    }
    return q;
}

static const Pair LN2_PAIR = {LN2_HIGH, LN2_LOW};

static Pair pair_log(double x) { /* k ln 2 + 2 atanh((m - 1) / (m + 1)) */
    int k;
    double m = frexp(x, &k);
    if (m < 0x1.6a09e667f3bcdp-1) {
        m *= 2.0;
        k--;
    }
    const Pair s = pair_divide((Pair){m - 1.0, 0.0}, pair_sum(m, 1.0)), z = pair_multiply(s, s);
    Pair sum = {0.0, 0.0};
    for (int i = 22; i >= 0; i--) {
        sum = pair_add(pair_multiply(sum, z),
                       pair_divide((Pair){1.0, 0.0}, (Pair){2.0 * i + 1.0, 0.0}));
    }
    sum = pair_multiply(pair_multiply(sum, s), (Pair){2.0, 0.0});
    return pair_add(sum, pair_multiply((Pair){(double)k, 0.0}, LN2_PAIR));
}

float pow_f32(float x, float y) {
    const Pair t = pair_multiply(pair_log((double)x), (Pair){(double)y, 0.0});
    if (t.high > 89.0) {
        return INFINITY;
    }
    if (t.high < -104.0) {
        return 0.0f;
    }
    const double k = rint(t.high / LN2_HIGH);
    const Pair r = pair_add(t, pair_multiply((Pair){-k, 0.0}, LN2_PAIR));
    Pair e = {1.0, 0.0};
    for (int i = 28; i >= 1; i--) {
        e = pair_multiply(e, pair_divide(r, (Pair){(double)i, 0.0}));
        e = pair_add((Pair){1.0, 0.0}, e);
    }
    /* Rounded once: an odd last bit tells the conversion on which side of a middle the value lies.
     * An exact middle (3^2.5's like) shows as a low part that is all error. */
    const double scale = ldexp(1.0, (int)k);
    double high = e.high * scale;
    if (fabs(e.low) > fabs(e.high) * 0x1p-85) {
        uint64_t bits = bits_of_double(high);
        if ((bits & 1) == 0) {
            bits = e.low > 0.0 ? bits + 1 : bits - 1;
        }
        high = double_of(bits);
    }
    return (float)high;
}
