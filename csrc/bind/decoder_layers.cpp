#include "sftrl/ops/decoder_layers.h"

#include <optional>
#include <tuple>

#include "cached_attention.h"

namespace sftrl::bind {

using Pictures = std::tuple<std::array<Address, 2>, CacheTables, CacheSizes>;

void decoder_layers(pybind11::module_& m) {
    m.def("decoder_layers_scratch", &sftrl::decoder_layers_scratch,
          "Elements of scratch a token, of hidden, feed-forward, query and key widths.");
    m.def(
        "decoder_layers",
        [](Address layers, std::int64_t count, const std::array<Address, 9>& tensors,
           const std::array<std::int64_t, 4>& sizes, const CacheTables& tables, const CacheSizes& rows,
           const std::optional<Pictures>& pictures, const Heads& heads, float eps, float scale, int dtype) {
            const pybind11::gil_scoped_release release;
            const auto over = [&](const CacheTables& of, const CacheSizes& with) {
                return over_cache(of, with, heads, scale, static_cast<DType>(dtype));
            };
            std::optional<Shown> shown;
            if (pictures) {
                const auto& [tokens, shown_tables, shown_rows] = *pictures;
                shown = Shown{at<const std::int64_t>(tokens[0]), shown_rows[0], at<const bool>(tokens[1]),
                              over(shown_tables, shown_rows)};
            }
            const auto index = [&tensors](std::size_t i) { return at<const std::int64_t>(tensors[i]); };
            sftrl::decoder_layers({at<const DecoderLayer>(layers), count, at(tensors[0]), at(tensors[1]),
                                   at(tensors[2]), index(3), index(4), index(5), at(tensors[6]),
                                   at(tensors[7]), at<std::byte>(tensors[8]), sizes[0], sizes[1], sizes[2],
                                   sizes[3], eps, over(tables, rows), shown ? &*shown : nullptr});
        },
        "layers: count DecoderLayers as rows of 16 addresses. tensors: x, cos, sin, positions, slots, "
        "wanted, final_norm, out, scratch. sizes: tokens, rows, hidden, feed_forward. tables, rows, heads: "
        "tables, sizes, heads of cached_attention. pictures: those that see one (0: all) and those that "
        "follow one, tables and rows; or None.");
}

}  // namespace sftrl::bind
