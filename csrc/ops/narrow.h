// The smallest weight that a top-k or top-p filter keeps, found without sorting: the range of weights is cut
// in eight until one number is left, and the weights within the range are moved together on the way.
#pragma once

#include <bit>
#include <cstdint>

#include "simd.h"

namespace sftrl::SFTRL_LEVEL {

inline constexpr float kLeastWeight =
    1.17549435e-38f;  // smallest normal float; the largest weight of a row is 1

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

inline constexpr int kProbes = 7;
inline constexpr std::int64_t kVectorsPerSum = 64;  // a float adds up this many, a double the rest

// mass[j] += sum (or number, if kCount) of the weights that are at least probe[j].
template <bool kCount>
void add_masses(const float* weights, std::int64_t padded, const float* probe, double* mass) {
    for (std::int64_t begin = 0; begin < padded; begin += kVectorsPerSum * kLanes) {
        const std::int64_t end =
            begin + kVectorsPerSum * kLanes < padded ? begin + kVectorsPerSum * kLanes : padded;
        f32x16 sum[kProbes] = {};
        for (std::int64_t i = begin; i < end; i += kLanes) {
            const f32x16 weight = load(weights + i);
            const f32x16 part = kCount ? splat(1.0f) : weight;
            for (int j = 0; j < kProbes; ++j) sum[j] += weight >= probe[j] ? part : splat(0.0f);
        }
        for (int j = 0; j < kProbes; ++j) mass[j] += static_cast<double>(reduce_add(sum[j]));
    }
}

// The largest t whose weights >= t add up (or count up) to `need` or more, but `low` if none above it does.
// `weights` (in [0, 1], give or take a rounding) and `work` have room for 16 floats beyond `count`, and the
// weights are followed by 16 zeros. They may be the same array; `work` is overwritten.
template <bool kCount>
float narrow(const float* weights, float* work, std::int64_t count, float low, double need) {
    // For floats that are not negative, order of bits is order of values.
    std::uint32_t least = std::bit_cast<std::uint32_t>(low), beyond = std::bit_cast<std::uint32_t>(1.5f);
    double above = 0.0;  // of weights from `beyond` on
    while (beyond - least > 1 && count > 0) {
        const std::uint32_t step = (beyond - least + kProbes) / (kProbes + 1);
        std::uint32_t bits[kProbes + 2];
        float probe[kProbes];
        double mass[kProbes + 1];
        bits[0] = least;
        bits[kProbes + 1] = beyond;
        for (int j = 0; j < kProbes; ++j) {
            const std::uint32_t at = bits[j] + step;
            bits[j + 1] = at < beyond ? at : beyond;
            probe[j] = std::bit_cast<float>(bits[j + 1]);
            mass[j] = above;
        }
        mass[kProbes] = above;
        add_masses<kCount>(weights, (count + kLanes - 1) / kLanes * kLanes, probe, mass);
        int kept = 0;
        while (kept < kProbes && mass[kept] >= need) ++kept;
        least = bits[kept];
        beyond = bits[kept + 1];
        above = mass[kept];
        const float from = std::bit_cast<float>(least), to = std::bit_cast<float>(beyond);
        std::int64_t inside = 0;
        for (std::int64_t i = 0; i < count; i += kLanes) {
            inside += append_between(load(weights + i), from, to, work + inside);
        }
        store(splat(0.0f), work + inside);
        weights = work;
        count = inside;
    }
    return std::bit_cast<float>(least);
}

}  // namespace sftrl::SFTRL_LEVEL
