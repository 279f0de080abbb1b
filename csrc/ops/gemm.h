// The micro-kernel of the matrix products: a tile of rows times a panel of 48 columns, accumulated in
// registers in float32. An element of the product is summed over k in one order, whatever the number of rows:
// its bits do not depend on how the rows are blocked.
#pragma once

#include "gemm_amx.h"
#include "gemm_panel.h"

namespace sftrl::SFTRL_LEVEL {

// The widest vectors of the level and as many rows as leave room for a row of the panel: 8 x 3 registers of
// 32 at AVX-512, 2 x 6 of 16 at AVX2, 1 x 12 of 16 elsewhere.
#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64, kVectorRows = 8;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32, kVectorRows = 2;
#else
inline constexpr int kVectorBytes = 16, kVectorRows = 1;
#endif
inline constexpr int kWidth = kVectorBytes / 4, kVectors = kPanel / kWidth;
typedef float vec __attribute__((vector_size(kVectorBytes)));
typedef std::uint32_t uvec __attribute__((vector_size(kVectorBytes)));

// Rows that are worked on together, and what must live around `tiles`.
#if defined(__AMX_BF16__)
template <class T>
inline constexpr int kTileRows = sizeof(T) == 2 ? tmul::kRows : kVectorRows;
using TilesScope = tmul::Shaped;
#else
template <class T>
inline constexpr int kTileRows = kVectorRows;
using TilesScope = NoScope;
#endif

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

template <class T, int R = kVectorRows>
SFTRL_INLINE void tile_column(const T* a, std::int64_t lda, const T* panel, std::int64_t k, float* c,
                              std::int64_t ldc, bool add, std::int64_t rows, Ahead ahead) {
    for (; rows >= R; rows -= R, a += R * lda, c += R * ldc) tile<T, R>(a, lda, panel, k, c, ldc, add, ahead);
    if constexpr (R > 1) {
        if (rows > 0) tile_column<T, R - 1>(a, lda, panel, k, c, ldc, add, rows, ahead);
    }
}

// c[r][0..48) (+)= a[r][0..k) * panel for any number of rows. A TilesScope lives.
template <class T>
void tiles(const T* a, std::int64_t lda, const T* panel, std::int64_t k, float* c, std::int64_t ldc, bool add,
           std::int64_t rows, Ahead ahead) {
    constexpr std::int64_t depth = kDepth * kGroup<T>;
    for (std::int64_t i = 0; i < k || i == 0; i += depth, ahead.at += kDepth * ahead.stride) {
        const std::int64_t now = std::min(depth, k - i);
#if defined(__AMX_BF16__)
        if constexpr (sizeof(T) == 2) {
            tmul::tile_column(a + i, lda, panel + i * kPanel, now, c, ldc, add || i > 0, rows, ahead);
            continue;
        }
#endif
        tile_column(a + i, lda, panel + i * kPanel, now, c, ldc, add || i > 0, rows, ahead);
    }
}

}  // namespace sftrl::SFTRL_LEVEL
