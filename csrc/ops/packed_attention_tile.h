// Small matrix products for packed_attention, and the layouts that they read.
//
// A product is C[rows, 16 vectors] (+)= A[rows, words] B[words, 16 vectors]: A row by row, its words
// broadcast or, in AMX, sixteen rows and words at a time; B as a panel whose rows are words for 16 lanes side
// by side. A word is 32 bits: one float (Singles), or two bfloat16 that follow one another in the summed
// dimension (Pairs).
#pragma once

#include <algorithm>
#include <type_traits>

#include "amx.h"
#include "simd.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

using word = std::uint32_t;

// Registers of a product: rows x vectors sums, one row of B and one broadcast word must fit.
#if defined(__AVX512F__)
constexpr int kProductRows = 6, kProductVectors = 4;
#elif defined(__AVX2__)
constexpr int kProductRows = 6, kProductVectors = 1;
#else
constexpr int kProductRows = 2, kProductVectors = 1;
#endif

SFTRL_INLINE u32x16 load_words(const void* from) { return load_lanes<u32x16>(from); }
// The first `count` words, zeros beyond; a copy of no fixed length costs more than the rest of a tile's load.
SFTRL_INLINE u32x16 load_words(const void* from, int count) {
    if (count == kLanes) return load_words(from);
    alignas(64) word words[kLanes] = {};
    for (int i = 0; i < count; ++i) std::memcpy(words + i, static_cast<const word*>(from) + i, sizeof(word));
    return load_words(words);
}
SFTRL_INLINE void store_words(u32x16 value, void* to) { store_lanes(value, to); }

struct Singles {
    using Element = float;
    static constexpr int kPer = 1;  // elements of a word
    static SFTRL_INLINE f32x16 dot(f32x16 sum, word a, u32x16 b) {
        float value;
        std::memcpy(&value, &a, sizeof value);
        return sum + value * as<f32x16>(b);
    }
    // Words of `count` (1 to 16) columns of row `low`; `high`, the next row, does not matter.
    static SFTRL_INLINE u32x16 interleave(const float* low, const float*, int count) {
        return load_words(low, count);
    }
    // Rounds row `low` of a tile to Element and makes the panel's row of it.
    static SFTRL_INLINE u32x16 narrow(f32x16 low, f32x16, float* low_row, float*) {
        if (low_row) store(low, low_row);
        return as<u32x16>(low);
    }
};

#if defined(__AVX512BF16__)
struct Pairs {
    using Element = bf16;
    static constexpr int kPer = 2;
    static SFTRL_INLINE f32x16 dot(f32x16 sum, word a, u32x16 b) {
        const __m512i both = _mm512_set1_epi32(static_cast<int>(a));
        return reinterpret_cast<f32x16>(_mm512_dpbf16_ps(
            reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(b), reinterpret_cast<__m512bh>(both)));
    }
    static SFTRL_INLINE u32x16 interleave(const bf16* low, const bf16* high, int count) {
        const auto columns = static_cast<__mmask16>((1u << count) - 1);
        const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(columns, low));
        if (!high) return reinterpret_cast<u32x16>(a);
        const __m512i b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(columns, high));
        return reinterpret_cast<u32x16>(a) | reinterpret_cast<u32x16>(b) << 16;
    }
    static SFTRL_INLINE u32x16 narrow(f32x16 low, f32x16 high, bf16* low_row, bf16* high_row) {
        const __m512i both = reinterpret_cast<__m512i>(
            _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
        if (low_row) {
            const __m256i halves[] = {_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1)};
            std::memcpy(low_row, &halves[0], sizeof halves[0]);
            if (high_row) std::memcpy(high_row, &halves[1], sizeof halves[1]);
        }
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                               23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        return reinterpret_cast<u32x16>(_mm512_permutexvar_epi16(order, both));
    }
};
#endif

// 2^x to about one unit in the last place for x <= 127; 0 below -126; a NaN stays one.
// 2^n 2^r with r in [-1/2, 1/2]; the polynomial has the least relative error (2e-9) of degree 6.
SFTRL_INLINE f32x16 exp2(f32x16 x) {
    const f32x16 least = splat(-126.0f), magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds
    const f32x16 bounded = select(x < least, least, x);
    const f32x16 n = (bounded + magic) - magic;
    const f32x16 r = bounded - n;
    f32x16 p = splat(1.5345811e-4f);
    p = p * r + 1.33999300e-3f;
    p = p * r + 9.61848907e-3f;
    p = p * r + 5.55032864e-2f;
    p = p * r + 2.40226462e-1f;
    p = p * r + 6.93147182e-1f;
    p = p * r + 1.0f;
    const i32x16 bits = as<i32x16>(p) + (convert<i32x16>(n) << 23);
    return select(x < least, splat(0.0f), as<f32x16>(bits));
}

template <class U, int R, int N>
__attribute__((noinline)) void block_product(const void* a, std::int64_t a_stride, const word* b,
                                             std::int64_t b_stride, int words, float* c,
                                             std::int64_t c_stride, bool add) {
    f32x16 sum[R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum[r][n] = splat(0.0f);
    }
    const char* from = static_cast<const char*>(a);
    for (int k = 0; k < words; ++k, b += b_stride, from += sizeof(word)) {
        u32x16 column[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) column[n] = load_words(b + n * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            word value;
            std::memcpy(&value, from + r * a_stride * static_cast<std::int64_t>(sizeof(word)), sizeof value);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) sum[r][n] = U::dot(sum[r][n], value, column[n]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            float* const to = c + r * c_stride + n * kLanes;
            store(add ? load(to) + sum[r][n] : sum[r][n], to);
        }
    }
}

// A product's A has rows `a_stride` words apart; B and C have rows of 16 `vectors` lanes. An element's words
// are summed in an order that is that of every block.
template <class U>
struct VectorProducts {
    static void run(const void* a, std::int64_t a_stride, int rows, const word* b, int vectors, int words,
                    float* c, bool add) {
        const std::int64_t lanes = vectors * kLanes;
        for (int n = 0; n < vectors; n += kProductVectors) {
            for (int r = 0; r < rows; r += kProductRows) {
                with_constant<kProductRows>(rows - r, [&](auto R) {
                    with_constant<kProductVectors>(vectors - n, [&](auto V) {
                        block_product<U, R, V>(static_cast<const word*>(a) + r * a_stride, a_stride,
                                               b + n * kLanes, lanes, words, c + r * lanes + n * kLanes,
                                               lanes, add);
                    });
                });
            }
        }
    }
};

#if defined(__AMX_BF16__)
// In this thread's matrix registers, for as long as it lives; not nested.
class MatrixProducts {
  public:
    MatrixProducts() = default;
    ~MatrixProducts() { tmul::release(); }
    MatrixProducts(const MatrixProducts&) = delete;
    MatrixProducts& operator=(const MatrixProducts&) = delete;

    void run(const void* a, std::int64_t a_stride, int rows, const word* b, int vectors, int words, float* c,
             bool add) {
        const std::int64_t lanes = vectors * kLanes;
        for (int r = 0; r < rows; r += tmul::kBlock) {
            shape(rows - r < tmul::kBlock ? rows - r : tmul::kBlock, words % kLanes);
            for (int n = 0; n < vectors; n += kMost) {
                with_constant<kMost>(vectors - n, [&](auto V) {
                    block<V>(static_cast<const word*>(a) + r * a_stride, a_stride, b + n * kLanes, lanes,
                             words, c + r * lanes + n * kLanes, add);
                });
            }
        }
    }

  private:
    static constexpr int kMost = 4;  // tiles of sums

    // Tiles 0 to 3: sums. 4, 5: `rows` rows of a, 16 words of b. 6, 7: the `rest` words behind.
    void shape(int rows, int rest) {
        if (rows == rows_ && rest == rest_) return;
        rows_ = rows, rest_ = rest;
        tmul::Shapes shapes = tmul::kWhole;
        std::fill_n(shapes.rows, 5, static_cast<std::uint8_t>(rows));
        if (rest) {
            shapes.rows[6] = static_cast<std::uint8_t>(rows);
            shapes.row_bytes[6] = static_cast<std::uint16_t>(rest * sizeof(word));
            shapes.rows[7] = static_cast<std::uint8_t>(rest);
        }
        tmul::configure(shapes);
    }

    template <int V>
    static void block(const word* a, std::int64_t a_stride, const word* b, std::int64_t lanes, int words,
                      float* c, bool add) {
        const std::int64_t a_pitch = a_stride * sizeof(word), pitch = lanes * sizeof(word);
        add ? tmul::load_sums<V>(c, pitch) : tmul::zero_sums<V>();
        int w = 0;
        for (; w + kLanes <= words; w += kLanes) {
            tmul::load_tile<4>(a + w, a_pitch);
            tmul::add_products<V, 4, 5>(b + w * lanes, pitch);
        }
        if (w < words) {
            tmul::load_tile<6>(a + w, a_pitch);
            tmul::add_products<V, 6, 7>(b + w * lanes, pitch);
        }
        tmul::store_sums<V>(c, pitch);
    }

    int rows_ = 0, rest_ = 0;
};
template <class U>
using Products = std::conditional_t<U::kPer == 2, MatrixProducts, VectorProducts<U>>;
#else
template <class U>
using Products = VectorProducts<U>;
#endif

// Rows of a tensor that stand at `at(i)`; panels made of them hold zeros beyond `count`.

// out[w][i] = word w of row i, for `vectors` times 16 rows: B of a product over the rows' own dimension.
template <class U, class At>
void pack_words(const At& at, int count, int vectors, int width, word* out) {
    const int words = width / U::kPer;
    for (int i0 = 0; i0 < vectors * kLanes; i0 += kLanes) {
        for (int w0 = 0; w0 < words; w0 += kLanes) {
            const int some = words - w0 < kLanes ? words - w0 : kLanes;
            u32x16 tile[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                tile[i] = i0 + i < count ? load_words(at(i0 + i) + w0 * U::kPer, some) : u32x16{};
            }
            transpose(tile);
            for (int w = 0; w < some; ++w) store_words(tile[w], out + (w0 + w) * vectors * kLanes + i0);
        }
    }
}

// out[i][c] = word i of column c: B of a product over `rows` rows; `lanes` columns, zero beyond `width`.
template <class U, class At>
void pack_rows(const At& at, int count, int rows, int width, int lanes, word* out) {
    for (int i = 0; i < rows; i += U::kPer, out += lanes) {
        for (int c = 0; c < lanes; c += kLanes) {
            const int some = width - c < kLanes ? width - c : kLanes;
            const auto* const high = U::kPer == 2 && i + 1 < count ? at(i + 1) + c : nullptr;
            store_words(i < count ? U::interleave(at(i) + c, high, some) : u32x16{}, out + c);
        }
    }
}

// out[c][w] = word w of column c: A of a product over the rows; rows of out are ceil(count / kPer) words.
template <class U, class At>
void pack_columns(const At& at, int count, int width, word* out) {
    const int words = (count + U::kPer - 1) / U::kPer;
    for (int w0 = 0; w0 < words; w0 += kLanes) {
        const int some = words - w0 < kLanes ? words - w0 : kLanes;
        for (int c0 = 0; c0 < width; c0 += kLanes) {
            const int columns = width - c0 < kLanes ? width - c0 : kLanes;
            u32x16 tile[kLanes];
            for (int w = 0; w < kLanes; ++w) {
                const int i = (w0 + (w < some ? w : some - 1)) * U::kPer;  // lanes beyond are not stored
                const auto* const high = U::kPer == 2 && i + 1 < count ? at(i + 1) + c0 : nullptr;
                tile[w] = U::interleave(at(i) + c0, high, columns);
            }
            transpose(tile);
            for (int c = 0; c < columns; ++c) {
                word* const to = out + static_cast<std::int64_t>(c0 + c) * words + w0;
                if (some == kLanes) {
                    store_words(tile[c], to);
                } else {
                    std::memcpy(to, &tile[c], static_cast<std::size_t>(some) * sizeof(word));
                }
            }
        }
    }
}

// Row i of a tensor = column i of `tile` [width][16 vectors] times scale[i], for `count` columns.
template <class T, class At>
void unpack(const float* tile, int vectors, int width, const float* scale, int count, const At& at) {
    for (int i0 = 0; i0 < count; i0 += kLanes) {
        const f32x16 factor = load(scale + i0);
        for (int c0 = 0; c0 < width; c0 += kLanes) {
            const int some = width - c0 < kLanes ? width - c0 : kLanes;
            u32x16 rows[kLanes];
            for (int c = 0; c < kLanes; ++c) {
                const int column = c0 + (c < some ? c : some - 1);  // lanes beyond are not stored
                const f32x16 value = load(tile + column * vectors * kLanes + i0) * factor;
                rows[c] = as<u32x16>(value);
            }
            transpose(rows);
            for (int i = 0; i < kLanes && i0 + i < count; ++i) {
                const f32x16 value = as<f32x16>(rows[i]);
                T* const to = at(i0 + i) + c0;
                some == kLanes ? store(value, to) : store_first(value, to, some);
            }
        }
    }
}

}  // namespace
}  // namespace sftrl::SFTRL_LEVEL
