// Rotary position embedding of queries and keys, with the keys and values written into a paged cache.
#pragma once

#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"

namespace sftrl {

struct RopeCacheArgs {
    const void *q, *k,
        *v;     // [tokens, heads, dim], [tokens, kv_heads, dim] twice; heads contiguous, tokens strided
    void* out;  // [tokens, heads, dim], contiguous
    const void *cos, *sin;  // [positions, dim / 2], contiguous
    const std::int64_t *positions,
        *slots;               // [tokens]; a slot is page * page_size + offset, negative for none
    void *k_cache, *v_cache;  // [pages, kv_heads, page, dim], contiguous
    std::int64_t tokens, q_stride, k_stride, v_stride;  // elements from token to token
    std::int64_t heads, kv_heads, dim, page;
    DType dtype;
};
SFTRL_KERNEL(rope_cache, RopeCacheArgs)

}  // namespace sftrl
