// A number that tells an array's values from others.
#pragma once

#include <cstdint>

#include "sftrl/level.h"

namespace sftrl {

struct FingerprintArgs {
    const void* words;  // [count] signed integers
    std::int64_t count;
    int width;              // bytes of a word: 1, 2 or 4
    std::uint64_t* result;  // sum of word i times ((i * 0x9E3779B97F4A7C15) | 1), modulo 2^64
};
SFTRL_KERNEL(fingerprint, FingerprintArgs)

}  // namespace sftrl
