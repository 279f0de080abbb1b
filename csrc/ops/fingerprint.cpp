#include "sftrl/ops/fingerprint.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "sftrl/parallel.h"
#include "simd.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::uint64_t kFactor = 0x9E3779B97F4A7C15ull;
constexpr std::int64_t kWordsPerChunk = 1 << 17;

std::uint64_t factor_of(std::int64_t i) { return static_cast<std::uint64_t>(i) * kFactor; }

template <class Word>
std::uint64_t sum_of(const Word* words, std::int64_t begin, std::int64_t end) {
    std::uint64_t sum = 0;
    for (std::int64_t i = begin; i < end; ++i) {
        sum += static_cast<std::uint64_t>(static_cast<std::int64_t>(words[i])) * (factor_of(i) | 1);
    }
    return sum;
}

// Words that are asked for ahead of their turn. Prefetchers stop at the end of a page, of which ordinary
// memory has one every 4 KiB: asking 16 KiB ahead made 1.4 times the speed on a processor with AMX. Others
// were not measured.
#if defined(__AMX_BF16__)
constexpr std::int64_t kWordsAhead = 4096;
#else
constexpr std::int64_t kWordsAhead = 0;
#endif

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
    constexpr int vectors = 4, step = lanes * vectors, vectors_a_line = kLine / (4 * lanes);
    vec sums[vectors] = {}, factors[vectors];
    for (int v = 0; v < vectors; ++v) {
        for (int lane = 0; lane < lanes; ++lane) factors[v][lane] = factor_of(begin + v * lanes + lane);
    }
    std::int64_t i = begin;
    for (; i + step <= end; i += step) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            words_of word;
            if (kWordsAhead > 0 && v % vectors_a_line == 0) {
                __builtin_prefetch(words + i + v * lanes + kWordsAhead);
            }
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

std::uint64_t sum_of(const Words& array, std::int64_t begin, std::int64_t end) {
    switch (array.width) {
        case 1:
            return sum_of(static_cast<const std::int8_t*>(array.words), begin, end);
        case 2:
            return sum_of(static_cast<const std::int16_t*>(array.words), begin, end);
        default:
            return sum_of(static_cast<const std::int32_t*>(array.words), begin, end);
    }
}

}  // namespace

// Sums modulo 2^64 commute, so neither vector width nor threads change the result.
void fingerprints(const FingerprintsArgs& a) noexcept {
    std::vector<std::int64_t> firsts{0};  // [count + 1], chunks
    for (std::int64_t i = 0; i < a.count; ++i) {
        firsts.push_back(firsts.back() + (a.arrays[i].count + kWordsPerChunk - 1) / kWordsPerChunk);
    }
    std::vector<std::atomic<std::uint64_t>> sums(static_cast<std::size_t>(a.count));
    parallel_for(firsts.back(), 1, [&](std::int64_t chunk, std::int64_t) {
        const auto i = static_cast<std::size_t>(std::upper_bound(firsts.begin(), firsts.end(), chunk) -
                                                firsts.begin() - 1);
        const Words& array = a.arrays[i];
        const std::int64_t begin = (chunk - firsts[i]) * kWordsPerChunk;
        sums[i].fetch_add(sum_of(array, begin, std::min(array.count, begin + kWordsPerChunk)),
                          std::memory_order_relaxed);
    });
    for (std::int64_t i = 0; i < a.count; ++i) {
        a.results[i] = sums[static_cast<std::size_t>(i)].load(std::memory_order_relaxed);
    }
}

}  // namespace sftrl::SFTRL_LEVEL
