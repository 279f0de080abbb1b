#include "sftrl/ops/packed_attention.h"

#include <pybind11/stl.h>

#include <array>

#include "bind.h"

namespace sftrl::bind {
namespace {

using Addresses = const std::array<Address, 8>&;   // q, k, v, offsets, parent, out, lse, scratch
using Sizes = const std::array<std::int64_t, 5>&;  // T, S, Hq, Hkv, Dh

PackedAttentionArgs arguments(Addresses x, Sizes n, float scale, int dtype) {
    return {at(x[0]),
            at(x[1]),
            at(x[2]),
            at<std::int32_t>(x[3]),
            at<std::int32_t>(x[4]),
            at(x[5]),
            at<float>(x[6]),
            at<float>(x[7]),
            n[0],
            n[1],
            n[2],
            n[3],
            n[4],
            scale,
            static_cast<DType>(dtype)};
}

}  // namespace

void packed_attention(pybind11::module_& m) {
    m.def(
        "packed_attention_scratch",
        [](Sizes sizes, int dtype, bool backward) {
            return packed_attention_scratch(arguments({}, sizes, 0.0f, dtype), backward, level());
        },
        "Floats of scratch memory that the call needs at the current level.");
    m.def(
        "packed_attention",
        [](Addresses addresses, Sizes sizes, float scale, int dtype) {
            const pybind11::gil_scoped_release release;
            sftrl::packed_attention(arguments(addresses, sizes, scale, dtype));
        },
        "Fills out and lse; see PackedAttentionArgs.");
    m.def(
        "packed_attention_backward",
        [](Addresses addresses, const std::array<Address, 4>& grads, Sizes sizes, float scale, int dtype) {
            const pybind11::gil_scoped_release release;
            sftrl::packed_attention_backward({arguments(addresses, sizes, scale, dtype), at(grads[0]),
                                              at(grads[1]), at(grads[2]), at(grads[3])});
        },
        "From out, lse and grads[0] of out, fills grads[1:] of q, k and v; see PackedAttentionBackwardArgs.");
}

}  // namespace sftrl::bind
