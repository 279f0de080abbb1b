// What the binding files share. pybind11 is included in csrc/bind/ only.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "sftrl/dtype.h"

namespace sftrl::bind {

// Tensors arrive as `tensor.data_ptr()`; 0 is None. The Python side has checked shapes, types and contiguity.
using Address = std::uintptr_t;
template <class T = void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);  // NOLINT: an address is what torch hands out
}

void points(pybind11::module_& m);
void machine(pybind11::module_& m);
void fingerprint(pybind11::module_& m);
void decoder_layers(pybind11::module_& m);
void rms_norm(pybind11::module_& m);
void advantage(pybind11::module_& m);
void packed_attention(pybind11::module_& m);
void sample(pybind11::module_& m);
void linear(pybind11::module_& m);
void logprob(pybind11::module_& m);
void cached_attention(pybind11::module_& m);
void rope_cache(pybind11::module_& m);
void swiglu(pybind11::module_& m);
void image_tiles(pybind11::module_& m);

}  // namespace sftrl::bind
