#include "sftrl/ops/uniforms.h"

namespace sftrl {

Words4 philox4x32(Words4 c, Words2 k) noexcept {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t a = std::uint64_t{0xD2511F53} * c[0], b = std::uint64_t{0xCD9E8D57} * c[2];
        const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
        c = {high(b) ^ c[1] ^ k[0], static_cast<std::uint32_t>(b), high(a) ^ c[3] ^ k[1],
             static_cast<std::uint32_t>(a)};
        k = {k[0] + 0x9E3779B9u, k[1] + 0xBB67AE85u};
    }
    return c;
}

int uniforms(const std::array<KeyField, kKeyFields>& fields, float* out, std::int64_t count) noexcept {
    const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint64_t number[kKeyFields];
        for (int f = 0; f < kKeyFields; ++f) {
            const KeyField& field = fields[static_cast<std::size_t>(f)];
            number[f] = field.numbers ? field.numbers[i] : field.number;
            if (kKeyBits[f] < 64 && number[f] >> kKeyBits[f]) return f;
        }
        const auto [seed, step, prompt, sample, turn, position] = number;
        const Words4 words = philox4x32({low(position), low(prompt), low(step), low(sample << 12 | turn)},
                                        {low(seed), low(seed >> 32)});
        out[i] = static_cast<float>(words[0] >> 8) * 0x1p-24f;
    }
    return -1;
}

}  // namespace sftrl
