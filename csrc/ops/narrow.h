// The smallest weight that a top-k or top-p filter keeps, found without sorting: the range of weights is cut
// in eight until one number is left, and the weights within the range are moved together on the way.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "simd.h"

namespace sftrl::SFTRL_LEVEL {

inline constexpr float kLeastWeight = 1.17549435e-38f;  // smallest normal float
inline constexpr float kBeyondWeights = 1.5f;  // the largest weight of a row is 1, give or take a rounding

SFTRL_INLINE bool any_at_least(f32x16 value, float low) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(value), _mm512_set1_ps(low), _CMP_GE_OQ) != 0;
#else
    return reduce_max(value) >= low;
#endif
}

// Appends the lanes of `value` that lie in [low, high) at `to` and returns how many; writes up to 16 floats.
SFTRL_INLINE int append_between(f32x16 value, float low, float high, float* to) {
#if defined(__AVX512F__)
    const __m512 lanes = reinterpret_cast<__m512>(value);
    const __mmask16 inside = _mm512_cmp_ps_mask(lanes, _mm512_set1_ps(low), _CMP_GE_OQ) &
                             _mm512_cmp_ps_mask(lanes, _mm512_set1_ps(high), _CMP_LT_OQ);
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(inside, lanes));
    return std::popcount(static_cast<unsigned>(inside));
#else
    alignas(64) float lanes[kLanes];
    store(value, lanes);
    int count = 0;
    for (int i = 0; i < kLanes; ++i) {
        to[count] = lanes[i];
        count += lanes[i] >= low && lanes[i] < high;
    }
    return count;
#endif
}

// sum + value in the lanes whose weight is at least `low`.
SFTRL_INLINE f32x16 add_from(float low, f32x16 weight, f32x16 sum, f32x16 value) {
#if defined(__AVX512F__)
    const __mmask16 from =
        _mm512_cmp_ps_mask(reinterpret_cast<__m512>(weight), _mm512_set1_ps(low), _CMP_GE_OQ);
    return reinterpret_cast<f32x16>(_mm512_mask_add_ps(
        reinterpret_cast<__m512>(sum), from, reinterpret_cast<__m512>(sum), reinterpret_cast<__m512>(value)));
#else
    return sum + select(weight >= low, value, splat(0.0f));
#endif
}

// `fill` from `count` on up to a whole vector; returns its end. Writes up to 16 floats.
SFTRL_INLINE std::int64_t fill_up(float* values, std::int64_t count, float fill) {
    store(splat(fill), values + count);
    return (count + kLanes - 1) / kLanes * kLanes;
}

inline constexpr int kProbes = 7;
inline constexpr std::int64_t kVectorsPerSum = 64;  // a float adds up this many, a double the rest

// mass[j] += sum (or number, if kCount) of the weights that are at least probe[j].
template <bool kCount>
void add_masses(const float* weights, std::int64_t count, const float* probe, double* mass) {
    for (std::int64_t begin = 0; begin < count; begin += kVectorsPerSum * kLanes) {
        const std::int64_t end = std::min(begin + kVectorsPerSum * kLanes, count);
        f32x16 sum[kProbes] = {};
        for (std::int64_t i = begin; i < end; i += kLanes) {
            const f32x16 weight = load(weights + i);
            const f32x16 part = kCount ? splat(1.0f) : weight;
            for (int j = 0; j < kProbes; ++j) sum[j] = add_from(probe[j], weight, sum[j], part);
        }
        for (int j = 0; j < kProbes; ++j) mass[j] += static_cast<double>(reduce_add(sum[j]));
    }
}

// For floats that are not negative, order of bits is order of values. Fills kProbes numbers that cut [low,
// high) in even steps of the bits, which are about even steps of the logarithm.
SFTRL_INLINE void place_probes(float low, float high, float* probe) {
    const std::uint32_t first = std::bit_cast<std::uint32_t>(low), last = std::bit_cast<std::uint32_t>(high);
    const std::uint32_t step = (last - first + kProbes) / (kProbes + 1);
    for (std::uint32_t j = 0; j < kProbes; ++j) {
        const std::uint32_t bits = first + step * (j + 1);
        probe[j] = std::bit_cast<float>(bits < last ? bits : last);
    }
}

// What is known of the threshold: it is at least `low` and below `high`, and the weights from `high` on add
// up (or count up) to `above`.
struct Range {
    float low, high;
    double above;
};

// The largest t in the range whose weights >= t add up (or count up) to `need` or more; `low` if none above
// it does. `weights` has whole vectors: fill up with zeros. It may be `work`, which is overwritten and as
// long.
template <bool kCount>
float narrow(const float* weights, float* work, std::int64_t count, Range range, double need) {
    while (std::bit_cast<std::uint32_t>(range.high) - std::bit_cast<std::uint32_t>(range.low) > 1 &&
           count > 0) {
        float probe[kProbes];
        double mass[kProbes];
        place_probes(range.low, range.high, probe);
        for (double& m : mass) m = range.above;
        add_masses<kCount>(weights, count, probe, mass);
        int kept = 0;
        while (kept < kProbes && mass[kept] >= need) ++kept;
        if (kept > 0) range.low = probe[kept - 1];
        if (kept < kProbes) {
            range.high = probe[kept];
            range.above = mass[kept];
        }
        std::int64_t inside = 0;
        for (std::int64_t i = 0; i < count; i += kLanes) {
            inside += append_between(load(weights + i), range.low, range.high, work + inside);
        }
        weights = work;
        count = fill_up(work, inside, 0.0f);
    }
    return range.low;
}

}  // namespace sftrl::SFTRL_LEVEL
