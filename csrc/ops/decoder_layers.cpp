#include "sftrl/ops/decoder_layers.h"

#include <cstring>

#include "sftrl/ops/linear.h"
#include "sftrl/ops/rms_norm.h"
#include "sftrl/ops/rope_cache.h"
#include "sftrl/ops/swiglu.h"
#include "sftrl/parallel.h"

// Every call below is of this instruction-set level: the inner namespace is looked in first.
namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::int64_t kNormGrain = 16;

class Pass {
  public:
    explicit Pass(const DecoderLayersArgs& args) noexcept
        : a(args),
          type(args.attention.dtype),
          size(type == DType::kFloat32 ? 4 : 2),
          query_width(args.attention.query_heads * args.attention.width),
          kv_width(args.attention.kv_heads * args.attention.width) {
        std::byte* next = a.scratch;
        const auto take = [&](std::int64_t width) {
            std::byte* const begin = next;
            next += a.tokens * width * size;
            return begin;
        };
        normed = take(a.hidden);
        sum[0] = take(a.hidden);
        sum[1] = take(a.hidden);
        x = take(a.hidden);
        qkv = take(query_width + 2 * kv_width);
        q = take(query_width);
        mixed = take(query_width);
        gate_up = take(2 * a.feed_forward);
        active = take(a.feed_forward);
        picked = take(query_width);
        picked_sum = take(a.hidden);
    }

    void run() noexcept {
        const void *from = a.x, *residual = nullptr;
        std::int64_t rows = a.tokens;
        for (std::int64_t i = 0; i < a.count; ++i) {
            const DecoderLayer& layer = a.layers[i];
            residual = norm(from, residual, layer.norm, normed, rows);
            attend(layer);
            const void* read = mixed;
            if (i + 1 == a.count) {  // what follows is only asked of the rows that somebody reads
                read = gather(mixed, picked, query_width);
                residual = gather(residual, picked_sum, a.hidden);
                rows = a.rows;
            }
            product(read, layer.out, layer.out_bias, x, rows, a.hidden, query_width);
            residual = norm(x, residual, layer.mlp_norm, normed, rows);
            product(normed, layer.gate_up, layer.gate_up_bias, gate_up, rows, 2 * a.feed_forward, a.hidden);
            swiglu({gate_up, active, rows, a.feed_forward, type});
            product(active, layer.down, layer.down_bias, x, rows, a.hidden, a.feed_forward);
            from = x;
        }
        const void* const total = norm(x, residual, a.final_norm, a.out, rows);
        if (a.total) std::memcpy(a.total, total, static_cast<std::size_t>(rows * a.hidden * size));
    }

  private:
    // The normalised rows of from + residual go to `to`; where the sum stands.
    const void* norm(const void* from, const void* residual, const void* weight, void* to,
                     std::int64_t rows) noexcept {
        turn = !turn;
        rms_norm({from, residual, weight, to, sum[turn], rows, a.hidden, a.eps, type});
        return residual ? sum[turn] : from;
    }

    void product(const void* from, const void* packed, const void* bias, void* to, std::int64_t rows,
                 std::int64_t n, std::int64_t k) noexcept {
        linear({from, packed, bias, to, rows, n, k, type, type});
    }

    void attend(const DecoderLayer& layer) noexcept {
        const std::int64_t width = query_width + 2 * kv_width;
        product(normed, layer.qkv, layer.qkv_bias, qkv, a.tokens, width, a.hidden);
        std::byte* const k = qkv + query_width * size;
        if (layer.q_norm) {
            parallel_for(a.tokens, kNormGrain, [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t t = begin; t < end; ++t) {
                    heads_norm(qkv + t * width * size, layer.q_norm, a.attention.query_heads);
                    heads_norm(k + t * width * size, layer.k_norm, a.attention.kv_heads);
                }
            });
        }
        rope_cache({qkv, k, k + kv_width * size, q, a.cos, a.sin, a.positions, a.slots, layer.k_cache,
                    layer.v_cache, a.tokens, width, width, width, a.attention.query_heads,
                    a.attention.kv_heads, a.attention.width, a.attention.page_size, type});
        CachedAttentionArgs attention = a.attention;
        attention.q = q;
        attention.k_cache = layer.k_cache;
        attention.v_cache = layer.v_cache;
        attention.out = mixed;
        SFTRL_LEVEL::cached_attention(attention);  // qualified: its argument brings in the outer one
    }

    void heads_norm(std::byte* at, const void* weight, std::int64_t heads) noexcept {
        rms_norm({at, nullptr, weight, at, nullptr, heads, a.attention.width, a.eps, type});
    }

    // The wanted rows of `from`: itself if they are all, else copies in `to`.
    const void* gather(const void* from, std::byte* to, std::int64_t width) noexcept {
        if (a.rows == a.tokens) return from;
        for (std::int64_t r = 0; r < a.rows; ++r) {
            std::memcpy(to + r * width * size,
                        static_cast<const std::byte*>(from) + a.wanted[r] * width * size,
                        static_cast<std::size_t>(width * size));
        }
        return to;
    }

    const DecoderLayersArgs& a;
    DType type;
    std::int64_t size, query_width, kv_width;
    std::byte *normed, *sum[2], *x, *qkv, *q, *mixed, *gate_up, *active, *picked, *picked_sum;
    bool turn = false;
};

}  // namespace

void decoder_layers(const DecoderLayersArgs& args) noexcept {
    with_team([&] { Pass(args).run(); });
}

}  // namespace sftrl::SFTRL_LEVEL
