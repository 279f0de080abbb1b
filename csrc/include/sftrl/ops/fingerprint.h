// Numbers that tell arrays' values from others.
#pragma once

#include <cstdint>

#include "sftrl/level.h"

namespace sftrl {

struct Words {
    const void* words;  // [count] signed integers
    std::int64_t count;
    std::int64_t width;  // bytes of a word: 1, 2 or 4
};

struct FingerprintsArgs {
    const Words* arrays;     // [count]
    std::int64_t count;      // of arrays
    std::uint64_t* results;  // [count], sum of word i times ((i * 0x9E3779B97F4A7C15) | 1), modulo 2^64
};
SFTRL_KERNEL(fingerprints, FingerprintsArgs)

}  // namespace sftrl
