// Product with a packed weight.
#pragma once

#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"

namespace sftrl {

// Elements of the packed form of a weight [n, k]: panels of 48 columns, k padded to pairs in bfloat16.
constexpr std::int64_t packed_size(std::int64_t n, std::int64_t k, DType dtype) {
    return (n + 47) / 48 * 48 * (dtype == DType::kBFloat16 ? (k + 1) / 2 * 2 : k);
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

}  // namespace sftrl
