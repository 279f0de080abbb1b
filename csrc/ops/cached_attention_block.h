// The arithmetic of cached_attention: query rows against a block of keys and values.
//
// Two ways of multiplying, one interface: `Wide` works on floats, `Pairs` on two neighbouring bfloat16 at
// once. And two places where sums are kept, one interface: `VectorTiles` here, `MatrixTiles` for pairs in
// cached_attention_amx.h. What is done for a row, and in which order, depends neither on the row's place in
// its tile nor on the other rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd.h"

namespace sftrl::SFTRL_LEVEL::cached {

inline constexpr int kBlockTokens = 256;  // at most of a span: of which a row's scores are kept
inline constexpr int kChunkTokens = 64;   // whose keys are turned at once: they stay in the first cache

inline constexpr int kUnitsAtOnce = 64;  // added in one go: the error of a sum grows with its length

// Sums that fit the level's registers: rows by vectors.
#if defined(__AVX512F__)
inline constexpr int kTileRows = 6, kTileVectors = 4;
#elif defined(__AVX2__)
inline constexpr int kTileRows = 3, kTileVectors = 2;
#else
inline constexpr int kTileRows = 2, kTileVectors = 1;
#endif

// Over the sums of a tile: only when written out do they stay in registers.
#define SFTRL_UNROLL _Pragma("GCC unroll 8")

constexpr int round_up(int value, int step) { return (value + step - 1) / step * step; }

// 2^x for x <= 0, to about one unit in the last place; 0 for -infinity.
SFTRL_INLINE f32x16 exp2(f32x16 x) {
#if defined(__AVX512F__)
    const __m512 value = reinterpret_cast<__m512>(x);
    const __m512 whole = _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // A difference of infinities is no number: the polynomial takes 0 there, and scalef makes 0 of it.
    const __mmask16 finite = _mm512_cmp_ps_mask(value, _mm512_set1_ps(-__builtin_inff()), _CMP_NEQ_UQ);
    const f32x16 r = reinterpret_cast<f32x16>(_mm512_maskz_sub_ps(finite, value, whole));
    // Chebyshev interpolation of degree 6 on [-1/2, 1/2]: relative error 2.5e-9.
    f32x16 p = r * 1.54614447e-4f + 1.34004282e-3f;
    p = p * r + 9.61805668e-3f;
    p = p * r + 5.55032723e-2f;
    p = p * r + 0.240226509f;
    p = p * r + 0.693147207f;
    p = p * r + 1.0f;
    return reinterpret_cast<f32x16>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), whole));
#else
    return exp(x * 0.693147181f);
#endif
}
SFTRL_INLINE float exp2(float x) { return exp2(splat(x))[0]; }

// The first `count` (1 to 16) elements; other lanes are 0 and what stands there is not read.
template <class T>
SFTRL_INLINE f32x16 load_part(const T* from, int count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const auto kept = static_cast<__mmask16>((1u << count) - 1u);
    if constexpr (std::is_same_v<T, float>) {
        return reinterpret_cast<f32x16>(_mm512_maskz_loadu_ps(kept, from));
    } else {
        const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(kept, from));
        return reinterpret_cast<f32x16>(_mm512_slli_epi32(bits, 16));
    }
#else
    return count == kLanes ? load(from) : load_first(from, count);
#endif
}

// Floats: a unit is one element, and values lie in their natural order.
template <class T>
struct Wide {
    using Element = T;
    using Unit = float;
    static constexpr int kElements = 1;  // in a unit
    static constexpr int kTokens = 1;    // whose values are multiplied at once

    static SFTRL_INLINE f32x16 units(const T* from) { return load(from); }
    // `count` units (1 to 16) of a row of which `left` elements remain.
    static SFTRL_INLINE f32x16 units(const T* from, int count, int) { return load_part(from, count); }
    static SFTRL_INLINE f32x16 multiply(f32x16 sum, f32x16 vector, float factor) {
        return sum + vector * factor;
    }

    // Weights 2^(score - base) over the scores, `count` of them; returns their sum.
    static SFTRL_INLINE float weigh(float* scores, int count, float base) {
        f32x16 sum = splat(0.0f);
        for (int i = 0; i < count; i += kLanes) {
            const f32x16 weight = exp2(load(scores + i) - base);
            store(weight, scores + i);
            sum += weight;
        }
        return reduce_add(sum);
    }

    template <int V>
    static SFTRL_INLINE void values(const T* const* from, int at, int width, f32x16 (&out)[V]) {
        for (int v = 0; v < V; ++v) {
            const int left = width - at - v * kLanes;
            out[v] = left >= kLanes ? load(from[0] + at + v * kLanes)
                     : left > 0     ? load_part(from[0] + at + v * kLanes, left)
                                    : splat(0.0f);
        }
    }
    static SFTRL_INLINE void in_order(f32x16&, f32x16&) {}
};

#if defined(__AVX512BF16__)
// Two bfloat16 at once, neighbours of a row for the scores, one element of two neighbouring tokens for the
// values. The instruction takes subnormal numbers for 0. Weights are rounded to bfloat16, and the sum is of
// the rounded.
struct Pairs {
    using Element = bf16;
    using Unit = std::uint32_t;
    static constexpr int kElements = 2;
    static constexpr int kTokens = 2;

    static SFTRL_INLINE __m512i bits(const bf16* from, int elements) {
        const __mmask32 kept = elements >= 32 ? 0xFFFFFFFFu : elements > 0 ? (1u << elements) - 1u : 0u;
        return _mm512_maskz_loadu_epi16(kept, from);
    }
    static SFTRL_INLINE f32x16 units(const bf16* from) {
        f32x16 pairs;
        std::memcpy(&pairs, from, sizeof pairs);
        return pairs;
    }
    static SFTRL_INLINE f32x16 units(const bf16* from, int, int left) {
        return reinterpret_cast<f32x16>(bits(from, left));
    }
    static SFTRL_INLINE f32x16 multiply(f32x16 sum, f32x16 vector, std::uint32_t pair) {
        const __m512i factor = _mm512_set1_epi32(static_cast<int>(pair));
        return reinterpret_cast<f32x16>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                         reinterpret_cast<__m512bh>(vector),
                                                         reinterpret_cast<__m512bh>(factor)));
    }

    static SFTRL_INLINE float weigh(float* scores, int count, float base) {
        f32x16 sum = splat(0.0f);
        for (int i = 0; i < count; i += 2 * kLanes) {
            const f32x16 low = exp2(load(scores + i) - base);
            const f32x16 high = i + kLanes < count ? exp2(load(scores + i + kLanes) - base) : splat(0.0f);
            const __m512bh weights =
                _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low));
            std::memcpy(scores + i / 2, &weights, sizeof weights);
            sum = multiply(sum, reinterpret_cast<f32x16>(weights), 0x3F803F80u);  // two ones
        }
        return reduce_add(sum);
    }

    template <int V>
    static SFTRL_INLINE void values(const bf16* const* from, int at, int width, f32x16 (&out)[V]) {
        static_assert(V % 2 == 0);
        for (int v = 0; v < V; v += 2) {
            const int begin = at + v * kLanes;
            const __m512i even = bits(from[0] + begin, width - begin);
            const __m512i odd = bits(from[1] + begin, width - begin);
            out[v] = reinterpret_cast<f32x16>(_mm512_unpacklo_epi16(even, odd));
            out[v + 1] = reinterpret_cast<f32x16>(_mm512_unpackhi_epi16(even, odd));
        }
    }
    // Interleaving leaves elements 0 to 3 of each eight in `low` and 4 to 7 in `high`.
    static SFTRL_INLINE void in_order(f32x16& low, f32x16& high) {
        const f32x16 a = low, b = high;
        low = __builtin_shuffle(a, b, i32x16{0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23});
        high = __builtin_shuffle(a, b, i32x16{8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31});
    }
};
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, bf16>, Pairs, Wide<T>>;
#else
template <class T>
using Arithmetic = Wide<T>;
#endif

// What a set of rows knows of the tokens it has seen so far: softmax in the logarithm to base 2.
struct Rows {
    float* highest;  // [rows] highest score
    float* sum;      // [rows] of 2^(score - highest)
    float* values;   // [rows, stride] of 2^(score - highest) times values, in the arithmetic's order
    int stride;
    Rows from(int row) const {
        return {highest + row, sum + row, values + static_cast<std::ptrdiff_t>(row) * stride, stride};
    }
    static std::size_t floats(int rows, int stride) {
        return static_cast<std::size_t>(rows) * (static_cast<std::size_t>(stride) + 2);
    }
    static Rows at(float* memory, int rows, int stride) {  // values first: they stay aligned
        float* const after = memory + static_cast<std::ptrdiff_t>(rows) * stride;
        return {after, after + rows, memory, stride};
    }
};

// Rows of queries times the keys in `packed` [units, kChunkTokens], times factor.
template <class P>
struct ScoreTile {
    const typename P::Unit* queries;  // [rows, units]
    const float* packed;
    int units;
    float factor;
    float* scores;  // [rows, kBlockTokens]
};

// Weights times the values of `tokens` tokens, elements `at` to the tile's end.
template <class P>
struct ValueTile {
    const typename P::Element* const* from;  // [tokens]
    const float* turned;                     // the same values as MatrixTiles wants them
    const float* weights;                    // [rows, kBlockTokens floats' room]
    int tokens, at, width;
    float* to;  // [rows, stride], from element `at` on
    int stride;
};

// Sums in vector registers.
template <class P>
struct VectorTiles {
    static constexpr int kRows = kTileRows, kVectors = kTileVectors;
    static constexpr bool kTurned = false;  // whether ValueTile::turned is read
    using Scope = NoScope;

    static void scores(const ScoreTile<P>& tile, int rows, int vectors) {
        with_constant<kRows>(
            rows, [&](auto R) { with_constant<kVectors>(vectors, [&](auto V) { scores_of<R, V>(tile); }); });
    }
    static void values(const ValueTile<P>& tile, int rows, int vectors) {
        with_constant<kRows>(rows, [&](auto R) {
            with_constant<kVectors>(vectors, [&](auto V) {
                if constexpr (V % P::kTokens == 0) values_of<R, V>(tile);  // a row has a multiple of both
            });
        });
    }

  private:
    template <int R, int V>
    static void scores_of(const ScoreTile<P>& tile) {
        for (int begin = 0; begin < tile.units; begin += kUnitsAtOnce) {
            f32x16 sum[R][V];
            for (auto& row : sum) std::fill(row, row + V, splat(0.0f));
            for (int u = begin; u < std::min(tile.units, begin + kUnitsAtOnce); ++u) {
                f32x16 keys[V];
                SFTRL_UNROLL
                for (int v = 0; v < V; ++v) keys[v] = load(tile.packed + u * kChunkTokens + v * kLanes);
                SFTRL_UNROLL
                for (int r = 0; r < R; ++r) {
                    const typename P::Unit query = tile.queries[r * tile.units + u];
                    SFTRL_UNROLL
                    for (int v = 0; v < V; ++v) sum[r][v] = P::multiply(sum[r][v], keys[v], query);
                }
            }
            SFTRL_UNROLL
            for (int r = 0; r < R; ++r) {
                SFTRL_UNROLL
                for (int v = 0; v < V; ++v) {
                    float* const to = tile.scores + r * kBlockTokens + v * kLanes;
                    const f32x16 score = sum[r][v] * tile.factor;
                    store(begin == 0 ? score : load(to) + score, to);
                }
            }
        }
    }

    template <int R, int V>
    static void values_of(const ValueTile<P>& tile) {
        f32x16 sum[R][V];
        for (auto& row : sum) std::fill(row, row + V, splat(0.0f));
        for (int t = 0; t < tile.tokens; t += P::kTokens) {
            f32x16 values[V];
            P::template values<V>(tile.from + t, tile.at, tile.width, values);
            SFTRL_UNROLL
            for (int r = 0; r < R; ++r) {
                typename P::Unit weight;
                std::memcpy(&weight, tile.weights + r * kBlockTokens + t / P::kTokens, sizeof weight);
                SFTRL_UNROLL
                for (int v = 0; v < V; ++v) sum[r][v] = P::multiply(sum[r][v], values[v], weight);
            }
        }
        SFTRL_UNROLL
        for (int r = 0; r < R; ++r) {
            SFTRL_UNROLL
            for (int v = 0; v < V; ++v) store(sum[r][v], tile.to + r * tile.stride + v * kLanes);
        }
    }
};

// The first `seen` scores become weights, the rest up to `end` 0; their highest and the weights' sum.
template <class P>
void softmax_row(float* scores, int seen, int end, float& highest, float& sum) {
    const int whole = seen / kLanes * kLanes, vectors = round_up(seen, kLanes);
    f32x16 most = splat(-__builtin_inff());
    for (int i = 0; i < whole; i += kLanes) most = max(load(scores + i), most);
    if (whole < vectors) {
        for (int i = seen; i < vectors; ++i) scores[i] = -__builtin_inff();
        most = max(load(scores + whole), most);
    }
    highest = reduce_max(most);
    // Nothing seen: weights 2^-inf = 0.
    sum = P::weigh(scores, vectors, highest == -__builtin_inff() ? 0.0f : highest);
    const int written = round_up(vectors, P::kTokens * kLanes) / P::kTokens;
    std::fill(scores + written, scores + std::max(written, round_up(end, P::kTokens * kLanes) / P::kTokens),
              0.0f);
}

// Adds to `rows` what `part` has seen of other tokens.
inline void merge(const Rows& rows, const Rows& part, int count) {
    for (int r = 0; r < count; ++r) {
        const float a = rows.highest[r], b = part.highest[r], highest = a > b ? a : b;
        const float base = highest == -__builtin_inff() ? 0.0f : highest;
        const f32x16 keep = exp2(splat(a - base)), add = exp2(splat(b - base));
        rows.highest[r] = highest;
        rows.sum[r] = rows.sum[r] * keep[0] + part.sum[r] * add[0];
        float* const to = rows.values + r * rows.stride;
        const float* const from = part.values + r * part.stride;
        for (int i = 0; i < rows.stride; i += kLanes) {
            store(load(to + i) * keep + load(from + i) * add, to + i);
        }
    }
}

}  // namespace sftrl::SFTRL_LEVEL::cached
