// Attention of the newest tokens of many sequences over a paged cache, prefixes shared.
#pragma once

#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"

namespace sftrl {

// Tables as CacheRows of ops/attention.py describes and checks them; all arrays contiguous.
struct CachedAttentionArgs {
    const void* q;        // [tokens, query_heads, width]
    const void* k_cache;  // [pages, kv_heads, page_size, width]
    const void* v_cache;  // as k_cache
    void* out;            // as q

    const std::int32_t* query_offsets;   // [sequences + 1]
    const std::int32_t* prefix_of;       // [sequences]
    const std::int32_t* prefix_pages;    // [prefixes, prefix_stride]
    const std::int32_t* prefix_lengths;  // [prefixes]
    const std::int32_t* own_pages;       // [sequences, own_stride]
    const std::int32_t* own_lengths;     // [sequences]

    std::int64_t sequences, prefix_stride, own_stride;
    std::int64_t query_heads, kv_heads, page_size, width;
    float scale;
    DType dtype;           // of q, the caches and out
    float* lse = nullptr;  // [tokens, query_heads] if wanted: log2 of the sum of 2^(scale log2(e) q k)
};
SFTRL_KERNEL(cached_attention, CachedAttentionArgs)

}  // namespace sftrl
