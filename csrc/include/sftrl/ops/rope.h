// Rotary position embedding with the write into a paged cache of keys and values.
#pragma once

#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"

namespace sftrl {

struct RopeCacheArgs {
    const void *q, *k, *v;  // [rows, heads, width]; the last two dimensions are contiguous
    std::int64_t q_stride, k_stride, v_stride;  // elements from one row to the next
    const float *cos, *sin;                     // [P, width / 2]
    const std::int64_t* positions;              // [rows], in [0, P)
    const std::int64_t* slots;                  // [rows]: page index * page + place, or -1 to write nothing
    void* out;                                  // [rows, q_heads, width], contiguous: q rotated
    void *k_cache, *v_cache;                    // [pages, kv_heads, page, width]
    std::int64_t rows, q_heads, kv_heads, width, page;
    DType dtype;  // of all but the tables
};
SFTRL_KERNEL(rope_cache, RopeCacheArgs)

}  // namespace sftrl
