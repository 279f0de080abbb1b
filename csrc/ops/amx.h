// The matrix registers of AMX: eight tiles, each of up to 16 rows of 64 bytes.
#pragma once

#if defined(__AMX_BF16__)

#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace sftrl::SFTRL_LEVEL::tmul {

inline constexpr int kBlock = 16;    // rows of a tile
inline constexpr int kStep = 32;     // elements of bfloat16 in a tile's row
inline constexpr int kColumns = 16;  // sums in a tile's row
inline constexpr std::int64_t kTileBytes = 64;

// Operand of LDTILECFG (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, 18.2).
struct alignas(64) Shapes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
};

constexpr Shapes whole_tiles() {
    Shapes shapes;
    std::fill_n(shapes.row_bytes, 8, kTileBytes);
    std::fill_n(shapes.rows, 8, kBlock);
    return shapes;
}
inline constexpr Shapes kWhole = whole_tiles();

SFTRL_INLINE void configure(const Shapes& shapes) { asm volatile("ldtilecfg\t%0" ::"m"(shapes)); }
SFTRL_INLINE void release() { asm volatile("tilerelease"); }

// For as long as it lives this thread's tiles are whole; not nested. Both instructions wait for all before
// them: a pair of them for every 32 rows of a product cost 5 % of its time.
struct Shaped {
    Shaped() { configure(kWhole); }
    ~Shaped() { release(); }
    Shaped(const Shaped&) = delete;
    Shaped& operator=(const Shaped&) = delete;
};

// The instructions on a tile, whose number is part of them. Pitches are in bytes.
template <int Tile>
SFTRL_INLINE void zero_tile() {
    asm volatile("tilezero\t%%tmm%c0" ::"i"(Tile));
}
template <int Tile>
SFTRL_INLINE void load_tile(const void* from, std::int64_t pitch) {
    asm volatile("tileloadd\t(%0,%1,1), %%tmm%c2" ::"r"(from), "r"(pitch), "i"(Tile) : "memory");
}
template <int Tile>
SFTRL_INLINE void store_tile(void* to, std::int64_t pitch) {
    asm volatile("tilestored\t%%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(pitch), "i"(Tile) : "memory");
}
// Sum += A B, over pairs of bfloat16.
template <int Sum, int A, int B>
SFTRL_INLINE void add_product() {
    asm volatile("tdpbf16ps\t%%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}

// V tiles of sums side by side, from number First on.
template <int V, int First = 0>
SFTRL_INLINE void zero_sums() {
    if constexpr (V > 0) {
        zero_tile<First>();
        zero_sums<V - 1, First + 1>();
    }
}
template <int V, int First = 0>
SFTRL_INLINE void load_sums(const float* from, std::int64_t pitch) {
    if constexpr (V > 0) {
        load_tile<First>(from, pitch);
        load_sums<V - 1, First + 1>(from + kColumns, pitch);
    }
}
template <int V, int First = 0>
SFTRL_INLINE void store_sums(float* to, std::int64_t pitch) {
    if constexpr (V > 0) {
        store_tile<First>(to, pitch);
        store_sums<V - 1, First + 1>(to + kColumns, pitch);
    }
}
// Adds to V sums tile A times the tiles side by side at `columns`, which pass through tile B.
template <int V, int A, int B, int First = 0>
SFTRL_INLINE void add_products(const void* columns, std::int64_t pitch) {
    if constexpr (V > 0) {
        load_tile<B>(columns, pitch);
        add_product<First, A, B>();
        add_products<V - 1, A, B, First + 1>(static_cast<const char*>(columns) + kTileBytes, pitch);
    }
}

}  // namespace sftrl::SFTRL_LEVEL::tmul

#endif
