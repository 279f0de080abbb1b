// Arithmetic on sixteen lanes, written once and compiled at every level. Everything is inlined into the
// namespace of the level, so that no two levels share a symbol.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "lanes.h"
#include "sftrl/dtype.h"

namespace sftrl::SFTRL_LEVEL {

using bf16 = std::uint16_t;  // the upper half of a float's bits

inline constexpr int kLine = 64;  // bytes of a cache line

// Where registers need no care. Not trivial, so that one without a use is no warning.
struct NoScope {
    NoScope() {}
};

// f(integral_constant n) for 1 <= n <= Most.
template <int Most, class F>
SFTRL_INLINE void with_constant(int n, const F& f) {
    if constexpr (Most > 1) {
        if (n < Most) return with_constant<Most - 1>(n, f);
    }
    f(std::integral_constant<int, Most>{});
}

SFTRL_INLINE float to_float(float value) { return value; }
SFTRL_INLINE float to_float(bf16 value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

// Round to nearest, ties to even; a NaN stays one.
SFTRL_INLINE void from_float(float value, float* out) { *out = value; }
SFTRL_INLINE void from_float(float value, bf16* out) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const bool nan = value != value;
    *out = static_cast<bf16>(nan ? (bits >> 16) | 0x40u : (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

SFTRL_INLINE f32x16 splat(float value) { return value - f32x16{}; }

SFTRL_INLINE f32x16 load(const float* from) { return load_lanes<f32x16>(from); }
SFTRL_INLINE f32x16 load(const bf16* from) { return as<f32x16>(load_halves(from) << 16); }

SFTRL_INLINE void store(f32x16 value, float* to) { store_lanes(value, to); }
SFTRL_INLINE void store(f32x16 value, bf16* to) {
#if defined(__AVX512BF16__)
    store_lanes(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(value)), to);
#else
    const u32x16 bits = as<u32x16>(value);
    const u32x16 rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const u32x16 kept = (bits >> 16) | 0x40u;
    store_halves(select(value != value, kept, rounded), to);
#endif
}

// What is left of a value after it was stored as a T.
template <class T>
SFTRL_INLINE f32x16 rounded(f32x16 value) {
    if constexpr (sizeof(T) == sizeof(float)) return value;
    T stored[kLanes];
    store(value, stored);
    return load(stored);
}

// The first `count` (1 to 15) elements; other lanes are `fill`.
template <class T>
SFTRL_INLINE f32x16 load_first(const T* from, int count, float fill = 0.0f) {
    alignas(64) float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = i < count ? to_float(from[i]) : fill;
    return load(lanes);
}
template <class T>
SFTRL_INLINE void store_first(f32x16 value, T* to, int count) {
    alignas(64) float lanes[kLanes];
    store(value, lanes);
    for (int i = 0; i < count; ++i) from_float(lanes[i], to + i);
}

// b where either is NaN.
SFTRL_INLINE f32x16 max(f32x16 a, f32x16 b) {
#if defined(__AVX512F__)
    return reinterpret_cast<f32x16>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
    return select(a > b, a, b);
#endif
}

SFTRL_INLINE float reduce_add(f32x16 value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(reinterpret_cast<__m512>(value));
#else
    alignas(64) float lanes[kLanes];
    store(value, lanes);
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    return lanes[0];
#endif
}
SFTRL_INLINE float reduce_max(f32x16 value) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(reinterpret_cast<__m512>(value));
#else
    alignas(64) float lanes[kLanes];
    store(value, lanes);
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    }
    return lanes[0];
#endif
}

// e^r on [-ln 2 / 2, ln 2 / 2]: the Taylor polynomial of degree 7.
SFTRL_INLINE f32x16 exp_series(f32x16 r) {
    f32x16 p = splat(1.0f / 5040.0f);
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    return p * r + 1.0f;
}

// e^x to about one unit in the last place on [-87.3, 88.7]; 0 below, +inf above, NaN for NaN.
// Cody-Waite reduction by ln 2, then the polynomial.
SFTRL_INLINE f32x16 exp(f32x16 x) {
    const f32x16 low = splat(-87.33654f);
#if defined(__AVX512F__)
    // The second operand of min and max is what a NaN leaves; scaling by 2^n overflows to infinity by itself.
    const __m512 raw = reinterpret_cast<__m512>(x);
    const __m512 bound =
        _mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(reinterpret_cast<__m512>(low), raw));
    const __m512 power = _mm512_roundscale_ps(_mm512_mul_ps(bound, _mm512_set1_ps(1.44269504f)), 0);
    const f32x16 whole = reinterpret_cast<f32x16>(power);
    const f32x16 rest = (reinterpret_cast<f32x16>(bound) - whole * 0.693359375f) - whole * -2.12194440e-4f;
    const f32x16 series = exp_series(rest);
    const __m512 scaled = _mm512_scalef_ps(reinterpret_cast<__m512>(series), power);
    const __mmask16 tiny = _mm512_cmp_ps_mask(raw, reinterpret_cast<__m512>(low), _CMP_LT_OQ);
    return reinterpret_cast<f32x16>(_mm512_mask_mov_ps(scaled, tiny, _mm512_setzero_ps()));
#else
    const f32x16 high = splat(88.72283f);
    const f32x16 clamped = select(x < low, low, select(x > high, high, x));
    const f32x16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const f32x16 n = (clamped * 1.44269504f + magic) - magic;
    const f32x16 r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
    const f32x16 p = exp_series(r);
    // 2^n in two factors: n reaches 128, whose power of two is no finite float.
    const i32x16 whole = convert<i32x16>(n), half = whole >> 1;
    const f32x16 scale0 = as<f32x16>((half + 127) << 23), scale1 = as<f32x16>((whole - half + 127) << 23);
    const f32x16 value = p * scale0 * scale1;
    const f32x16 bounded = select(x < low, splat(0.0f), select(x > high, splat(__builtin_inff()), value));
    return select(x != x, x, bounded);
#endif
}

}  // namespace sftrl::SFTRL_LEVEL
