/* elementary.c: the elementary functions for one value, and pow. Floor 2. */
#include "elementary.h"

#include <stdbool.h>

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

/* By its series around the nearest of 0, 1/2 and 1:
 *   cos(pi t) = -cos(pi (1 - t)),   and for u > 1/4 cos(pi u) = sin(pi (1/2 - u)) */
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
