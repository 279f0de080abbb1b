#include "cached_attention.h"

namespace sftrl::bind {

void cached_attention(pybind11::module_& m) {
    m.def(
        "cached_attention",
        [](const std::array<Address, 5>& tensors, const CacheTables& tables, const CacheSizes& sizes,
           const Heads& heads, float scale, int dtype) {
            const pybind11::gil_scoped_release release;
            CachedAttentionArgs args = over_cache(tables, sizes, heads, scale, static_cast<DType>(dtype));
            args.q = at(tensors[0]);
            args.k_cache = at(tensors[1]);
            args.v_cache = at(tensors[2]);
            args.out = at(tensors[3]);
            args.lse = at<float>(tensors[4]);
            sftrl::cached_attention(args);
        },
        "Fills the last two of tensors (q, k_cache, v_cache, out, lse or 0). tables: in the order of "
        "CachedAttentionArgs. sizes: sequences, prefix_stride, own_stride, page_size. heads: query_heads, "
        "kv_heads, width.");
}

}  // namespace sftrl::bind
