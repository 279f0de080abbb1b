// The tensors of packed_attention_backward, their rows, and the cuts of the work.
#pragma once

#include <cstdlib>

#include "packed_attention_tile.h"
#include "sftrl/ops/packed_attention.h"
#include "sftrl/parallel.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

// A block is up to 64 query rows, the lanes of four vectors: (token, query head of one key/value head), heads
// fastest. It passes over keys 64 at a time; a last cut of up to 96 saves a short one.
constexpr int kBlockVectors = 4, kBlockRows = kBlockVectors * kLanes;
constexpr int kKeys = 64, kMostKeys = 96;
constexpr std::int64_t kWidenedPerChunk = 32768;
constexpr float kLog2E = 1.44269504f;

SFTRL_INLINE int next_cut(int begin, int end) { return end - begin > kMostKeys ? begin + kKeys : end; }

template <class T>
SFTRL_INLINE T* carve(float*& from, std::int64_t bytes) {
    T* const out = reinterpret_cast<T*>(from);
    from += (bytes + 63) / 64 * 16;
    return out;
}

// Memory of the calling thread for one chunk of work.
class Desk {
  public:
    explicit Desk(std::int64_t floats)
        : base_(static_cast<float*>(std::aligned_alloc(64, static_cast<std::size_t>(floats + 15) / 16 * 64))),
          next_(base_) {
        if (base_ == nullptr) std::abort();
    }
    ~Desk() { std::free(base_); }
    Desk(const Desk&) = delete;
    Desk& operator=(const Desk&) = delete;
    float* take(std::int64_t floats) { return carve<float>(next_, floats * 4); }

  private:
    float* base_;
    float* next_;
};

// The tensors of a call. T is their element type; products read them as E, to which they are widened first
// where the two differ.
template <class T, class U>
struct Tensors {
    using E = typename U::Element;
    const PackedAttentionBackwardArgs& a;
    int width, words, ratio;  // of a head; its words; query heads of a key/value head
    std::int64_t query_stride, key_stride;
    const E *q, *k, *v;
    const E* grad_out;
    std::int64_t* words_at;  // [S + 1]: words of key columns before segment s, a head
    word* columns;           // see columns_of
    float* scratch;          // what is left

    explicit Tensors(const PackedAttentionBackwardArgs& args)
        : a(args),
          width(static_cast<int>(a.width)),
          words(width / U::kPer),
          ratio(static_cast<int>(a.query_heads / a.kv_heads)),
          query_stride(a.query_heads * a.width),
          key_stride(a.kv_heads * a.width),
          scratch(a.scratch) {
        words_at = carve<std::int64_t>(scratch, (a.segments + 1) * 8);
        words_at[0] = 0;
        for (std::int64_t s = 0; s < a.segments; ++s) {
            words_at[s + 1] = words_at[s] + (length(s) + U::kPer - 1) / U::kPer;
        }
        columns = carve<word>(scratch, words_at[a.segments] * key_stride * 4);
        q = widened(a.q, query_stride);
        k = widened(a.k, key_stride);
        v = widened(a.v, key_stride);
        grad_out = widened(a.grad_out, query_stride);
    }

    int length(std::int64_t s) const { return a.offsets[s + 1] - a.offsets[s]; }
    std::int64_t query_row(std::int64_t s, int head, int row) const {
        return (a.offsets[s] + row / ratio) * query_stride + (head * ratio + row % ratio) * a.width;
    }
    std::int64_t key_row(std::int64_t s, int head, int key) const {
        return (a.offsets[s] + key) * key_stride + head * a.width;
    }
    int column_stride(std::int64_t s) const { return static_cast<int>(words_at[s + 1] - words_at[s]); }
    // The columns of `pack_columns` of one head of segment s, from word `w` on.
    word* columns_of(std::int64_t s, int head, int w) const {
        return columns + words_at[s] * key_stride + head * a.width * column_stride(s) + w;
    }
    void fill_columns(const E* from) const {
        parallel_for(a.segments * a.kv_heads, 4, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t s = i / a.kv_heads;
                const int head = static_cast<int>(i % a.kv_heads);
                const auto at = [&](int key) { return from + key_row(s, head, key); };
                pack_columns<U>(at, length(s), width, columns_of(s, head, 0));
            }
        });
    }

  private:
    const E* widened(const void* from, std::int64_t stride) {
        if constexpr (sizeof(T) == sizeof(E)) {
            return static_cast<const E*>(from);
        } else {
            const std::int64_t count = a.tokens * stride;
            float* const to = carve<float>(scratch, count * 4);
            const T* const source = static_cast<const T*>(from);
            parallel_for(count / 8, kWidenedPerChunk / 8, [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t i = begin * 8; i < end * 8; ++i) to[i] = to_float(source[i]);
            });
            return to;
        }
    }
};

// Of each lane of a block the token it sees up to, in its own segment; lanes beyond the block see all.
SFTRL_INLINE void token_lanes(int row_begin, int rows, int ratio, std::int32_t* lanes) {
    for (int i = 0; i < kBlockRows; ++i) lanes[i] = (row_begin + (i < rows ? i : rows - 1)) / ratio;
}

SFTRL_INLINE f32x16 masked(f32x16 x, const std::int32_t* lanes, int key) {
    return select(load_lanes<i32x16>(lanes) >= key, x, splat(-__builtin_inff()));
}

}  // namespace
}  // namespace sftrl::SFTRL_LEVEL
