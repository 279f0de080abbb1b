#include "sftrl/ops/packed_attention.h"

#include <cmath>

#include "packed_attention_rows.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::int64_t kBlocksPerChunk = 4;

// The blocks of one call. Scores stand keys down, queries across, so that a query's maximum and sum are a
// lane's.
template <class T, class U>
class Forward {
  public:
    explicit Forward(const PackedAttentionArgs& args) : a_(args), t_(args, nullptr) {
        blocks_at_ = carve<std::int64_t>(t_.scratch, (a_.segments + 1) * 8);
        blocks_at_[0] = 0;
        for (std::int64_t s = 0; s < a_.segments; ++s) {
            blocks_at_[s + 1] = blocks_at_[s] + (t_.length(s) * t_.ratio + kBlockRows - 1) / kBlockRows;
        }
    }

    void run() const {
        t_.fill_columns(t_.v);
        const std::int64_t blocks = blocks_at_[a_.segments];
        parallel_for(blocks * a_.kv_heads, kBlocksPerChunk, [&](std::int64_t begin, std::int64_t end) {
            Desk desk((t_.words + kMostKeys + t_.width) * kBlockRows + 4 * kBlockRows);
            Tile tile{reinterpret_cast<word*>(desk.take(t_.words * kBlockRows)),
                      desk.take(kMostKeys * kBlockRows),
                      desk.take(t_.width * kBlockRows),
                      desk.take(kBlockRows),
                      desk.take(kBlockRows),
                      reinterpret_cast<std::int32_t*>(desk.take(kBlockRows)),
                      desk.take(kBlockRows),
                      0};
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t b = i % blocks, s = segment_of(b);
                block(s, static_cast<int>(i / blocks), static_cast<int>(b - blocks_at_[s]) * kBlockRows,
                      tile);
            }
        });
    }

  private:
    struct Tile {
        word* queries;  // [words][lanes]
        float* scores;  // [keys][lanes]; then the weights, as words
        float* out;     // [width][lanes]
        float *most, *sum;
        std::int32_t* tokens;
        float* scale;
        int vectors;
    };

    std::int64_t segment_of(std::int64_t block) const {
        std::int64_t low = 0, high = a_.segments;  // blocks_at_[low] <= block < blocks_at_[high]
        while (high - low > 1) {
            const std::int64_t middle = (low + high) / 2;
            (blocks_at_[middle] <= block ? low : high) = middle;
        }
        return low;
    }

    void block(std::int64_t s, int head, int begin, Tile& tile) const {
        const int left = t_.length(s) * t_.ratio - begin, rows = left < kBlockRows ? left : kBlockRows;
        tile.vectors = (rows + kLanes - 1) / kLanes;
        const auto query = [&](int i) { return t_.q + t_.query_row(s, head, begin + i); };
        pack_words<U>(query, rows, tile.vectors, t_.width, tile.queries);
        token_lanes(begin, rows, t_.ratio, tile.tokens);
        for (int i = 0; i < kBlockRows; ++i) tile.most[i] = -__builtin_inff(), tile.sum[i] = 0.0f;
        const int first = begin / t_.ratio, last = (begin + rows - 1) / t_.ratio;
        bool empty = true;
        if (const std::int64_t parent = a_.parent[s]; parent >= 0) {
            for (int from = 0, to, end = t_.length(parent); from < end; from = to) {
                to = next_cut(from, end);
                keys(parent, head, from, to, false, empty, tile);
                empty = false;
            }
        }
        for (int from = 0, to; from <= last; from = to) {
            to = next_cut(from, last + 1);
            keys(s, head, from, to, to - 1 > first, empty, tile);
            empty = false;
        }
        finish(s, head, begin, rows, tile);
    }

    void keys(std::int64_t s, int head, int from, int to, bool causal, bool empty, Tile& tile) const {
        const int count = to - from, words = (count + U::kPer - 1) / U::kPer;
        product<U>(t_.k + t_.key_row(s, head, from), t_.key_stride / U::kPer, count, tile.queries,
                   tile.vectors, t_.words, tile.scores, false);
        for (int n = 0; n < tile.vectors; ++n) {
            causal ? weights<true>(n * kLanes, from, count, empty, tile)
                   : weights<false>(n * kLanes, from, count, empty, tile);
        }
        product<U>(t_.columns_of(s, head, from / U::kPer), t_.column_stride(s), t_.width,
                   reinterpret_cast<const word*>(tile.scores), tile.vectors, words, tile.out, !empty);
    }

    // Scores to weights 2^(score - maximum), in place; sums and the output so far follow a maximum that
    // rises.
    template <bool Causal>
    void weights(int lane, int from, int count, bool empty, Tile& tile) const {
        const float scale = a_.scale * kLog2E;
        const int stride = tile.vectors * kLanes;
        float* const scores = tile.scores + lane;
        const std::int32_t* const tokens = tile.tokens + lane;
        const f32x16 before = load(tile.most + lane);
        f32x16 most = before;
        for (int j = 0; j < count; ++j) {
            const f32x16 x = load(scores + j * stride) * scale;
            most = max(most, Causal ? masked(x, tokens, from + j) : x);
        }
        const auto weight = [&](int j) {
            const f32x16 x = load(scores + j * stride) * scale - most;
            return exp2(Causal ? masked(x, tokens, from + j) : x);
        };
        f32x16 sum = splat(0.0f);
        for (int j = 0; j < count; j += U::kPer) {
            const f32x16 low = weight(j);
            const f32x16 high = U::kPer == 2 && j + 1 < count ? weight(j + 1) : splat(0.0f);
            sum += low + high;
            const u32x16 both = U::narrow(low, high, nullptr, nullptr);
            store_words(both, scores + j / U::kPer * stride);
        }
        store(most, tile.most + lane);
        if (empty) return store(sum, tile.sum + lane);
        const f32x16 kept = exp2(before - most);
        store(load(tile.sum + lane) * kept + sum, tile.sum + lane);
        float* const out = tile.out + lane;
        for (int c = 0; c < t_.width; ++c) store(load(out + c * stride) * kept, out + c * stride);
    }

    void finish(std::int64_t s, int head, int begin, int rows, Tile& tile) const {
        for (int i = 0; i < rows; ++i) {
            tile.scale[i] = 1.0f / tile.sum[i];
            a_.lse[t_.query_row(s, head, begin + i) / a_.width] = tile.most[i] + std::log2(tile.sum[i]);
        }
        for (int i = rows; i < kBlockRows; ++i) tile.scale[i] = 0.0f;
        const auto row = [&](int i) { return static_cast<T*>(a_.out) + t_.query_row(s, head, begin + i); };
        unpack<T>(tile.out, tile.vectors, t_.width, tile.scale, rows, row);
    }

    const PackedAttentionArgs& a_;
    Tensors<T, U> t_;
    std::int64_t* blocks_at_;
};

}  // namespace

void packed_attention(const PackedAttentionArgs& args) noexcept {
#if defined(__AVX512BF16__)
    using Half = Pairs;
#else
    using Half = Singles;
#endif
    args.dtype == DType::kFloat32 ? Forward<float, Singles>(args).run() : Forward<bf16, Half>(args).run();
}

}  // namespace sftrl::SFTRL_LEVEL
