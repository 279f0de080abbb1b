#include "sftrl/ops/image_tiles.h"

#include <pybind11/stl.h>

#include <array>

#include "bind.h"

namespace sftrl::bind {

void image_tiles(pybind11::module_& m) {
    m.def(
        "image_tiles",
        [](const std::array<Address, 4>& tensors, const std::array<Address, 4>& weights,
           const std::array<int, 7>& sizes, const std::array<int, 3>& tiles, int dtype) {
            const pybind11::gil_scoped_release release;
            const auto [height, width, out_height, out_width, pitch, taps_across, taps_down] = sizes;
            const auto table = [&](std::size_t i) { return at<const std::int32_t>(weights[i]); };
            sftrl::image_tiles({at<const std::uint8_t>(tensors[0]),
                                at<std::uint8_t>(tensors[1]),
                                at<const float>(tensors[2]),
                                at(tensors[3]),
                                {table(0), table(1), taps_across},
                                {table(2), table(3), taps_down},
                                height,
                                width,
                                out_height,
                                out_width,
                                pitch,
                                tiles[0],
                                tiles[1],
                                tiles[2],
                                static_cast<DType>(dtype)});
        },
        "(image, scratch, levels, out), (first and weights across, first and weights down), (height, width, "
        "out height, out width, pitch, taps across, taps down), (rows, columns, tile); see ImageTilesArgs.");
}

}  // namespace sftrl::bind
