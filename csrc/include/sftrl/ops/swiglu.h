// The gated activation of Llama's feed-forward layers.
#pragma once

#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"

namespace sftrl {

struct SwigluArgs {
    const void* gate_up;  // [rows, 2 * width], contiguous: gates, then what they let through
    void* out;            // [rows, width]
    std::int64_t rows, width;
    DType dtype;
};
SFTRL_KERNEL(swiglu, SwigluArgs)

}  // namespace sftrl
