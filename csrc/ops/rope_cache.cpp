#include "sftrl/ops/rope_cache.h"

#include <cstring>

#include "sftrl/parallel.h"
#include "simd.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::int64_t kElementsPerChunk = 4096;  // a thread's share must be worth waking it for

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), each product rounded to the element type as transformers
// does.
template <class T>
void rotate(const T* x, const T* cos, const T* sin, T* out, int half) {
    const auto step = [&](f32x16 first, f32x16 second, f32x16 c, f32x16 s, auto&& put) {
        put(rounded<T>(first * c) - rounded<T>(second * s), rounded<T>(second * c) + rounded<T>(first * s));
    };
    int i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        step(load(x + i), load(x + half + i), load(cos + i), load(sin + i), [&](f32x16 first, f32x16 second) {
            store(first, out + i);
            store(second, out + half + i);
        });
    }
    if (const int rest = half - i; rest > 0) {
        step(load_first(x + i, rest), load_first(x + half + i, rest), load_first(cos + i, rest),
             load_first(sin + i, rest), [&](f32x16 first, f32x16 second) {
                 store_first(first, out + i, rest);
                 store_first(second, out + half + i, rest);
             });
    }
}

template <class T>
void run(const RopeCacheArgs& a) {
    const int half = static_cast<int>(a.dim / 2);
    const std::int64_t width = (a.heads + 2 * a.kv_heads) * a.dim;
    parallel_for(a.tokens, kElementsPerChunk / width + 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            const T* const cos = static_cast<const T*>(a.cos) + a.positions[t] * half;
            const T* const sin = static_cast<const T*>(a.sin) + a.positions[t] * half;
            for (std::int64_t h = 0; h < a.heads; ++h) {
                rotate(static_cast<const T*>(a.q) + t * a.q_stride + h * a.dim, cos, sin,
                       static_cast<T*>(a.out) + (t * a.heads + h) * a.dim, half);
            }
            if (a.slots[t] < 0) continue;
            const std::int64_t page = a.slots[t] / a.page, offset = a.slots[t] % a.page;
            for (std::int64_t h = 0; h < a.kv_heads; ++h) {
                const std::int64_t place = ((page * a.kv_heads + h) * a.page + offset) * a.dim;
                rotate(static_cast<const T*>(a.k) + t * a.k_stride + h * a.dim, cos, sin,
                       static_cast<T*>(a.k_cache) + place, half);
                std::memcpy(static_cast<T*>(a.v_cache) + place,
                            static_cast<const T*>(a.v) + t * a.v_stride + h * a.dim,
                            static_cast<std::size_t>(a.dim) * sizeof(T));
            }
        }
    });
}

}  // namespace

void rope_cache(const RopeCacheArgs& args) noexcept {
    args.dtype == DType::kFloat32 ? run<float>(args) : run<bf16>(args);
}

}  // namespace sftrl::SFTRL_LEVEL
