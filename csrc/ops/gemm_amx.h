// The micro-kernel of the matrix products in the matrix registers of AMX.
#pragma once

#if defined(__AMX_BF16__)

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "amx.h"
#include "gemm_panel.h"

namespace sftrl::SFTRL_LEVEL::tmul {

inline constexpr int kRows = 2 * kBlock;  // rows times 48 columns of the product: six tiles

// Tile 7 is whole, the others have `rows` rows.
constexpr Shapes shapes_of(int rows) {
    Shapes shapes = whole_tiles();
    std::fill_n(shapes.rows, 7, static_cast<std::uint8_t>(rows));
    return shapes;
}
struct AllShapes {
    Shapes of[kBlock];
    constexpr AllShapes() : of{} {
        for (int rows = 1; rows < kBlock; ++rows) of[rows] = shapes_of(rows);
    }
};
inline constexpr AllShapes kShapes;

// Adds 32 elements along k of both blocks of rows, the second at `below`; pitches are in bytes. Tiles 0 to 2
// and 3 to 5: the sums of the blocks. 6: rows of a. 7: of the panel.
template <int Blocks>
SFTRL_INLINE void add_step(const bf16* a, const bf16* below, std::int64_t a_pitch, const bf16* panel) {
    constexpr std::int64_t pitch = kPanel * 2 * sizeof(bf16);  // of two elements along k
    load_tile<7>(panel, pitch);
    load_tile<6>(a, a_pitch);
    add_product<0, 6, 7>();
    if constexpr (Blocks == 2) {
        load_tile<6>(below, a_pitch);
        add_product<3, 6, 7>();
    }
    load_tile<7>(panel + 2 * kColumns, pitch);
    if constexpr (Blocks == 2) {
        add_product<4, 6, 7>();
        load_tile<6>(a, a_pitch);
    }
    add_product<1, 6, 7>();
    load_tile<7>(panel + 4 * kColumns, pitch);
    add_product<2, 6, 7>();
    if constexpr (Blocks == 2) {
        load_tile<6>(below, a_pitch);
        add_product<5, 6, 7>();
    }
}

// The last `left` (1 to 31) elements along k, with zeros after them.
template <int Blocks>
SFTRL_INLINE void add_last(const bf16* a, const bf16* below, std::int64_t lda, std::int64_t rows,
                           const bf16* panel, std::int64_t left) {
    alignas(64) bf16 rest[2][kBlock * kStep] = {}, columns[kStep * kPanel] = {};
    for (std::int64_t r = 0; r < rows; ++r) {
        std::copy_n(a + r * lda, left, rest[0] + r * kStep);
        if (Blocks == 2) std::copy_n(below + r * lda, left, rest[1] + r * kStep);
    }
    std::copy_n(panel, panel_size<bf16>(left), columns);
    add_step<Blocks>(rest[0], rest[1], kStep * sizeof(bf16), columns);
}

// c[r][0..48) = a[r][0..k) * panel for `rows` (at most 16) rows or, with two blocks, for 16 and the 16 that
// end with row number `rows` - 1. A Shaped lives.
template <int Blocks>
void tile(const bf16* a, std::int64_t lda, const bf16* panel, std::int64_t k, float* c, std::int64_t ldc,
          std::int64_t rows, Ahead ahead) {
    const std::int64_t second = Blocks == 2 ? rows - kBlock : 0;
    const bf16* below = a + second * lda;
    if (rows < kBlock) configure(kShapes.of[rows]);
    zero_sums<3 * Blocks>();
    for (; k >= kStep; k -= kStep, a += kStep, below += kStep, panel += kStep * kPanel) {
        const char* const asked = ahead.at + kStep / 2 * ahead.stride;
        for (; ahead.at < asked; ahead.at += kLine) __builtin_prefetch(ahead.at, 0, 2);
        add_step<Blocks>(a, below, lda * static_cast<std::int64_t>(sizeof(bf16)), panel);
    }
    if (k > 0) add_last<Blocks>(a, below, lda, std::min<std::int64_t>(rows, kBlock), panel, k);
    const std::int64_t pitch = ldc * static_cast<std::int64_t>(sizeof(float));
    store_sums<3>(c, pitch);
    if constexpr (Blocks == 2) store_sums<3, 3>(c + second * ldc, pitch);
    if (rows < kBlock) configure(kWhole);
}

// c[r][0..48) (+)= a[r][0..k) * panel for any number of rows.
inline void tile_column(const bf16* a, std::int64_t lda, const bf16* panel, std::int64_t k, float* c,
                        std::int64_t ldc, bool add, std::int64_t rows, Ahead ahead) {
    alignas(64) float sums[kRows * kPanel];
    for (; rows > 0; rows -= kRows, a += kRows * lda, c += kRows * ldc) {
        const std::int64_t now = std::min<std::int64_t>(rows, kRows);
        float* const to = add ? sums : c;
        const std::int64_t pitch = add ? kPanel : ldc;
        now > kBlock ? tile<2>(a, lda, panel, k, to, pitch, now, ahead)
                     : tile<1>(a, lda, panel, k, to, pitch, now, ahead);
        if (!add) continue;
        for (std::int64_t r = 0; r < now; ++r) {
            for (int j = 0; j < kPanel; j += kLanes) {
                float* const sum = c + r * ldc + j;
                store(load(sum) + load(sums + r * kPanel + j), sum);
            }
        }
    }
}

}  // namespace sftrl::SFTRL_LEVEL::tmul

#endif
