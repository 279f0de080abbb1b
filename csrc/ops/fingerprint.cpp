#include "sftrl/ops/fingerprint.h"

#include <atomic>

#include "sftrl/parallel.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::uint64_t kFactor = 0x9E3779B97F4A7C15ull;
constexpr std::int64_t kWordsPerChunk = 1 << 17;

// Sums modulo 2^64 commute, so neither vector width nor threads change the result.
template <class Word>
void run(const FingerprintArgs& a) {
    std::atomic<std::uint64_t> total{0};
    const Word* const words = static_cast<const Word*>(a.words);
    parallel_for(a.count, kWordsPerChunk, [&](std::int64_t begin, std::int64_t end) {
        std::uint64_t sum = 0;
        for (std::int64_t i = begin; i < end; ++i) {
            const auto word = static_cast<std::uint64_t>(static_cast<std::int64_t>(words[i]));
            sum += word * ((static_cast<std::uint64_t>(i) * kFactor) | 1);
        }
        total.fetch_add(sum, std::memory_order_relaxed);
    });
    *a.result = total.load(std::memory_order_relaxed);
}

}  // namespace

void fingerprint(const FingerprintArgs& args) noexcept {
    switch (args.width) {
        case 1:
            return run<std::int8_t>(args);
        case 2:
            return run<std::int16_t>(args);
        case 4:
            return run<std::int32_t>(args);
        default:
            return run<std::int64_t>(args);
    }
}

}  // namespace sftrl::SFTRL_LEVEL
