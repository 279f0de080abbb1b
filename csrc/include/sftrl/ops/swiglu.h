// The gated activation of Llama's feed-forward layers, and its gradient.
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

struct SwigluBackwardArgs {
    const void* gate_up;  // as above
    const void* grad;     // [rows, width], of what swiglu gave
    void* grad_gate_up;   // [rows, 2 * width]
    void* out;            // [rows, width]: what swiglu gave
    std::int64_t rows, width;
    DType dtype;
};
SFTRL_KERNEL(swiglu_backward, SwigluBackwardArgs)

}  // namespace sftrl
