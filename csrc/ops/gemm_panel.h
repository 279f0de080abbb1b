// The packed operand of the matrix products, and how a processor is asked for the part that comes next.
#pragma once

#include <algorithm>
#include <cstddef>

#include "sftrl/ops/linear.h"
#include "simd.h"

namespace sftrl::SFTRL_LEVEL {

// A panel of float32 is [k][48]; one of bfloat16 is [k / 2][48][2], pairs along k, as the dot-product
// instructions want them. Columns past the matrix and an odd k are padded with zeros. The layout is that of
// every level, so a packed weight outlives set_level.
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
inline constexpr std::int64_t kMostParts = 64;  // of a panel: a step then moves on by three bytes

// A step asks for one line at most, or the 16 steps of a tile of AMX for as many as they read.
#if defined(__AMX_BF16__)
template <class T>
inline constexpr std::int64_t kFewestParts = sizeof(T) == 2 ? 1 : 3;
#else
template <class T>
inline constexpr std::int64_t kFewestParts = 3;
#endif

// What follows `panel`, in even parts while `tiles` tiles of rows read `panel`, of which this is number
// `tile`. With fewer than the fewest parts not all of it.
template <class T>
SFTRL_INLINE Ahead next_panel(const T* panel, std::int64_t k, std::int64_t tile = 0, std::int64_t tiles = 3) {
    const std::int64_t bytes = panel_size<T>(k) * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t parts = std::clamp<std::int64_t>(tiles, kFewestParts<T>, kMostParts);
    return {reinterpret_cast<const char*>(panel) + bytes + std::min(tile, parts) * bytes / parts,
            3 * kLine / parts};
}
// Of `panel` itself, where one tile reads it. Processors see that stream by themselves, and asking only
// slowed those without AMX; those with it got 10 to 30 % more of the memory's bandwidth by asking 12 KiB
// ahead.
template <class T>
SFTRL_INLINE Ahead same_panel(const T* panel) {
    const char* const at = reinterpret_cast<const char*>(panel);
#if defined(__AMX_BF16__)
    if (sizeof(T) == 2) return {at + 64 * 3 * kLine, 3 * kLine};
#endif
    return {at, 0};
}

// Steps over k that a register sums before it is added to the sum in memory: the error of a long sum then
// grows with the length of its parts. 128 steps cost 2 % more time, and no limit ten times the error at k =
// 50,000.
inline constexpr std::int64_t kDepth = 256;

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
