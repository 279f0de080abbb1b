// Products with packed weights and the vocabulary op against plain loops in double, at every level and on
// several threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "sftrl/ops/linear.h"
#include "sftrl/ops/logprob.h"
#include "sftrl/ops/swiglu.h"
#include "sftrl/parallel.h"

namespace {

using namespace sftrl;

using test::failures, test::threads;

constexpr int kThreads = 4;

// Numbers of either element type, and what they are.
struct Matrix {
    std::vector<double> exact;
    std::vector<unsigned char> bytes;
    DType dtype;

    Matrix(std::size_t count, DType type) : exact(count), bytes(count * size(type)), dtype(type) {}
    static std::size_t size(DType type) { return type == DType::kFloat32 ? 4 : 2; }
    void set(std::size_t i, float value) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        if (dtype == DType::kBFloat16) {
            bits &= 0xFFFF0000u;
            const auto half = static_cast<std::uint16_t>(bits >> 16);
            std::memcpy(bytes.data() + 2 * i, &half, sizeof half);
            std::memcpy(&value, &bits, sizeof value);
        } else {
            std::memcpy(bytes.data() + 4 * i, &bits, sizeof bits);
        }
        exact[i] = static_cast<double>(value);
    }
    double get(std::size_t i) const {
        std::uint32_t bits = 0;
        if (dtype == DType::kBFloat16) {
            std::memcpy(reinterpret_cast<unsigned char*>(&bits) + 2, bytes.data() + 2 * i, 2);
        } else {
            std::memcpy(&bits, bytes.data() + 4 * i, 4);
        }
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return static_cast<double>(value);
    }
};

Matrix random(std::int64_t count, DType dtype, std::mt19937& generator, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    Matrix out(static_cast<std::size_t>(count), dtype);
    for (std::size_t i = 0; i < out.exact.size(); ++i) out.set(i, normal(generator));
    return out;
}

// A result's unit: bfloat16 rounds to 8 bits.
double unit(DType dtype) { return dtype == DType::kFloat32 ? 1e-5 : 1e-2; }

// Rows of a times rows of b, `k` long.
std::vector<double> product(const Matrix& a, const Matrix& b, std::size_t rows, std::size_t n,
                            std::size_t k) {
    std::vector<double> out(rows * n);
    for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t j = 0; j < n; ++j) {
            for (std::size_t i = 0; i < k; ++i) out[r * n + j] += a.exact[r * k + i] * b.exact[j * k + i];
        }
    }
    return out;
}

void test_linear(std::int64_t rows, std::int64_t n, std::int64_t k, DType dtype, DType out_dtype) {
    std::mt19937 generator(static_cast<unsigned>(rows * 1000 + n * 10 + k));
    const std::string name = std::to_string(rows) + " x " + std::to_string(n) + " x " + std::to_string(k);
    const Matrix x = random(rows * k, dtype, generator), weight = random(n * k, dtype, generator);
    const Matrix bias = random(n, dtype, generator);
    std::vector<unsigned char> packed(
        static_cast<std::size_t>(packed_size(n, k, dtype)) * Matrix::size(dtype), 0xFF);
    pack_linear({weight.bytes.data(), packed.data(), n, k, dtype});
    for (const bool biased : {false, true}) {
        Matrix out(static_cast<std::size_t>(rows * n), out_dtype);
        linear({x.bytes.data(), packed.data(), biased ? bias.bytes.data() : nullptr, out.bytes.data(), rows,
                n, k, dtype, out_dtype});
        const std::vector<double> exact = product(x, weight, static_cast<std::size_t>(rows),
                                                  static_cast<std::size_t>(n), static_cast<std::size_t>(k));
        for (std::size_t i = 0; i < exact.size(); ++i) {
            const double wanted = exact[i] + (biased ? bias.exact[i % static_cast<std::size_t>(n)] : 0.0);
            const double off = std::abs(out.get(i) - wanted);
            CHECK(off <= unit(out_dtype) * (std::abs(wanted) + std::sqrt(static_cast<double>(k))), name);
        }
    }
}

// Product and gates at once, and one after the other.
void test_gates(std::int64_t rows, std::int64_t width, std::int64_t k, DType dtype) {
    std::mt19937 generator(static_cast<unsigned>(rows + width));
    const std::int64_t n = 2 * width;
    const Matrix x = random(rows * k, dtype, generator), weight = random(n * k, dtype, generator);
    const Matrix bias = random(n, dtype, generator);
    std::vector<unsigned char> packed(static_cast<std::size_t>(packed_size(n, k, dtype)) *
                                      Matrix::size(dtype));
    pack_linear({weight.bytes.data(), packed.data(), n, k, dtype});
    Matrix gate_up(static_cast<std::size_t>(rows * n), dtype);
    Matrix both(static_cast<std::size_t>(rows * width), dtype), expected = both;
    linear(
        {x.bytes.data(), packed.data(), bias.bytes.data(), gate_up.bytes.data(), rows, n, k, dtype, dtype});
    swiglu({gate_up.bytes.data(), expected.bytes.data(), rows, width, dtype});
    linear_swiglu(
        {x.bytes.data(), packed.data(), bias.bytes.data(), both.bytes.data(), rows, n, k, dtype, dtype});
    CHECK(both.bytes == expected.bytes, std::to_string(rows) + " x " + std::to_string(width));
}

struct Vocabulary {
    std::int64_t rows, width, vocab;
    DType dtype;
    float scale;
};

struct Exact {
    std::vector<double> logp, entropy, grad_hidden, grad_weight;
};

Exact exact_logprob(const Vocabulary& v, const Matrix& hidden, const Matrix& weight,
                    const std::vector<std::int64_t>& targets, const std::vector<float>& grad_logp,
                    const std::vector<float>& grad_entropy) {
    const auto rows = static_cast<std::size_t>(v.rows), width = static_cast<std::size_t>(v.width),
               vocab = static_cast<std::size_t>(v.vocab);
    const std::vector<double> z = product(hidden, weight, rows, vocab, width);
    Exact out{std::vector<double>(rows), std::vector<double>(rows), std::vector<double>(rows * width),
              std::vector<double>(vocab * width)};
    for (std::size_t r = 0; r < rows; ++r) {
        double total = 0;
        for (std::size_t j = 0; j < vocab; ++j) total += std::exp(z[r * vocab + j] * v.scale);
        for (std::size_t j = 0; j < vocab; ++j) {
            const double logp = z[r * vocab + j] * v.scale - std::log(total);
            out.entropy[r] -= std::exp(logp) * logp;
        }
        for (std::size_t j = 0; j < vocab; ++j) {
            const double logp = z[r * vocab + j] * v.scale - std::log(total), p = std::exp(logp);
            const bool chosen = static_cast<std::size_t>(targets[r]) == j;
            if (chosen) out.logp[r] = logp;
            const double d = v.scale * (grad_logp[r] * ((chosen ? 1.0 : 0.0) - p) -
                                        grad_entropy[r] * p * (logp + out.entropy[r]));
            for (std::size_t i = 0; i < width; ++i) {
                out.grad_hidden[r * width + i] += d * weight.exact[j * width + i];
                out.grad_weight[j * width + i] += d * hidden.exact[r * width + i];
            }
        }
    }
    return out;
}

std::vector<unsigned char> scratch(LogprobInputs& in, bool grad_hidden, bool grad_weight) {
    std::int64_t bytes = 0;
    logprob_scratch({&in, grad_hidden, grad_weight, &bytes});
    // Exactly what was asked for, so that a sanitizer sees a step outside; NaN everywhere.
    std::vector<unsigned char> out(static_cast<std::size_t>(bytes), 0xFF);
    in.scratch = out.data();
    return out;
}

double largest(const std::vector<double>& values) {
    double out = 0;
    for (const double value : values) out = std::max(out, std::abs(value));
    return out;
}

void test_logprob(const Vocabulary& v) {
    std::mt19937 generator(static_cast<unsigned>(v.rows + v.vocab));
    const std::string name =
        std::to_string(v.rows) + " x " + std::to_string(v.vocab) + " x " + std::to_string(v.width);
    const auto rows = static_cast<std::size_t>(v.rows);
    const Matrix hidden = random(v.rows * v.width, v.dtype, generator);
    const Matrix weight = random(v.vocab * v.width, v.dtype, generator, 0.5f);
    std::vector<std::int64_t> targets(rows);
    std::vector<float> grad_logp(rows), grad_entropy(rows), logp(rows), entropy(rows), lse(rows);
    for (std::size_t r = 0; r < rows; ++r) {
        targets[r] = static_cast<std::int64_t>(generator() % static_cast<std::uint32_t>(v.vocab));
        grad_logp[r] = static_cast<float>(r % 5) - 2.0f;
        grad_entropy[r] = static_cast<float>(r % 3) - 1.0f;
    }
    LogprobInputs in{hidden.bytes.data(),
                     weight.bytes.data(),
                     targets.data(),
                     nullptr,
                     v.rows,
                     v.width,
                     v.vocab,
                     v.scale,
                     max_threads(),
                     v.dtype};
    {
        const auto memory = scratch(in, false, false);
        logprob_forward({in, logp.data(), entropy.data(), lse.data()});
    }
    Matrix grad_hidden(hidden.exact.size(), v.dtype), grad_weight(weight.exact.size(), v.dtype);
    for (const int wanted : {1, 2, 3}) {
        const auto memory = scratch(in, wanted & 1, wanted & 2);
        logprob_backward({in, lse.data(), entropy.data(), grad_logp.data(), grad_entropy.data(),
                          wanted & 1 ? grad_hidden.bytes.data() : nullptr,
                          wanted & 2 ? grad_weight.bytes.data() : nullptr});
    }
    const Exact exact = exact_logprob(v, hidden, weight, targets, grad_logp, grad_entropy);
    for (std::size_t r = 0; r < rows; ++r) {
        CHECK(std::abs(static_cast<double>(logp[r]) - exact.logp[r]) < 1e-4, name);
        CHECK(std::abs(static_cast<double>(entropy[r]) - exact.entropy[r]) < 1e-4, name);
    }
    const double tolerance = 2 * unit(v.dtype);
    const double hidden_limit = tolerance * largest(exact.grad_hidden),
                 weight_limit = tolerance * largest(exact.grad_weight);
    for (std::size_t i = 0; i < exact.grad_hidden.size(); ++i) {
        CHECK(std::abs(grad_hidden.get(i) - exact.grad_hidden[i]) <= hidden_limit, name);
    }
    for (std::size_t i = 0; i < exact.grad_weight.size(); ++i) {
        CHECK(std::abs(grad_weight.get(i) - exact.grad_weight[i]) <= weight_limit, name);
    }
}

void test_level() {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
        for (const std::int64_t rows : {0, 1, 2, 8, 19, 130}) {
            test_linear(rows, 50, 33, dtype, dtype);
            test_linear(rows, 96, 300, dtype, DType::kFloat32);
        }
        test_linear(3, 1, 1, dtype, dtype);
        test_linear(290, 450, 33, dtype, dtype);  // rows and panels enough to take panels together
        test_gates(35, 48, 33, dtype);
        test_gates(290, 480, 33, dtype);
        test_logprob({1, 1, 1, dtype, 1.0f});
        test_logprob({13, 7, 50, dtype, 0.5f});
        test_logprob({131, 5, 1000, dtype, 2.0f});
    }
    // More rows than one product for the gradient of the weight runs over.
    test_logprob({2051, 3, 20, DType::kBFloat16, 1.0f});
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
    return failures == 0 ? 0 : 1;
}
