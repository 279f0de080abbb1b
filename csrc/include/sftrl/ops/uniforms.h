// Counter-based random numbers: Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (SC 2011), keyed as sftrl_fast.ops.sample.uniforms describes.
#pragma once

#include <array>
#include <cstdint>

namespace sftrl {

using Words4 = std::array<std::uint32_t, 4>;
using Words2 = std::array<std::uint32_t, 2>;

Words4 philox4x32(Words4 counter, Words2 key) noexcept;

// seed, step, prompt, sample, turn, position
inline constexpr int kKeyFields = 6;
inline constexpr int kKeyBits[kKeyFields] = {64, 32, 32, 20, 12, 32};

struct KeyField {
    const std::uint64_t* numbers;  // one a key, or nullptr: all keys have `number`
    std::uint64_t number;
};

// Fills out[0, count). Returns -1, or the index of a field that has a number beyond its bits (out is then
// unfinished).
int uniforms(const std::array<KeyField, kKeyFields>& fields, float* out, std::int64_t count) noexcept;

}  // namespace sftrl
