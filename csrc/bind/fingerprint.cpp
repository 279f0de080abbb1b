#include "sftrl/ops/fingerprint.h"

#include "bind.h"

namespace sftrl::bind {

void fingerprint(pybind11::module_& m) {
    m.def(
        "fingerprints",
        [](Address arrays, std::int64_t count, Address results) {
            const pybind11::gil_scoped_release release;
            sftrl::fingerprints({at<const Words>(arrays), count, at<std::uint64_t>(results)});
        },
        "arrays: Words as rows of 3 integers. results: one of 64 bits each.");
}

}  // namespace sftrl::bind
