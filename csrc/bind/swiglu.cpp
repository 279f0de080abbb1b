#include "sftrl/ops/swiglu.h"

#include "bind.h"

namespace sftrl::bind {

void swiglu(pybind11::module_& m) {
    m.def(
        "swiglu",
        [](Address gate_up, Address out, std::int64_t rows, std::int64_t width, int dtype) {
            const pybind11::gil_scoped_release release;
            sftrl::swiglu({at(gate_up), at(out), rows, width, static_cast<DType>(dtype)});
        },
        "Fills out [rows, width]; see SwigluArgs.");
    m.def(
        "swiglu_backward",
        [](Address gate_up, Address grad, Address grad_gate_up, Address out, std::int64_t rows,
           std::int64_t width, int dtype) {
            const pybind11::gil_scoped_release release;
            sftrl::swiglu_backward(
                {at(gate_up), at(grad), at(grad_gate_up), at(out), rows, width, static_cast<DType>(dtype)});
        },
        "Fills grad_gate_up and out; see SwigluBackwardArgs.");
}

}  // namespace sftrl::bind
