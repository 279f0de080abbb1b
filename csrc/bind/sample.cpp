#include "sftrl/ops/sample.h"

#include <pybind11/stl.h>

#include <array>

#include "bind.h"
#include "sftrl/ops/uniforms.h"

namespace sftrl::bind {
namespace {

int fill_uniforms(const std::array<Address, kKeyFields>& addresses,
                  const std::array<std::uint64_t, kKeyFields>& numbers, Address out, std::int64_t count) {
    std::array<KeyField, kKeyFields> fields;
    for (std::size_t f = 0; f < kKeyFields; ++f) {
        fields[f] = {at<const std::uint64_t>(addresses[f]), numbers[f]};
    }
    return uniforms(fields, at<float>(out), count);
}

}  // namespace

void sample(pybind11::module_& m) {
    m.def(
        "sample",
        [](Address logits, std::int64_t stride, Address uniforms, Address temperatures, float temperature,
           Address top_ks, std::int64_t top_k, Address top_ps, float top_p, Address tokens, Address plain,
           Address sampled, Address scratch, int slots, std::int64_t rows, std::int64_t vocab, int dtype) {
            const pybind11::gil_scoped_release release;
            sftrl::sample({at(logits),
                           stride,
                           at<const float>(uniforms),
                           {at<const float>(temperatures), temperature},
                           {at<const std::int64_t>(top_ks), top_k},
                           {at<const float>(top_ps), top_p},
                           at<std::int64_t>(tokens),
                           at<float>(plain),
                           at<float>(sampled),
                           at<float>(scratch),
                           slots,
                           rows,
                           vocab,
                           static_cast<DType>(dtype)});
        },
        "Fills tokens, plain and sampled; see SampleArgs. A setting's address is 0 if one holds for all "
        "rows.");
    m.def("sample_scratch", &sample_scratch, "Floats of scratch that `sample` needs a slot.");
    m.def("uniforms", &fill_uniforms,
          "Fills out; -1, or the index of a field with a number beyond its bits. A field's address (uint64 "
          "numbers) is 0 if its number holds for all.");
}

}  // namespace sftrl::bind
