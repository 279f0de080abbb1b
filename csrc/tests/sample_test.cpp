// Draws against the sorted distribution in double, at every level and on several threads; random numbers
// against the published ones.
#include "sftrl/ops/sample.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "sftrl/ops/uniforms.h"
#include "sftrl/parallel.h"

namespace {

using namespace sftrl;

using test::failures, test::threads;

constexpr int kThreads = 4;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Settings {
    float temperature = 1.0f;
    std::int64_t top_k = 0;
    float top_p = 1.0f;
};

// Rows `vocab + gap` apart; between them stands NaN, which a step beyond a row would find.
struct Logits {
    std::int64_t rows, vocab, stride;
    std::vector<float> values;
    std::vector<unsigned char> bytes;  // as long as what may be read, so that a sanitizer sees more
    DType dtype;

    Logits(std::int64_t row_count, std::int64_t size, std::int64_t gap, DType type, float scale = 3.0f)
        : rows(row_count), vocab(size), stride(size + gap), dtype(type) {
        std::mt19937 generator(static_cast<unsigned>(rows * 100 + vocab));
        std::normal_distribution<float> normal(0.0f, scale);
        values.assign(static_cast<std::size_t>(rows ? (rows - 1) * stride + vocab : 0), kNaN);
        for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t j = 0; j < vocab; ++j) row(r)[j] = normal(generator);
        }
        write();
    }

    float* row(std::int64_t r) { return values.data() + r * stride; }

    // After a change of values: rounds them to the type, towards zero, and fills bytes.
    void write() {
        const std::size_t size = dtype == DType::kFloat32 ? 4 : 2;
        bytes.resize(values.size() * size);
        for (std::size_t i = 0; i < values.size(); ++i) {
            std::uint32_t bits;
            std::memcpy(&bits, &values[i], sizeof bits);
            if (dtype == DType::kBFloat16) bits &= 0xFFFF0000u;
            std::memcpy(&values[i], &bits, sizeof bits);
            std::memcpy(bytes.data() + i * size, reinterpret_cast<unsigned char*>(&bits) + 4 - size, size);
        }
    }
};

struct Draws {
    std::vector<std::int64_t> tokens;
    std::vector<float> plain, sampled;

    // NaN is a result too: bits are what is compared.
    bool operator==(const Draws& other) const {
        return tokens == other.tokens && same(plain, other.plain) && same(sampled, other.sampled);
    }
    static bool same(const std::vector<float>& a, const std::vector<float>& b) {
        return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    }
};

// Settings are one for all rows, or given a row as arrays that hold the same.
Draws draw(const Logits& logits, const std::vector<float>& uniforms, const Settings& s, bool per_row,
           int slots) {
    const auto rows = static_cast<std::size_t>(logits.rows);
    const std::vector<float> temperatures(rows, s.temperature), top_ps(rows, s.top_p);
    const std::vector<std::int64_t> top_ks(rows, s.top_k);
    Draws out{std::vector<std::int64_t>(rows, -1), std::vector<float>(rows, 7.0f),
              std::vector<float>(rows, 7.0f)};
    std::vector<float> scratch(static_cast<std::size_t>(slots * sample_scratch(logits.vocab)), kNaN);
    sample({logits.bytes.data(),
            logits.stride,
            uniforms.data(),
            {per_row ? temperatures.data() : nullptr, per_row ? -1.0f : s.temperature},
            {per_row ? top_ks.data() : nullptr, per_row ? -1 : s.top_k},
            {per_row ? top_ps.data() : nullptr, per_row ? -1.0f : s.top_p},
            out.tokens.data(),
            out.plain.data(),
            out.sampled.data(),
            scratch.data(),
            slots,
            logits.rows,
            logits.vocab,
            logits.dtype});
    return out;
}

// The mass of tokens with weight `least` or more, a token's own, and that of those before it.
struct Masses {
    double all = 0.0, own = 0.0, before = 0.0;
};
Masses masses(const std::vector<double>& weights, double least, std::size_t token) {
    Masses out;
    for (std::size_t j = 0; j < weights.size(); ++j) {
        if (weights[j] < least) continue;
        if (j == token) out.own = weights[j];
        if (j == token) out.before = out.all;
        out.all += weights[j];
    }
    return out;
}

// The least weight that top-k keeps, and then top-p of what is left.
double threshold(const std::vector<double>& weights, std::int64_t top_k, double top_p) {
    std::vector<double> sorted = weights;
    std::sort(sorted.rbegin(), sorted.rend());
    std::size_t kept = sorted.size();
    if (top_k > 0 && static_cast<std::size_t>(top_k) < kept) {
        kept = static_cast<std::size_t>(top_k);
        while (kept < sorted.size() && sorted[kept] == sorted[kept - 1]) ++kept;
    }
    if (!(top_p < 1.0)) return sorted[kept - 1];
    const double need =
        top_p * std::accumulate(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(kept), 0.0);
    double sum = 0.0;
    for (std::size_t j = 0; j < kept; ++j) {
        sum += sorted[j];
        if (sum >= need) return sorted[j];
    }
    return sorted[kept - 1];
}

// Whether a token and its log-probabilities are what `uniform` draws, give or take the rounding of floats.
bool is_right(const float* logits, std::int64_t vocab, const Settings& s, double uniform, std::int64_t token,
              double plain, double sampled) {
    constexpr double kSlack = 2e-5;
    const double top = static_cast<double>(*std::max_element(logits, logits + vocab));
    std::vector<double> weights(static_cast<std::size_t>(vocab)), plainly(weights.size());
    for (std::size_t j = 0; j < weights.size(); ++j) {
        const double below = static_cast<double>(logits[j]) - top;
        plainly[j] = std::exp(below);
        weights[j] = std::exp(below / static_cast<double>(s.temperature));
    }
    const auto at = static_cast<std::size_t>(token);
    const double logp = static_cast<double>(logits[at]) - top - std::log(masses(plainly, 0.0, at).all);
    if (std::abs(plain - logp) > kSlack * (1.0 + std::abs(logp))) return false;
    // Where top-p ends just at a token, rounding decides on which side it is.
    for (const double shift : {0.0, -kSlack, kSlack}) {
        const double top_p = s.top_p < 1.0f ? static_cast<double>(s.top_p) + shift : 1.0;
        const Masses m = masses(weights, threshold(weights, s.top_k, top_p), at);
        const bool inside = m.own > 0.0 && m.before / m.all <= uniform + kSlack &&
                            (m.before + m.own) / m.all >= uniform - kSlack;
        const double under = std::log(m.own / m.all);
        if (inside && std::abs(sampled - under) <= kSlack * (1.0 + std::abs(under))) return true;
    }
    return false;
}

void test_draws(std::int64_t rows, std::int64_t vocab, DType dtype, const Settings& s) {
    Logits logits(rows, vocab, 3, dtype);
    std::vector<float> uniforms(static_cast<std::size_t>(rows));
    for (std::size_t r = 0; r < uniforms.size(); ++r) {  // both ends among them
        uniforms[r] = std::min(
            static_cast<float>(r) / static_cast<float>(std::max<std::int64_t>(rows - 1, 1)), 0x1.fffffep-1f);
    }
    const Draws got = draw(logits, uniforms, s, false, max_threads());
    for (std::int64_t r = 0; r < rows; ++r) {
        const auto i = static_cast<std::size_t>(r);
        CHECK(got.tokens[i] >= 0 && got.tokens[i] < vocab, std::to_string(vocab));
        CHECK(is_right(logits.row(r), vocab, s, static_cast<double>(uniforms[i]), got.tokens[i],
                       static_cast<double>(got.plain[i]), static_cast<double>(got.sampled[i])),
              "row " + std::to_string(r) + " of " + std::to_string(vocab) + ", top_k " +
                  std::to_string(s.top_k) + ", top_p " + std::to_string(s.top_p));
    }
    CHECK(draw(logits, uniforms, s, true, 1) == got, std::to_string(vocab));
}

void test_greedy_takes_the_first_largest() {
    Logits logits(2, 700, 0, DType::kFloat32);
    logits.row(0)[300] = logits.row(0)[650] = 50.0f;
    logits.row(1)[0] = logits.row(1)[1] = 50.0f;
    logits.write();
    const Draws got = draw(logits, {0.9f, 0.9f}, {0.0f, 5, 0.5f}, false, 1);
    CHECK(got.tokens[0] == 300 && got.tokens[1] == 0);
    for (const std::size_t r : {0u, 1u}) {
        CHECK(got.sampled[r] == 0.0f);
        CHECK(std::abs(got.plain[r] + std::log(2.0f)) < 1e-6f);
    }
}

void test_rows_without_a_distribution_are_nan() {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
        Logits logits(5, 521, 1, dtype);
        logits.row(0)[520] = kNaN;
        logits.row(1)[7] = kInf;
        std::fill_n(logits.row(2), 521, -kInf);
        std::fill_n(logits.row(4), 520, -kInf);  // one token is possible
        logits.write();
        for (const Settings& s : {Settings{}, Settings{0.0f}, Settings{0.7f, 9, 0.9f}}) {
            const Draws got = draw(logits, std::vector<float>(5, 0.5f), s, false, 2);
            for (const std::size_t r : {0u, 1u, 2u}) {
                CHECK(std::isnan(got.plain[r]) && std::isnan(got.sampled[r]));
                CHECK(got.tokens[r] >= 0 && got.tokens[r] < 521);
            }
            CHECK(std::isfinite(got.plain[3]) && std::isfinite(got.sampled[3]));
            CHECK(got.tokens[4] == 520 && got.plain[4] == 0.0f && got.sampled[4] == 0.0f);
        }
    }
}

// The answers that come with the authors' own implementation.
void test_random_numbers() {
    CHECK(philox4x32({}, {}) == (Words4{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
    const std::uint32_t ones = 0xFFFFFFFFu;
    CHECK(philox4x32({ones, ones, ones, ones}, {ones, ones}) ==
          (Words4{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
    const std::vector<std::uint64_t> positions{0, 1, 2};
    std::array<KeyField, kKeyFields> fields{};
    fields[5] = {positions.data(), 0};
    std::vector<float> out(positions.size(), kNaN);
    CHECK(uniforms(fields, out.data(), 3) == -1);
    CHECK(out[0] == static_cast<float>(0x6627e8) * 0x1p-24f && out[1] != out[0] && out[2] != out[1]);
    for (int f = 1; f < kKeyFields - 1; ++f) {
        std::array<KeyField, kKeyFields> beyond = fields;
        beyond[static_cast<std::size_t>(f)].number = std::uint64_t{1} << kKeyBits[f];
        CHECK(uniforms(beyond, out.data(), 3) == f);
    }
}

void test_level() {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
        for (const Settings& s : {Settings{}, Settings{0.7f}, Settings{1.0f, 5}, Settings{1.0f, 0, 0.9f},
                                  Settings{1.5f, 40, 0.95f}, Settings{0.01f, 0, 0.5f}}) {
            for (const std::int64_t vocab : {1, 2, 15, 33, 256, 257, 1000}) test_draws(9, vocab, dtype, s);
            test_draws(0, 10, dtype, s);
            test_draws(2, 5003, dtype, s);
        }
    }
    test_greedy_takes_the_first_largest();
    test_rows_without_a_distribution_are_nan();
}

}  // namespace

int main() {
    set_thread_runner(&threads, kThreads);
    const Level best = level();
    for (int i = 0; i <= static_cast<int>(best); ++i) {
        set_level(static_cast<Level>(i));
        test_level();
    }
    set_thread_runner(nullptr, 1);
    test_random_numbers();
    return failures == 0 ? 0 : 1;
}
