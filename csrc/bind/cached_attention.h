// How the calls that read a cache take its rows.
#pragma once

#include <pybind11/stl.h>

#include <array>

#include "bind.h"
#include "sftrl/ops/cached_attention.h"

namespace sftrl::bind {

using CacheTables = std::array<Address, 6>;      // in the order of CachedAttentionArgs
using CacheSizes = std::array<std::int64_t, 4>;  // sequences, prefix_stride, own_stride, page_size
using Heads = std::array<std::int64_t, 3>;       // query_heads, kv_heads, width

// All but the tensors, which are left null.
inline CachedAttentionArgs over_cache(const CacheTables& tables, const CacheSizes& sizes, const Heads& heads,
                                      float scale, DType dtype) {
    const auto table = [&tables](std::size_t i) { return at<const std::int32_t>(tables[i]); };
    CachedAttentionArgs args{};
    args.query_offsets = table(0);
    args.prefix_of = table(1);
    args.prefix_pages = table(2);
    args.prefix_lengths = table(3);
    args.own_pages = table(4);
    args.own_lengths = table(5);
    args.sequences = sizes[0];
    args.prefix_stride = sizes[1];
    args.own_stride = sizes[2];
    args.page_size = sizes[3];
    args.query_heads = heads[0];
    args.kv_heads = heads[1];
    args.width = heads[2];
    args.scale = scale;
    args.dtype = dtype;
    return args;
}

}  // namespace sftrl::bind
