// Product with a packed weight.
#pragma once

#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"

namespace sftrl {

// Columns of a panel of a packed weight: three 512-bit vectors.
inline constexpr int kPanel = 48;

// Elements of the packed form of a weight [n, k]: whole panels, k padded to pairs in bfloat16.
constexpr std::int64_t packed_size(std::int64_t n, std::int64_t k, DType dtype) {
    return (n + kPanel - 1) / kPanel * kPanel * (dtype == DType::kBFloat16 ? (k + 1) / 2 * 2 : k);
}

struct PackLinearArgs {
    const void* weight;  // [n, k], contiguous
    void* packed;        // packed_size(n, k, dtype) elements
    std::int64_t n, k;
    DType dtype;
};
SFTRL_KERNEL(pack_linear, PackLinearArgs)

struct LinearArgs {
    const void* x;       // [rows, k], contiguous
    const void* packed;  // by pack_linear, at any level
    const void* bias;    // [n], or nullptr
    void* out;           // [rows, n] of out_dtype
    std::int64_t rows, n, k;
    DType dtype, out_dtype;  // out_dtype: dtype or float32
};
SFTRL_KERNEL(linear, LinearArgs)

// swiglu of the product, its first half of columns the gates: out is [rows, n / 2], the same bits as by both
// kernels one after the other. Where gates_fill_panels(n); out_dtype is dtype.
SFTRL_KERNEL(linear_swiglu, LinearArgs)

// Whether no panel of n columns holds gates and what they let through.
constexpr bool gates_fill_panels(std::int64_t n) noexcept { return n % (2 * kPanel) == 0; }

}  // namespace sftrl
