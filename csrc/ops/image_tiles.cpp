#include "sftrl/ops/image_tiles.h"

#include <algorithm>
#include <cstring>

#include "sftrl/parallel.h"
#include "simd.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr int kChannels = 3;
constexpr int kWeightBits = 22;
constexpr int kRound = 1 << (kWeightBits - 1);
constexpr int kSpan = 1536;  // bytes of a line that a block of output places may draw on: 24 KB of 16 lines

typedef std::uint8_t u8x16 __attribute__((vector_size(16)));

SFTRL_INLINE u8x16 load16(const std::uint8_t* from) {
    u8x16 out;
    std::memcpy(&out, from, sizeof out);
    return out;
}

// Sixteen sums in vectors of the level's own width: GCC 12 takes conversions of wider ones apart into lanes.
#if defined(__AVX512F__)
constexpr int kPart = 16;
#elif defined(__AVX2__)
constexpr int kPart = 8;
#else
constexpr int kPart = 4;
#endif
constexpr int kParts = 16 / kPart;
typedef std::int32_t ints __attribute__((vector_size(4 * kPart)));
typedef float floats __attribute__((vector_size(4 * kPart)));

SFTRL_INLINE ints widened(const std::uint8_t* from) {
#if defined(__AVX512F__)
    return reinterpret_cast<ints>(_mm512_cvtepu8_epi32(reinterpret_cast<__m128i>(load16(from))));
#elif defined(__AVX2__)
    return reinterpret_cast<ints>(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
    return ints{from[0], from[1], from[2], from[3]};
#endif
}

struct Sums {
    ints part[kParts];

    SFTRL_INLINE Sums() {
        for (ints& p : part) p = ints{} + kRound;
    }
    SFTRL_INLINE void add(const std::uint8_t* from, std::int32_t weight) {
        for (int i = 0; i < kParts; ++i) part[i] += widened(from + i * kPart) * weight;
    }
    // As bytes. Weights are not negative and add up to 2^22 but for their rounding, which can bring a sum to
    // 256 at most.
    SFTRL_INLINE ints value(int i) const {
        const ints whole = part[i] >> kWeightBits;
        return whole - (whole >> 8);
    }
    SFTRL_INLINE u8x16 bytes() const {
#if defined(__AVX512F__)
        return reinterpret_cast<u8x16>(_mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(value(0))));
#elif defined(__AVX2__)
        // The packing instructions work within 128 bits: 0-3 8-11 | 4-7 12-15, put in order by the
        // permutation.
        const __m256i packed =
            _mm256_packus_epi32(reinterpret_cast<__m256i>(value(0)), reinterpret_cast<__m256i>(value(1)));
        const __m256i shorts = _mm256_permute4x64_epi64(packed, 0xD8);
        return reinterpret_cast<u8x16>(
            _mm_packus_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1)));
#else
        u8x16 out;
        for (int i = 0; i < 16; ++i) out[i] = static_cast<std::uint8_t>(value(i / kPart)[i % kPart]);
        return out;
#endif
    }
    SFTRL_INLINE void normalised(float factor, float summand, float (&out)[16]) const {
        for (int i = 0; i < kParts; ++i) {
            const floats scaled = __builtin_convertvector(value(i), floats) * factor + summand;
            std::memcpy(out + i * kPart, &scaled, sizeof scaled);
        }
    }
};

// Column j of 16 lines becomes row j: four rounds of interleaving lines half the block apart.
SFTRL_INLINE void transpose16(u8x16 (&m)[16]) {
    u8x16 n[16];
#pragma GCC unroll 4
    for (int round = 0; round < 4; ++round) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            n[2 * i] = __builtin_shufflevector(m[i], m[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                               22, 7, 23);
            n[2 * i + 1] = __builtin_shufflevector(m[i], m[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                                   29, 14, 30, 15, 31);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) m[i] = n[i];
    }
}

// Bytes [begin, end) of 16 lines as columns: columns[b - begin] holds the lines' bytes at b.
SFTRL_INLINE void read_columns(const std::uint8_t* const (&lines)[16], std::int64_t begin, std::int64_t end,
                               std::uint8_t* columns) {
    u8x16 block[16];
    for (std::int64_t b = begin; b < end; b += 16) {
        const auto count = static_cast<std::size_t>(std::min<std::int64_t>(16, end - b));
        for (int i = 0; i < 16; ++i) {
            block[i] = u8x16{};
            if (count == 16) {
                block[i] = load16(lines[i] + b);
            } else {
                std::memcpy(&block[i], lines[i] + b, count);
            }
        }
        transpose16(block);
        std::memcpy(columns + 16 * (b - begin), block, sizeof block);
    }
}

// Output places [x, x + count) of 16 lines at once, a line a lane.
SFTRL_INLINE void across_block(const ImageTilesArgs& a, const std::uint8_t* const (&lines)[16], int x,
                               int count, u8x16 (&out)[kChannels][16]) {
    const ResampleWeights& by = a.across;
    const std::int64_t begin = std::int64_t{by.first[x]} * kChannels;
    const std::int64_t end = std::int64_t{by.first[x + count - 1] + by.taps} * kChannels;
    alignas(64) std::uint8_t columns[16 * (kSpan + 16)];
    const bool fits = end - begin <= kSpan;
    if (fits) read_columns(lines, begin, end, columns);
    for (int j = 0; j < count; ++j) {
        const std::int32_t* const weights = by.weights + static_cast<std::int64_t>(x + j) * by.taps;
        const std::int64_t from = std::int64_t{by.first[x + j]} * kChannels;
        Sums total[kChannels];
        for (int t = 0; t < by.taps; ++t) {
            for (int c = 0; c < kChannels; ++c) {
                const std::int64_t b = from + std::int64_t{t} * kChannels + c;
                std::uint8_t apart[16];
                if (!fits) {
                    for (int i = 0; i < 16; ++i) apart[i] = lines[i][b];
                }
                total[c].add(fits ? columns + 16 * (b - begin) : apart, weights[t]);
            }
        }
        for (int c = 0; c < kChannels; ++c) out[c][j] = total[c].bytes();
    }
    for (int c = 0; c < kChannels; ++c) {
        for (int j = count; j < 16; ++j) out[c][j] = u8x16{};
        transpose16(out[c]);
    }
}

// Lines [top, top + 16) of the picture into scratch, scaled along the line.
void across(const ImageTilesArgs& a, int top) {
    const std::int64_t line = std::int64_t{a.width} * kChannels;
    const std::uint8_t* lines[16];
    for (int i = 0; i < 16; ++i) lines[i] = a.image + std::min(top + i, a.height - 1) * line;
    const int rows = std::min(16, a.height - top);
    for (int x = 0; x < a.out_width; x += 16) {
        u8x16 block[kChannels][16];
        across_block(a, lines, x, std::min(16, a.out_width - x), block);
        for (int c = 0; c < kChannels; ++c) {
            std::uint8_t* to = a.scratch + (std::int64_t{c} * a.height + top) * a.pitch + x;
            for (int i = 0; i < rows; ++i, to += a.pitch) std::memcpy(to, &block[c][i], 16);
        }
    }
}

// Sixteen places of an output line: scaled along the columns and normalised.
SFTRL_INLINE f32x16 down16(const std::uint8_t* from, std::int64_t pitch, const std::int32_t* weights,
                           int taps, float factor, float summand) {
    Sums total;
    for (int t = 0; t < taps; ++t, from += pitch) total.add(from, weights[t]);
    alignas(64) float lanes[16];
    total.normalised(factor, summand, lanes);
    return load(lanes);
}

template <class T>
void fill(T* to, int count, float value) {
    T one;
    from_float(value, &one);
    std::fill_n(to, count, one);
}

// Output line y: a piece in each tile it crosses.
template <class T>
void down(const ImageTilesArgs& a, int y) {
    const int row = y / a.tile, inner = y % a.tile;
    const bool black = y >= a.out_height;
    const std::int32_t* const weights = black ? nullptr : a.down.weights + std::int64_t{y} * a.down.taps;
    for (int c = 0; c < kChannels; ++c) {
        const float factor = a.levels[c], summand = a.levels[kChannels + c];
        const std::uint8_t* const from =
            black ? nullptr : a.scratch + (std::int64_t{c} * a.height + a.down.first[y]) * a.pitch;
        for (int column = 0; column < a.tile_columns; ++column) {
            const std::int64_t place = (std::int64_t{row} * a.tile_columns + column) * kChannels + c;
            T* const to = static_cast<T*>(a.out) + (place * a.tile + inner) * a.tile;
            const int left = column * a.tile;
            const int inside = black ? 0 : std::clamp(a.out_width - left, 0, a.tile);
            int x = 0;
            for (; x + kLanes <= inside; x += kLanes) {
                store(down16(from + left + x, a.pitch, weights, a.down.taps, factor, summand), to + x);
            }
            if (x < inside) {
                store_first(down16(from + left + x, a.pitch, weights, a.down.taps, factor, summand), to + x,
                            inside - x);
            }
            fill(to + inside, a.tile - inside, summand);
        }
    }
}

template <class T>
void run(const ImageTilesArgs& a) {
    parallel_for((a.height + 15) / 16, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t block = begin; block < end; ++block) across(a, static_cast<int>(block) * 16);
    });
    parallel_for(std::int64_t{a.tile_rows} * a.tile, 16, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t y = begin; y < end; ++y) down<T>(a, static_cast<int>(y));
    });
}

}  // namespace

void image_tiles(const ImageTilesArgs& args) noexcept {
    args.dtype == DType::kFloat32 ? run<float>(args) : run<bf16>(args);
}

}  // namespace sftrl::SFTRL_LEVEL
