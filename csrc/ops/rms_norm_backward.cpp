#include <algorithm>
#include <cmath>

#include "sftrl/ops/rms_norm.h"
#include "sftrl/parallel.h"
#include "simd.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::int64_t kColumnsPerChunk = 64;

// vector(i) for each whole vector of a row, and rest(i, count) for what is left.
template <class Vector, class Rest>
SFTRL_INLINE void each_vector(int width, const Vector& vector, const Rest& rest) {
    int i = 0;
    for (; i + kLanes <= width; i += kLanes) vector(i);
    if (i < width) rest(i, width - i);
}

// With n = x scale and d = grad weight: d scale - n scale mean(d n), and the row's part of the weight's
// gradient, grad n, n as it was rounded.
template <class T>
void row(const RmsNormBackwardArgs& a, std::int64_t r, float* sums) {
    const int width = static_cast<int>(a.width);
    const T* const weight = static_cast<const T*>(a.weight);
    const auto at = [&](const void* base) { return static_cast<const T*>(base) + r * a.width; };
    const T *const x = at(a.x), *const grad = at(a.grad), *const passed = a.passed ? at(a.passed) : nullptr;
    T* const out = const_cast<T*>(at(a.grad_x));
    f32x16 squares = splat(0.0f), products = splat(0.0f);
    each_vector(
        width, [&](int i) { squares += load(x + i) * load(x + i); },
        [&](int i, int n) { squares += load_first(x + i, n) * load_first(x + i, n); });
    const float scale = 1.0f / std::sqrt(reduce_add(squares) / static_cast<float>(width) + a.eps);
    const auto gather = [&](f32x16 normed, f32x16 slope, f32x16 w, f32x16 sum) {
        products += slope * w * normed;
        return sum + slope * rounded<T>(normed);
    };
    each_vector(
        width,
        [&](int i) {
            store(gather(load(x + i) * scale, load(grad + i), load(weight + i), load(sums + i)), sums + i);
        },
        [&](int i, int n) {
            store_first(gather(load_first(x + i, n) * scale, load_first(grad + i, n),
                               load_first(weight + i, n), load_first(sums + i, n)),
                        sums + i, n);
        });
    const float mean = reduce_add(products) / static_cast<float>(width);
    const auto slope = [&](f32x16 value, f32x16 g, f32x16 w) {
        return (g * w - value * (scale * mean)) * scale;
    };
    each_vector(
        width,
        [&](int i) {
            const f32x16 own = slope(load(x + i), load(grad + i), load(weight + i));
            store(passed ? own + load(passed + i) : own, out + i);
        },
        [&](int i, int n) {
            const f32x16 own =
                slope(load_first(x + i, n), load_first(grad + i, n), load_first(weight + i, n));
            store_first(passed ? own + load_first(passed + i, n) : own, out + i, n);
        });
}

template <class T>
void run(const RmsNormBackwardArgs& a) {
    const std::int64_t height = rms_norm_backward_height(a.rows), blocks = (a.rows + height - 1) / height;
    parallel_for(blocks, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t b = begin; b < end; ++b) {
            float* const sums = a.scratch + b * a.width;
            std::fill(sums, sums + a.width, 0.0f);
            for (std::int64_t r = b * height; r < std::min(a.rows, (b + 1) * height); ++r) row<T>(a, r, sums);
        }
    });
    // In the order of the blocks, whichever thread had them.
    parallel_for(a.width, kColumnsPerChunk, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            float sum = 0.0f;
            for (std::int64_t b = 0; b < blocks; ++b) sum += a.scratch[b * a.width + i];
            from_float(sum, static_cast<T*>(a.grad_weight) + i);
        }
    });
}

}  // namespace

void rms_norm_backward(const RmsNormBackwardArgs& args) noexcept {
    args.dtype == DType::kFloat32 ? run<float>(args) : run<bf16>(args);
}

}  // namespace sftrl::SFTRL_LEVEL
