#include "sftrl/ops/rms_norm.h"

#include <cmath>

#include "sftrl/parallel.h"
#include "simd.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::int64_t kElementsPerChunk = 4096;  // a thread's share must be worth waking it for

// Rounded to the element type between the steps, as transformers' LlamaRMSNorm does.
template <class T>
void row(const T* x, const T* residual, const T* weight, T* out, T* sum, int width, float eps) {
    const int whole = width / kLanes * kLanes, rest = width - whole;
    f32x16 squares = splat(0.0f);
    for (int i = 0; i < whole; i += kLanes) {
        f32x16 value = load(x + i);
        if (residual) {
            store(value + load(residual + i), sum + i);
            value = load(sum + i);
        }
        squares += value * value;
    }
    if (rest) {
        f32x16 value = load_first(x + whole, rest);
        if (residual) {
            store_first(value + load_first(residual + whole, rest), sum + whole, rest);
            value = load_first(sum + whole, rest);
        }
        squares += value * value;
    }
    const float scale = 1.0f / std::sqrt(reduce_add(squares) / static_cast<float>(width) + eps);
    const T* const from = residual ? sum : x;
    for (int i = 0; i < whole; i += kLanes) {
        store(rounded<T>(load(from + i) * scale) * load(weight + i), out + i);
    }
    if (rest) {
        const f32x16 value = rounded<T>(load_first(from + whole, rest) * scale);
        store_first(value * load_first(weight + whole, rest), out + whole, rest);
    }
}

template <class T>
void run(const RmsNormArgs& a) {
    parallel_for(a.rows, kElementsPerChunk / a.width + 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
            const auto at = [&](const void* base) {
                return base ? static_cast<const T*>(base) + r * a.width : nullptr;
            };
            row(at(a.x), at(a.residual), static_cast<const T*>(a.weight), const_cast<T*>(at(a.out)),
                const_cast<T*>(at(a.sum)), static_cast<int>(a.width), a.eps);
        }
    });
}

}  // namespace

void rms_norm(const RmsNormArgs& args) noexcept {
    args.dtype == DType::kFloat32 ? run<float>(args) : run<bf16>(args);
}

}  // namespace sftrl::SFTRL_LEVEL
