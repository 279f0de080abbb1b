// Layers of a Llama-type decoder over a paged cache, those that attend to pictures among them: the other
// kernels in a row, without a word between.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"
#include "sftrl/ops/cached_attention.h"

namespace sftrl {

// One layer's parameters and cache. Projections are packed by pack_linear; an absent bias is nullptr.
struct DecoderLayer {
    const void *norm, *qkv, *qkv_bias;
    const void *q_norm, *k_norm;  // [dim] each, of the heads; or nullptr twice
    const void *out, *out_bias;
    const void *mlp_norm, *gate_up, *gate_up_bias, *down, *down_bias;
    void *k_cache, *v_cache;
    // Of a layer that attends to pictures, else nullptr twice: one element each, the factors of what its
    // attention and its feed-forward half add. Its `qkv` makes queries alone, and it has no `k_norm`.
    const void *gate, *mlp_gate;
};

// Which tokens see pictures, and what.
struct Shown {
    const std::int64_t* tokens;  // [looking], places among the tokens; nullptr: all of them, in order
    std::int64_t looking;
    const bool* follows;  // [tokens]; false: what the feed-forward half adds is multiplied with zero
    // Tables of `looking` sequences of one query each, page size and strides; the rest is as for the others.
    CachedAttentionArgs attention;
};

struct DecoderLayersArgs {
    const DecoderLayer* layers;
    std::int64_t count;             // of layers, at least 1
    const void* x;                  // [tokens, hidden], the residual stream
    const void *cos, *sin;          // [positions, dim / 2]
    const std::int64_t* positions;  // [tokens]
    const std::int64_t* slots;      // [tokens], where in the cache
    const std::int64_t* wanted;     // [rows] of [0, tokens), ascending
    const void* final_norm;         // [hidden]
    void* out;                      // [rows, hidden], normalised
    std::byte* scratch;             // tokens times decoder_layers_scratch elements
    std::int64_t tokens, rows, hidden, feed_forward;
    float eps;
    // The tables, heads, width, scale and type; its tensors are filled in for each layer.
    CachedAttentionArgs attention;
    const Shown* shown;  // nullptr if no layer has a gate
};
SFTRL_KERNEL(decoder_layers, DecoderLayersArgs)

// Elements of scratch that `decoder_layers` needs for each token.
constexpr std::int64_t decoder_layers_scratch(std::int64_t hidden, std::int64_t feed_forward,
                                              std::int64_t query_width, std::int64_t kv_width) noexcept {
    return 5 * hidden + 4 * query_width + 2 * kv_width + 3 * feed_forward;
}

}  // namespace sftrl
