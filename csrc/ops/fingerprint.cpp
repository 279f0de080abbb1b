#include "sftrl/ops/fingerprint.h"

#include <atomic>
#include <cstring>

#include "sftrl/parallel.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::uint64_t kFactor = 0x9E3779B97F4A7C15ull;
constexpr std::int64_t kWordsPerChunk = 1 << 15;

std::uint64_t factor_of(std::int64_t i) { return static_cast<std::uint64_t>(i) * kFactor; }

template <class Word>
std::uint64_t sum_of(const Word* words, std::int64_t begin, std::int64_t end) {
    std::uint64_t sum = 0;
    for (std::int64_t i = begin; i < end; ++i) {
        sum += static_cast<std::uint64_t>(static_cast<std::int64_t>(words[i])) * (factor_of(i) | 1);
    }
    return sum;
}

// The case that matters: one product a word, where the compiler makes two of them and waits for each sum.
std::uint64_t sum_of(const std::int32_t* words, std::int64_t begin, std::int64_t end) {
#if defined(__AVX512F__)
    constexpr int lanes = 8;
#elif defined(__AVX2__)
    constexpr int lanes = 4;
#else
    constexpr int lanes = 2;
#endif
    typedef std::int32_t words_of __attribute__((vector_size(4 * lanes)));
    typedef std::int64_t wide __attribute__((vector_size(8 * lanes)));
    typedef std::uint64_t vec __attribute__((vector_size(8 * lanes)));
    constexpr int vectors = 4, step = lanes * vectors;
    vec sums[vectors] = {}, factors[vectors];
    for (int v = 0; v < vectors; ++v) {
        for (int lane = 0; lane < lanes; ++lane) factors[v][lane] = factor_of(begin + v * lanes + lane);
    }
    std::int64_t i = begin;
    for (; i + step <= end; i += step) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            words_of word;
            std::memcpy(&word, words + i + v * lanes, sizeof word);
            sums[v] += (vec) __builtin_convertvector(word, wide) * (factors[v] | 1);
            factors[v] += factor_of(step);
        }
    }
    const vec all = sums[0] + sums[1] + sums[2] + sums[3];
    std::uint64_t sum = sum_of<std::int32_t>(words, i, end);
    for (int lane = 0; lane < lanes; ++lane) sum += all[lane];
    return sum;
}

// Sums modulo 2^64 commute, so neither vector width nor threads change the result.
template <class Word>
void run(const FingerprintArgs& a) {
    std::atomic<std::uint64_t> total{0};
    const Word* const words = static_cast<const Word*>(a.words);
    parallel_for(a.count, kWordsPerChunk, [&](std::int64_t begin, std::int64_t end) {
        total.fetch_add(sum_of(words, begin, end), std::memory_order_relaxed);
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
        default:
            return run<std::int32_t>(args);
    }
}

}  // namespace sftrl::SFTRL_LEVEL
