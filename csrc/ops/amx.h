// The matrix registers of AMX: eight tiles, each of up to 16 rows of 64 bytes.
#pragma once

#if defined(__AMX_BF16__)

#include <immintrin.h>

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

inline constexpr Shapes whole_tiles() {
    Shapes shapes;
    std::fill_n(shapes.row_bytes, 8, kTileBytes);
    std::fill_n(shapes.rows, 8, kBlock);
    return shapes;
}
inline constexpr Shapes kWhole = whole_tiles();

// For as long as it lives this thread's tiles are whole. Both instructions wait for all before them: a
// pair of them for every 32 rows of a product cost 5 % of its time.
struct Shaped {
    Shaped() { _tile_loadconfig(&kWhole); }
    ~Shaped() { _tile_release(); }
    Shaped(const Shaped&) = delete;
    Shaped& operator=(const Shaped&) = delete;
};

// The intrinsics do not say what they read: what is written before is in memory from here on.
SFTRL_INLINE void in_memory() { asm volatile("" ::: "memory"); }

// V (1 to 4) tiles of sums side by side: tiles 0 to 3. Pitches are in bytes.
template <int V>
SFTRL_INLINE void zero() {
    _tile_zero(0);
    if constexpr (V > 1) _tile_zero(1);
    if constexpr (V > 2) _tile_zero(2);
    if constexpr (V > 3) _tile_zero(3);
}
template <int V>
SFTRL_INLINE void load_sums(const float* from, std::int64_t pitch) {
    _tile_loadd(0, from, pitch);
    if constexpr (V > 1) _tile_loadd(1, from + kColumns, pitch);
    if constexpr (V > 2) _tile_loadd(2, from + 2 * kColumns, pitch);
    if constexpr (V > 3) _tile_loadd(3, from + 3 * kColumns, pitch);
}
template <int V>
SFTRL_INLINE void store_sums(float* to, std::int64_t pitch) {
    _tile_stored(0, to, pitch);
    if constexpr (V > 1) _tile_stored(1, to + kColumns, pitch);
    if constexpr (V > 2) _tile_stored(2, to + 2 * kColumns, pitch);
    if constexpr (V > 3) _tile_stored(3, to + 3 * kColumns, pitch);
}

// Adds to the sums rows of pairs at `a` times V tiles of them at `b`: by tiles 4 and 5.
template <int V>
SFTRL_INLINE void add(const void* a, std::int64_t a_pitch, const void* b, std::int64_t pitch) {
    const auto* const column = static_cast<const std::uint32_t*>(b);
    _tile_loadd(4, a, a_pitch);
    _tile_loadd(5, column, pitch);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (V > 1) {
        _tile_loadd(5, column + kColumns, pitch);
        _tile_dpbf16ps(1, 4, 5);
    }
    if constexpr (V > 2) {
        _tile_loadd(5, column + 2 * kColumns, pitch);
        _tile_dpbf16ps(2, 4, 5);
    }
    if constexpr (V > 3) {
        _tile_loadd(5, column + 3 * kColumns, pitch);
        _tile_dpbf16ps(3, 4, 5);
    }
}
// The same by tiles 6 and 7, whose shapes are those of what is left along the sum.
template <int V>
SFTRL_INLINE void add_rest(const void* a, std::int64_t a_pitch, const void* b, std::int64_t pitch) {
    const auto* const column = static_cast<const std::uint32_t*>(b);
    _tile_loadd(6, a, a_pitch);
    _tile_loadd(7, column, pitch);
    _tile_dpbf16ps(0, 6, 7);
    if constexpr (V > 1) {
        _tile_loadd(7, column + kColumns, pitch);
        _tile_dpbf16ps(1, 6, 7);
    }
    if constexpr (V > 2) {
        _tile_loadd(7, column + 2 * kColumns, pitch);
        _tile_dpbf16ps(2, 6, 7);
    }
    if constexpr (V > 3) {
        _tile_loadd(7, column + 3 * kColumns, pitch);
        _tile_dpbf16ps(3, 6, 7);
    }
}

}  // namespace sftrl::SFTRL_LEVEL::tmul

#endif
