#include "sftrl/ops/fingerprint.h"

#include "bind.h"

namespace sftrl::bind {

void fingerprint(pybind11::module_& m) {
    m.def(
        "fingerprint",
        [](Address words, std::int64_t count, int width) {
            const pybind11::gil_scoped_release release;
            std::uint64_t result = 0;
            sftrl::fingerprint({at(words), count, width, &result});
            return result;
        },
        "The number of `count` integers of `width` bytes; see FingerprintArgs.");
}

}  // namespace sftrl::bind
