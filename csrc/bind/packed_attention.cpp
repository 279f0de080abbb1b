#include "sftrl/ops/packed_attention.h"

#include <pybind11/stl.h>

#include <array>

#include "bind.h"

namespace sftrl::bind {
namespace {

using Sizes = const std::array<std::int64_t, 5>&;  // T, S, Hq, Hkv, Dh
// q, k, v, offsets, parent, out, lse, scratch; gradients of out, q, k, v
using Addresses = const std::array<Address, 12>&;

PackedAttentionBackwardArgs arguments(Addresses x, Sizes n, float scale, int dtype) {
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
            static_cast<DType>(dtype),
            at(x[8]),
            at(x[9]),
            at(x[10]),
            at(x[11])};
}

}  // namespace

void packed_attention(pybind11::module_& m) {
    m.def(
        "packed_attention_backward_scratch",
        [](Sizes sizes, int dtype) {
            return packed_attention_backward_scratch(arguments({}, sizes, 0.0f, dtype), level());
        },
        "Floats of scratch memory that the call needs at the current level.");
    m.def(
        "packed_attention_backward",
        [](Addresses addresses, Sizes sizes, float scale, int dtype) {
            const pybind11::gil_scoped_release release;
            sftrl::packed_attention_backward(arguments(addresses, sizes, scale, dtype));
        },
        "addresses: q, k, v, offsets, parent, out, lse, scratch, and the gradients of out (read) and of q, k "
        "and v "
        "(filled); see PackedAttentionBackwardArgs.");
}

}  // namespace sftrl::bind
