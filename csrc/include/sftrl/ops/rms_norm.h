// Root-mean-square normalisation of rows, with the residual addition ahead of it.
#pragma once

#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"

namespace sftrl {

struct RmsNormArgs {
    const void* x;         // [rows, width], contiguous
    const void* residual;  // [rows, width] added to x first, or nullptr
    const void* weight;    // [width]
    void* out;             // [rows, width]: (x + residual) normalised, times weight
    void* sum;             // [rows, width]: x + residual in the element type; unused without a residual
    std::int64_t rows, width;
    float eps;
    DType dtype;  // of all five arrays
};
SFTRL_KERNEL(rms_norm, RmsNormArgs)

}  // namespace sftrl
