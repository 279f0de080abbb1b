#include "sftrl/ops/decoder_layers.h"

#include <pybind11/stl.h>

#include <array>

#include "bind.h"

namespace sftrl::bind {

void decoder_layers(pybind11::module_& m) {
    m.def("decoder_layers_scratch", &sftrl::decoder_layers_scratch,
          "Elements of scratch a token, of hidden, feed-forward, query and key widths.");
    m.def(
        "decoder_layers",
        [](Address layers, std::int64_t count, std::array<Address, 10> tensors, std::array<Address, 6> tables,
           std::array<std::int64_t, 4> sizes, std::array<std::int64_t, 3> rows,
           std::array<std::int64_t, 4> heads, float eps, float scale, int dtype) {
            const pybind11::gil_scoped_release release;
            const auto table = [&tables](std::size_t i) { return at<const std::int32_t>(tables[i]); };
            const auto index = [&tensors](std::size_t i) { return at<const std::int64_t>(tensors[i]); };
            const CachedAttentionArgs attention{nullptr,
                                                nullptr,
                                                nullptr,
                                                nullptr,
                                                table(0),
                                                table(1),
                                                table(2),
                                                table(3),
                                                table(4),
                                                table(5),
                                                rows[0],
                                                rows[1],
                                                rows[2],
                                                heads[0],
                                                heads[1],
                                                heads[2],
                                                heads[3],
                                                scale,
                                                static_cast<DType>(dtype)};
            sftrl::decoder_layers({at<const DecoderLayer>(layers), count, at(tensors[0]), at(tensors[1]),
                                   at(tensors[2]), index(3), index(4), index(5), at(tensors[6]),
                                   at(tensors[7]), at(tensors[8]), at<std::byte>(tensors[9]), sizes[0],
                                   sizes[1], sizes[2], sizes[3], eps, attention});
        },
        "layers: count DecoderLayers as rows of 14 addresses. tensors: x, cos, sin, positions, slots, "
        "wanted, "
        "final_norm, out, total (0: not asked for), scratch. tables: as cached_attention. sizes: tokens, "
        "rows, hidden, feed_forward. "
        "rows: "
        "sequences, prefix_stride, own_stride. heads: query_heads, kv_heads, page_size, width.");
}

}  // namespace sftrl::bind
