// Log-probability of given tokens and entropy of their distributions, forward and backward, over segments of
// the vocabulary: no table of logits. ops/logprob.py has the contract.
#pragma once

#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"

namespace sftrl {

struct LogprobInputs {
    const void* hidden;           // [rows, width], contiguous
    const void* weight;           // [vocab, width], contiguous
    const std::int64_t* targets;  // [rows], each in [0, vocab)
    void* scratch;                // as many bytes as logprob_scratch says, 64-byte aligned
    std::int64_t rows, width, vocab;
    float scale;  // 1 / temperature
    int slots;    // threads that may work at once: max_threads() of the caller
    DType dtype;  // of hidden, weight and their gradients
};

struct LogprobForwardArgs {
    LogprobInputs in;
    float* logp;     // [rows]
    float* entropy;  // [rows]
    float* lse;      // [rows]: log of the sum of exp(logits * scale), for backward
};
SFTRL_KERNEL(logprob_forward, LogprobForwardArgs)

struct LogprobBackwardArgs {
    LogprobInputs in;
    const float* lse;           // [rows], of forward
    const float* entropy;       // [rows], of forward
    const float* grad_logp;     // [rows], or nullptr
    const float* grad_entropy;  // [rows], or nullptr
    void* grad_hidden;          // [rows, width], or nullptr
    void* grad_weight;          // [vocab, width], or nullptr
};
SFTRL_KERNEL(logprob_backward, LogprobBackwardArgs)

struct LogprobScratchArgs {
    const LogprobInputs* in;        // its pointers are not read
    bool grad_hidden, grad_weight;  // neither: forward
    std::int64_t* bytes;            // the answer
};
SFTRL_KERNEL(logprob_scratch, LogprobScratchArgs)

}  // namespace sftrl
