#include "sftrl/ops/decoder_layers.h"

#include <cstring>
#include <optional>

#include "cached_attention_plan.h"
#include "sftrl/ops/linear.h"
#include "sftrl/ops/rms_norm.h"
#include "sftrl/ops/rope_cache.h"
#include "sftrl/ops/swiglu.h"
#include "sftrl/parallel.h"
#include "simd.h"

// Every call below is of this instruction-set level: the inner namespace is looked in first.
namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::int64_t kNormGrain = 16;

// Rows of x times one factor, or times zero where `kept` is false.
template <class T>
void scale_rows(T* x, const T* factor, const bool* kept, std::int64_t rows, std::int64_t width) {
    const float by = to_float(*factor);
    parallel_for(rows, kNormGrain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
            T* const row = x + r * width;
            const f32x16 scale = splat(kept == nullptr || kept[r] ? by : 0.0f);
            std::int64_t i = 0;
            for (; i + kLanes <= width; i += kLanes) store(load(row + i) * scale, row + i);
            const int rest = static_cast<int>(width - i);
            if (rest) store_first(load_first(row + i, rest) * scale, row + i, rest);
        }
    });
}

class Pass {
  public:
    explicit Pass(const DecoderLayersArgs& args) noexcept
        : a(args),
          type(args.attention.dtype),
          size(type == DType::kFloat32 ? 4 : 2),
          query_width(args.attention.query_heads * args.attention.width),
          kv_width(args.attention.kv_heads * args.attention.width),
          plan(args.attention) {
        if (a.shown) shown_plan.emplace(a.shown->attention);
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
            layer.gate ? look(layer) : attend(layer);
            const void* read = mixed;
            if (i + 1 == a.count) {  // what follows is only asked of the rows that somebody reads
                read = gather(mixed, picked, query_width);
                residual = gather(residual, picked_sum, a.hidden);
                rows = a.rows;
            }
            product(read, layer.out, layer.out_bias, x, rows, a.hidden, query_width);
            if (layer.gate) scale(layer.gate, false, rows);
            residual = norm(x, residual, layer.mlp_norm, normed, rows);
            open_gates(layer, rows);
            product(active, layer.down, layer.down_bias, x, rows, a.hidden, a.feed_forward);
            if (layer.mlp_gate) scale(layer.mlp_gate, true, rows);
            from = x;
        }
        norm(x, residual, a.final_norm, a.out, rows);
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

    void open_gates(const DecoderLayer& layer, std::int64_t rows) noexcept {
        const std::int64_t n = 2 * a.feed_forward;
        if (gates_fill_panels(n)) {
            return SFTRL_LEVEL::linear_swiglu(
                {normed, layer.gate_up, layer.gate_up_bias, active, rows, n, a.hidden, type, type});
        }
        product(normed, layer.gate_up, layer.gate_up_bias, gate_up, rows, n, a.hidden);
        swiglu({gate_up, active, rows, a.feed_forward, type});
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
        cached::attend(plan, attention);
    }

    // Queries of the tokens that see a picture, over its keys and values; zeros for the others.
    void look(const DecoderLayer& layer) noexcept {
        const Shown& shown = *a.shown;
        product(normed, layer.qkv, layer.qkv_bias, q, a.tokens, query_width, a.hidden);
        parallel_for(a.tokens, kNormGrain, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t t = begin; t < end; ++t) {
                heads_norm(q + t * query_width * size, layer.q_norm, a.attention.query_heads);
            }
        });
        CachedAttentionArgs attention = shown.attention;
        attention.k_cache = layer.k_cache;
        attention.v_cache = layer.v_cache;
        const auto row = static_cast<std::size_t>(query_width * size);
        if (shown.tokens == nullptr) {
            attention.q = q;
            attention.out = mixed;
            return cached::attend(*shown_plan, attention);
        }
        const auto place = [&](std::byte* base, std::int64_t i) {
            return base + static_cast<std::size_t>(shown.tokens[i]) * row;
        };
        for (std::int64_t i = 0; i < shown.looking; ++i) std::memcpy(picked + i * row, place(q, i), row);
        attention.q = picked;
        attention.out = qkv;
        cached::attend(*shown_plan, attention);
        std::memset(mixed, 0, a.tokens * row);
        for (std::int64_t i = 0; i < shown.looking; ++i) std::memcpy(place(mixed, i), qkv + i * row, row);
    }

    // What a gated layer adds: the first `rows` of x, or the wanted ones.
    void scale(const void* factor, bool where_it_follows, std::int64_t rows) noexcept {
        const bool* kept = nullptr;
        if (where_it_follows) {
            kept = a.shown->follows;
            if (rows != a.tokens) {
                bool* const some = reinterpret_cast<bool*>(gate_up);  // free between the product and the next
                for (std::int64_t r = 0; r < rows; ++r) some[r] = kept[a.wanted[r]];
                kept = some;
            }
        }
        type == DType::kFloat32
            ? scale_rows(reinterpret_cast<float*>(x), static_cast<const float*>(factor), kept, rows, a.hidden)
            : scale_rows(reinterpret_cast<bf16*>(x), static_cast<const bf16*>(factor), kept, rows, a.hidden);
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
    const cached::Plan plan;                 // of all layers that attend to tokens
    std::optional<cached::Plan> shown_plan;  // of those that attend to pictures
    std::byte *normed, *sum[2], *x, *qkv, *q, *mixed, *gate_up, *active, *picked, *picked_sum;
    bool turn = false;
};

}  // namespace

void decoder_layers(const DecoderLayersArgs& args) noexcept {
    with_team([&] { Pass(args).run(); });
}

}  // namespace sftrl::SFTRL_LEVEL
