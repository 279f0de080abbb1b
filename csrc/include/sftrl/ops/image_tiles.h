// A picture scaled by Pillow's bilinear filter, normalised and cut into tiles.
#pragma once

#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"

namespace sftrl {

// Output place i is the sum of input places first[i] + t, t < taps, times weights[i * taps + t] / 2^22.
struct ResampleWeights {
    const std::int32_t* first;
    const std::int32_t* weights;
    int taps;
};

struct ImageTilesArgs {
    const std::uint8_t* image;  // [height, width, 3]
    std::uint8_t* scratch;      // [3, height, pitch]
    const float* levels;        // [2, 3]: factor and summand of each channel
    void* out;                  // [tile_rows * tile_columns, 3, tile, tile]
    ResampleWeights across, down;
    int height, width;
    int out_height, out_width;  // of the scaled picture, upper left on the tiles; the rest is black
    int pitch;                  // bytes of a line of scratch: at least out_width + 64
    int tile_rows, tile_columns, tile;
    DType dtype;  // of out
};
SFTRL_KERNEL(image_tiles, ImageTilesArgs)

}  // namespace sftrl
