// Gradients of causal attention over packed rows in which several segments may see a common parent. The
// forward is cached_attention, with a page a token.
#pragma once

#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"

namespace sftrl {

// T tokens in S segments: segment s is the tokens [offsets[s], offsets[s + 1]); each sees itself, those
// before it in s, and all of segment parent[s] (-1: none). A parent has no parent. Hq is a multiple of Hkv,
// Dh of 8.
struct PackedAttentionBackwardArgs {
    const void *q, *k, *v;        // [T, Hq, Dh], [T, Hkv, Dh], [T, Hkv, Dh]
    const std::int32_t* offsets;  // [S + 1]
    const std::int32_t* parent;   // [S]
    const void* out;              // [T, Hq, Dh], of the forward
    const float* lse;             // [T, Hq]: log2 of the sum of 2^(scale log2(e) q k)
    float* scratch;  // packed_attention_backward_scratch(...) floats, on a boundary of 64 bytes; any content
    std::int64_t tokens, segments, query_heads, kv_heads, width;
    float scale;
    DType dtype;                     // of q, k, v, out and the gradients
    const void* grad_out;            // [T, Hq, Dh]
    void *grad_q, *grad_k, *grad_v;  // as q, k, v
};
SFTRL_KERNEL(packed_attention_backward, PackedAttentionBackwardArgs)

// Floats of scratch memory that suffice for these sizes at level `at`.
static inline std::int64_t packed_attention_backward_scratch(const PackedAttentionBackwardArgs& a, Level at) {
    const std::int64_t plan = 16 * (a.segments + 2);
    const std::int64_t columns = (a.tokens + a.segments) * a.kv_heads * a.width;
    const bool widens = a.dtype == DType::kBFloat16 && at < Level::kAvx512Bf16;
    const std::int64_t widened = widens ? a.tokens * 2 * (a.query_heads + a.kv_heads) * a.width : 0;
    const std::int64_t partial_sums = 2 * 2 * a.tokens * a.kv_heads * (a.width + 8);
    return plan + columns + widened + partial_sums + 6 * 16;  // each part begins at a multiple of 16
}

}  // namespace sftrl
