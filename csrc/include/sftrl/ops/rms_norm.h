// Root-mean-square normalisation of rows, with the residual addition ahead of it, and its gradients.
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

struct RmsNormBackwardArgs {
    const void* x;       // [rows, width], what was normalised
    const void* weight;  // [width]
    const void* grad;    // [rows, width], of the normalised rows
    const void* passed;  // [rows, width], what x has as gradient from elsewhere, or nullptr
    void* grad_x;        // [rows, width], both together
    void* grad_weight;   // [width]
    float* scratch;      // rms_norm_backward_scratch(rows, width)
    std::int64_t rows, width;
    float eps;
    DType dtype;  // of all six arrays
};
SFTRL_KERNEL(rms_norm_backward, RmsNormBackwardArgs)

// Rows whose gradients of the weight are summed in one run: of the rows alone, so that no thread changes a
// sum.
constexpr std::int64_t rms_norm_backward_height(std::int64_t rows) noexcept {
    return rows > 64 * 64 ? (rows + 63) / 64 : 64;
}
// Floats: a sum for each of those runs.
constexpr std::int64_t rms_norm_backward_scratch(std::int64_t rows, std::int64_t width) noexcept {
    return (rows + rms_norm_backward_height(rows) - 1) / rms_norm_backward_height(rows) * width;
}

}  // namespace sftrl
