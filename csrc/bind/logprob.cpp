#include "sftrl/ops/logprob.h"

#include "bind.h"

namespace sftrl::bind {

void logprob(pybind11::module_& m) {
    m.def(
        "logprob_scratch",
        [](std::int64_t rows, std::int64_t width, std::int64_t vocab, int slots, int dtype, bool grad_hidden,
           bool grad_weight) {
            const LogprobInputs in{nullptr, nullptr, nullptr, nullptr, rows,
                                   width,   vocab,   1.0f,    slots,   static_cast<DType>(dtype)};
            std::int64_t bytes = 0;
            sftrl::logprob_scratch({&in, grad_hidden, grad_weight, &bytes});
            return bytes;
        },
        "Bytes of scratch memory; without a gradient those of forward.");
    m.def(
        "logprob_forward",
        [](Address hidden, Address weight, Address targets, Address scratch, std::int64_t rows,
           std::int64_t width, std::int64_t vocab, float scale, int slots, int dtype, Address logp,
           Address entropy, Address lse) {
            const pybind11::gil_scoped_release release;
            const LogprobInputs in{
                at(hidden), at(weight), at<std::int64_t>(targets), at(scratch), rows, width, vocab,
                scale,      slots,      static_cast<DType>(dtype)};
            sftrl::logprob_forward({in, at<float>(logp), at<float>(entropy), at<float>(lse)});
        },
        "Fills logp, entropy and lse; see LogprobForwardArgs.");
    m.def(
        "logprob_backward",
        [](Address hidden, Address weight, Address targets, Address scratch, std::int64_t rows,
           std::int64_t width, std::int64_t vocab, float scale, int slots, int dtype, Address lse,
           Address entropy, Address grad_logp, Address grad_entropy, Address grad_hidden,
           Address grad_weight) {
            const pybind11::gil_scoped_release release;
            const LogprobInputs in{
                at(hidden), at(weight), at<std::int64_t>(targets), at(scratch), rows, width, vocab,
                scale,      slots,      static_cast<DType>(dtype)};
            sftrl::logprob_backward({in, at<float>(lse), at<float>(entropy), at<float>(grad_logp),
                                     at<float>(grad_entropy), at(grad_hidden), at(grad_weight)});
        },
        "Fills the gradients that are not 0; see LogprobBackwardArgs.");
}

}  // namespace sftrl::bind
