// Causal attention over packed rows in which several segments may see a common parent, forward and backward.
#pragma once

#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"

namespace sftrl {

// T tokens in S segments: segment s is the tokens [offsets[s], offsets[s + 1]); each sees itself, those
// before it in s, and all of segment parent[s] (-1: none). A parent has no parent. Hq is a multiple of Hkv,
// Dh of 8.
struct PackedAttentionArgs {
    const void *q, *k, *v;        // [T, Hq, Dh], [T, Hkv, Dh], [T, Hkv, Dh]
    const std::int32_t* offsets;  // [S + 1]
    const std::int32_t* parent;   // [S]
    void* out;                    // [T, Hq, Dh]; read by the backward
    float* lse;                   // [T, Hq]: log2 of the sum of 2^(scale log2(e) q k); read by the backward
    float* scratch;  // packed_attention_scratch(...) floats, on a boundary of 64 bytes; any content
    std::int64_t tokens, segments, query_heads, kv_heads, width;
    float scale;
    DType dtype;  // of q, k, v, out and the gradients
};

struct PackedAttentionBackwardArgs {
    PackedAttentionArgs forward;
    const void* grad_out;            // [T, Hq, Dh]
    void *grad_q, *grad_k, *grad_v;  // as q, k, v
};

SFTRL_KERNEL(packed_attention, PackedAttentionArgs)
SFTRL_KERNEL(packed_attention_backward, PackedAttentionBackwardArgs)

// Floats of scratch memory that suffice for these sizes at level `at`.
static inline std::int64_t packed_attention_scratch(const PackedAttentionArgs& a, bool backward, Level at) {
    const std::int64_t plan = 16 * (a.segments + 2);
    const std::int64_t columns = (a.tokens + a.segments) * a.kv_heads * a.width;
    const bool widens = a.dtype == DType::kBFloat16 && at != Level::kAvx512Bf16;
    const std::int64_t widened =
        widens ? a.tokens * ((backward ? 2 : 1) * a.query_heads + 2 * a.kv_heads) * a.width : 0;
    const std::int64_t partial_sums = backward ? 2 * 2 * a.tokens * a.kv_heads * (a.width + 8) : 0;
    return plan + columns + widened + partial_sums + 6 * 16;  // each part begins at a multiple of 16
}

}  // namespace sftrl
