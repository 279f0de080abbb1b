#include "sftrl/ops/cached_attention.h"

#include <pybind11/stl.h>

#include <array>

#include "bind.h"

namespace sftrl::bind {

void cached_attention(pybind11::module_& m) {
    m.def(
        "cached_attention",
        [](std::array<Address, 5> tensors, std::array<Address, 6> tables, std::int64_t sequences,
           std::int64_t prefix_stride, std::int64_t own_stride, std::int64_t query_heads,
           std::int64_t kv_heads, std::int64_t page_size, std::int64_t width, float scale, int dtype) {
            const pybind11::gil_scoped_release release;
            const auto table = [&tables](std::size_t i) { return at<const std::int32_t>(tables[i]); };
            sftrl::cached_attention({at(tensors[0]),
                                     at(tensors[1]),
                                     at(tensors[2]),
                                     at(tensors[3]),
                                     table(0),
                                     table(1),
                                     table(2),
                                     table(3),
                                     table(4),
                                     table(5),
                                     sequences,
                                     prefix_stride,
                                     own_stride,
                                     query_heads,
                                     kv_heads,
                                     page_size,
                                     width,
                                     scale,
                                     static_cast<DType>(dtype),
                                     at<float>(tensors[4])});
        },
        "Fills the last two of tensors (q, k_cache, v_cache, out, lse or 0); tables in the order of "
        "CachedAttentionArgs.");
}

}  // namespace sftrl::bind
