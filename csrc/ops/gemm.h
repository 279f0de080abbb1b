// The micro-kernel of the matrix products: a tile of rows times a panel of 48 columns, accumulated in
// registers in float32. An element of the product is summed over k in one order, whatever the number of rows:
// its bits do not depend on how the rows are blocked.
#pragma once

#include <algorithm>
#include <cstddef>

#include "simd.h"

namespace sftrl::SFTRL_LEVEL {

// Columns of a panel: three 512-bit vectors. A panel of float32 is [k][48]; one of bfloat16 is
// [k / 2][48][2], pairs along k, as the dot-product instructions want them. Columns past the matrix and an
// odd k are padded with zeros. The layout is that of every level, so a packed weight outlives set_level.
inline constexpr int kPanel = 48;

// The widest vectors of the level and as many rows as leave room for a row of the panel: 8 x 3 registers of
// 32 at AVX-512, 2 x 6 of 16 at AVX2, 1 x 12 of 16 elsewhere.
#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64, kTileRows = 8;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32, kTileRows = 2;
#else
inline constexpr int kVectorBytes = 16, kTileRows = 1;
#endif
inline constexpr int kWidth = kVectorBytes / 4, kVectors = kPanel / kWidth;
typedef float vec __attribute__((vector_size(kVectorBytes)));
typedef std::uint32_t uvec __attribute__((vector_size(kVectorBytes)));

template <class T>
inline constexpr int kGroup = sizeof(T) == 2 ? 2 : 1;  // elements along k that lie together

// Elements of a panel over k.
template <class T>
SFTRL_INLINE std::int64_t panel_size(std::int64_t k) {
    return (k + kGroup<T> - 1) / kGroup<T> * kGroup<T> * kPanel;
}

// A step over k reads three cache lines of the panel and asks for the one at `at`, which moves on by
// `stride`.
struct Ahead {
    const char* at;
    std::int64_t stride;
};
inline constexpr int kLine = 64;
inline constexpr std::int64_t kMostParts = 64;  // of a panel: a step then moves on by three bytes

// What follows `panel`, in even parts while `tiles` tiles of rows read `panel`, of which this is number
// `tile`. With fewer than three not all of it.
template <class T>
SFTRL_INLINE Ahead next_panel(const T* panel, std::int64_t k, std::int64_t tile = 0, std::int64_t tiles = 3) {
    const std::int64_t bytes = panel_size<T>(k) * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t parts = std::clamp<std::int64_t>(tiles, 3, kMostParts);
    return {reinterpret_cast<const char*>(panel) + bytes + std::min(tile, parts) * bytes / parts,
            3 * kLine / parts};
}
// Nothing: where one tile reads a panel, processors see the stream by themselves and asking only slowed them.
template <class T>
SFTRL_INLINE Ahead nothing_ahead(const T* panel) {
    return {reinterpret_cast<const char*>(panel), 0};
}

// Steps over k that a register sums before it is added to the sum in memory: the error of a long sum then
// grows with the length of its parts. 128 steps cost 2 % more time, and no limit ten times the error at k =
// 50,000.
inline constexpr std::int64_t kDepth = 256;

template <int R>
SFTRL_INLINE void add_products(const float* a, std::int64_t lda, const float* b, std::int64_t k, Ahead ahead,
                               vec (&acc)[R][kVectors]) {
    for (std::int64_t i = 0; i < k; ++i, b += kPanel, ahead.at += ahead.stride) {
        __builtin_prefetch(ahead.at);
        vec column[kVectors];
#pragma GCC unroll 12
        for (int v = 0; v < kVectors; ++v) column[v] = load_as<vec>(b + v * kWidth);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const vec value = vec{} + a[r * lda + i];
#pragma GCC unroll 12
            for (int v = 0; v < kVectors; ++v) acc[r][v] += value * column[v];
        }
    }
}

// One pair along k: `pair[r]` holds two elements of row r, the first in the low half.
template <int R>
SFTRL_INLINE void add_pair(const std::uint32_t (&pair)[R], const bf16* b, vec (&acc)[R][kVectors]) {
#if defined(__AVX512BF16__)
    __m512bh column[kVectors];
#pragma GCC unroll 12
    for (int v = 0; v < kVectors; ++v) column[v] = load_as<__m512bh>(b + 2 * v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const __m512bh value = (__m512bh)_mm512_set1_epi32(static_cast<int>(pair[r]));
#pragma GCC unroll 12
        for (int v = 0; v < kVectors; ++v) {
            acc[r][v] = (vec)_mm512_dpbf16_ps((__m512)acc[r][v], value, column[v]);
        }
    }
#else
    for (int half = 0; half < 2; ++half) {
        vec column[kVectors];
#pragma GCC unroll 12
        for (int v = 0; v < kVectors; ++v) {
            const uvec both = load_as<uvec>(b + 2 * v * kWidth);
            column[v] = (vec)(half ? both & 0xFFFF0000u : both << 16);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const uvec both = uvec{} + pair[r];
            const vec value = (vec)(half ? both & 0xFFFF0000u : both << 16);
#pragma GCC unroll 12
            for (int v = 0; v < kVectors; ++v) acc[r][v] += value * column[v];
        }
    }
#endif
}

template <int R>
SFTRL_INLINE void add_products(const bf16* a, std::int64_t lda, const bf16* b, std::int64_t k, Ahead ahead,
                               vec (&acc)[R][kVectors]) {
    std::uint32_t pair[R];
    std::int64_t i = 0;
    for (; i + 1 < k; i += 2, b += 2 * kPanel, ahead.at += ahead.stride) {
        __builtin_prefetch(ahead.at);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) pair[r] = load_as<std::uint32_t>(a + r * lda + i);
        add_pair<R>(pair, b, acc);
    }
    if (i < k) {
        for (int r = 0; r < R; ++r) pair[r] = a[r * lda + i];
        add_pair<R>(pair, b, acc);
    }
}

// c[r][0..48) (+)= a[r][0..k) * panel for R rows of strides lda and ldc.
template <class T, int R>
__attribute__((noinline)) void tile(const T* a, std::int64_t lda, const T* panel, std::int64_t k, float* c,
                                    std::int64_t ldc, bool add, Ahead ahead) {
    vec acc[R][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
        for (int v = 0; v < kVectors; ++v) acc[r][v] = vec{};
    }
    add_products<R>(a, lda, panel, k, ahead, acc);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
        for (int v = 0; v < kVectors; ++v) {
            float* const to = c + r * ldc + v * kWidth;
            const vec sum = add ? load_as<vec>(to) + acc[r][v] : acc[r][v];
            std::memcpy(to, &sum, sizeof sum);
        }
    }
}

template <class T, int R = kTileRows>
SFTRL_INLINE void tile_column(const T* a, std::int64_t lda, const T* panel, std::int64_t k, float* c,
                              std::int64_t ldc, bool add, std::int64_t rows, Ahead ahead) {
    for (; rows >= R; rows -= R, a += R * lda, c += R * ldc) tile<T, R>(a, lda, panel, k, c, ldc, add, ahead);
    if constexpr (R > 1) {
        if (rows > 0) tile_column<T, R - 1>(a, lda, panel, k, c, ldc, add, rows, ahead);
    }
}

// c[r][0..48) (+)= a[r][0..k) * panel for any number of rows.
template <class T>
void tiles(const T* a, std::int64_t lda, const T* panel, std::int64_t k, float* c, std::int64_t ldc, bool add,
           std::int64_t rows, Ahead ahead) {
    constexpr std::int64_t depth = kDepth * kGroup<T>;
    for (std::int64_t i = 0; i < k || i == 0; i += depth, ahead.at += kDepth * ahead.stride) {
        tile_column(a + i, lda, panel + i * kPanel, std::min(depth, k - i), c, ldc, add || i > 0, rows,
                    ahead);
    }
}

// Panel of columns that lie as rows of `from`, k apart from each other by one: column j is from[j * ld + i].
// `columns` of the 48 exist.
template <class T>
void pack_rows(const T* from, std::int64_t ld, std::int64_t columns, std::int64_t k, T* panel) {
    constexpr int group = kGroup<T>, block = 16;  // 16 groups are a cache line of the source
    const std::int64_t groups = k / group;
    for (std::int64_t i0 = 0; i0 < groups; i0 += block) {
        const std::int64_t i1 = std::min<std::int64_t>(groups, i0 + block);
        for (std::int64_t j = 0; j < kPanel; ++j) {
            for (std::int64_t i = i0; i < i1; ++i) {
                const std::uint32_t value =
                    j < columns ? load_as<std::uint32_t>(from + j * ld + i * group) : 0u;
                std::memcpy(panel + (i * kPanel + j) * group, &value, sizeof value);
            }
        }
    }
    if (groups * group < k) {
        for (std::int64_t j = 0; j < kPanel; ++j) {
            panel[(groups * kPanel + j) * group] = j < columns ? from[j * ld + k - 1] : T{};
            panel[(groups * kPanel + j) * group + 1] = T{};
        }
    }
}

// Panel of columns that lie side by side: column j is from[i * ld + j]. `columns` of the 48 exist.
SFTRL_INLINE void pack_columns(const float* from, std::int64_t ld, std::int64_t columns, std::int64_t k,
                               float* panel) {
    for (std::int64_t i = 0; i < k; ++i, from += ld, panel += kPanel) {
        for (std::int64_t j = 0; j < kPanel; ++j) panel[j] = j < columns ? from[j] : 0.0f;
    }
}
SFTRL_INLINE void pack_columns(const bf16* from, std::int64_t ld, std::int64_t columns, std::int64_t k,
                               bf16* panel) {
    for (std::int64_t i = 0; i < k; i += 2, from += 2 * ld, panel += 2 * kPanel) {
        const bool paired = i + 1 < k;
        for (std::int64_t j = 0; j < kPanel; ++j) {
            const std::uint32_t low = j < columns ? from[j] : 0u;
            const std::uint32_t high = j < columns && paired ? from[ld + j] : 0u;
            const std::uint32_t both = low | high << 16;
            std::memcpy(panel + 2 * j, &both, sizeof both);
        }
    }
}

}  // namespace sftrl::SFTRL_LEVEL
