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
        [](Address layers, std::int64_t count, std::array<Address, 9> tensors, std::array<Address, 6> tables,
           std::array<std::int64_t, 4> sizes, std::array<std::int64_t, 4> rows,
           std::array<std::int64_t, 3> heads, std::array<Address, 8> shown_tensors,
           std::array<std::int64_t, 4> shown_rows, float eps, float scale, int dtype) {
            const pybind11::gil_scoped_release release;
            const auto attention = [&](const Address* addresses, const std::array<std::int64_t, 4>& of) {
                const auto table = [&](int i) { return at<const std::int32_t>(addresses[i]); };
                return CachedAttentionArgs{nullptr,
                                           nullptr,
                                           nullptr,
                                           nullptr,
                                           table(0),
                                           table(1),
                                           table(2),
                                           table(3),
                                           table(4),
                                           table(5),
                                           of[0],
                                           of[1],
                                           of[2],
                                           heads[0],
                                           heads[1],
                                           of[3],
                                           heads[2],
                                           scale,
                                           static_cast<DType>(dtype)};
            };
            const auto index = [&tensors](std::size_t i) { return at<const std::int64_t>(tensors[i]); };
            const Shown shown{at<const std::int64_t>(shown_tensors[0]), shown_rows[0],
                              at<const bool>(shown_tensors[1]),
                              attention(shown_tensors.data() + 2, shown_rows)};
            sftrl::decoder_layers({at<const DecoderLayer>(layers), count, at(tensors[0]), at(tensors[1]),
                                   at(tensors[2]), index(3), index(4), index(5), at(tensors[6]),
                                   at(tensors[7]), at<std::byte>(tensors[8]), sizes[0], sizes[1], sizes[2],
                                   sizes[3], eps, attention(tables.data(), rows),
                                   shown_rows[0] ? &shown : nullptr});
        },
        "layers: count DecoderLayers as rows of 16 addresses. tensors: x, cos, sin, positions, slots, "
        "wanted, final_norm, out, scratch. tables: as cached_attention. sizes: tokens, rows, hidden, "
        "feed_forward. rows: sequences, prefix_stride, own_stride, page_size. heads: query_heads, kv_heads, "
        "width. shown_tensors: tokens (0: all), follows, tables; shown_rows: as rows, all 0 without "
        "pictures.");
}

}  // namespace sftrl::bind
