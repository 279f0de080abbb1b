#include "sftrl/ops/linear.h"

#include "bind.h"

namespace sftrl::bind {

void linear(pybind11::module_& m) {
    m.def(
        "packed_size",
        [](std::int64_t n, std::int64_t k, int dtype) {
            return sftrl::packed_size(n, k, static_cast<DType>(dtype));
        },
        "Elements that pack_linear writes.");
    m.def(
        "pack_linear",
        [](Address weight, Address packed, std::int64_t n, std::int64_t k, int dtype) {
            const pybind11::gil_scoped_release release;
            sftrl::pack_linear({at(weight), at(packed), n, k, static_cast<DType>(dtype)});
        },
        "Fills packed; see PackLinearArgs.");
    m.def(
        "linear",
        [](Address x, Address packed, Address bias, Address out, std::int64_t rows, std::int64_t n,
           std::int64_t k, int dtype, int out_dtype) {
            const pybind11::gil_scoped_release release;
            sftrl::linear({at(x), at(packed), at(bias), at(out), rows, n, k, static_cast<DType>(dtype),
                           static_cast<DType>(out_dtype)});
        },
        "Fills out; see LinearArgs.");
}

}  // namespace sftrl::bind
