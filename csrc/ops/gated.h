// The arithmetic of swiglu, for its kernel and for the product that ends in it.
#pragma once

#include "simd.h"

namespace sftrl::SFTRL_LEVEL {

// silu(gate) is rounded to the element type before the product, as transformers does.
template <class T>
SFTRL_INLINE f32x16 gated(f32x16 gate, f32x16 up) {
    const f32x16 silu = gate / (exp(-gate) + 1.0f);
    return rounded<T>(silu) * up;
}

}  // namespace sftrl::SFTRL_LEVEL
