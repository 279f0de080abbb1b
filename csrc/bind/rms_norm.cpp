#include "sftrl/ops/rms_norm.h"

#include <pybind11/stl.h>

#include <array>

#include "bind.h"

namespace sftrl::bind {

void rms_norm(pybind11::module_& m) {
    m.def(
        "rms_norm",
        [](Address x, Address residual, Address weight, Address out, Address sum, std::int64_t rows,
           std::int64_t width, float eps, int dtype) {
            const pybind11::gil_scoped_release release;
            sftrl::rms_norm({at(x), at(residual), at(weight), at(out), at(sum), rows, width, eps,
                             static_cast<DType>(dtype)});
        },
        "Fills out, and sum if residual is not 0; see RmsNormArgs.");
    m.def("rms_norm_backward_scratch", &sftrl::rms_norm_backward_scratch,
          "Floats of scratch memory, of rows and width.");
    m.def(
        "rms_norm_backward",
        [](std::array<Address, 7> tensors, std::int64_t rows, std::int64_t width, float eps, int dtype) {
            const pybind11::gil_scoped_release release;
            sftrl::rms_norm_backward({at(tensors[0]), at(tensors[1]), at(tensors[2]), at(tensors[3]),
                                      at(tensors[4]), at(tensors[5]), at<float>(tensors[6]), rows, width, eps,
                                      static_cast<DType>(dtype)});
        },
        "tensors: x, weight, grad, passed, grad_x, grad_weight, scratch; see RmsNormBackwardArgs.");
}

}  // namespace sftrl::bind
