// silu(gate) * up for rows that hold both side by side.
#pragma once

#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"

namespace sftrl {

struct SwigluArgs {
    const void* gate_up;  // [rows, 2 width], contiguous: gate, then up
    void* out;            // [rows, width]
    std::int64_t rows, width;
    DType dtype;  // of both arrays
};
SFTRL_KERNEL(swiglu, SwigluArgs)

}  // namespace sftrl
