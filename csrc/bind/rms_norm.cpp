#include "sftrl/ops/rms_norm.h"

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
}

}  // namespace sftrl::bind
