// Drawing a token a row, with its log-probability under the plain and under the sampled distribution.
#pragma once

#include <cstdint>

#include "sftrl/dtype.h"
#include "sftrl/level.h"

namespace sftrl {

// One setting for all rows, or an array with one a row.
template <class T>
struct PerRow {
    const T* rows;  // nullptr: `all` holds
    T all;
    T operator[](std::int64_t row) const noexcept { return rows ? rows[row] : all; }
};

struct SampleArgs {
    const void* logits;          // [rows, vocab]; a row is contiguous
    std::int64_t stride;         // elements from one row to the next
    const float* uniforms;       // [rows], in [0, 1)
    PerRow<float> temperature;   // 0 takes the first largest logit
    PerRow<std::int64_t> top_k;  // 0 is off
    PerRow<float> top_p;         // 1 is off
    std::int64_t* tokens;        // [rows]
    float *plain, *sampled;      // [rows]; NaN for a row with NaN, +inf or only -inf
    float* scratch;              // [slots, sample_scratch(vocab)]
    int slots;                   // threads that can work at a time
    std::int64_t rows, vocab;
    DType dtype;  // of the logits
};
SFTRL_KERNEL(sample, SampleArgs)

inline constexpr std::int64_t kSampleBlock = 256;  // logits

// Floats that one thread needs. Each block of logits has 16 maxima, two times 16 sums, 16 weights of maxima,
// its mass (a double), the part of it above a range, and the place of its first candidate; candidates come
// twice.
constexpr std::int64_t sample_scratch(std::int64_t vocab) {
    const std::int64_t blocks = (vocab + kSampleBlock - 1) / kSampleBlock;
    return blocks * (4 * 16 + 2 + 2) + 2 * (blocks * kSampleBlock + 16);
}

}  // namespace sftrl
