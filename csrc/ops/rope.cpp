#include "sftrl/ops/rope.h"

#include <cstring>

#include "sftrl/parallel.h"
#include "simd.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::int64_t kElementsPerChunk = 16384;  // a thread's share must be worth waking it for

template <class T>
struct Head {
    const T* from;
    T* to;
};

// Columns [i, i + count) of both halves of `heads` heads; `step` elements lie between heads of the target.
template <class T, bool kWhole>
SFTRL_INLINE void columns(Head<T> head, std::int64_t heads, std::int64_t step, std::int64_t width, f32x16 c,
                          f32x16 s, int count) {
    const std::int64_t half = width / 2;
    for (std::int64_t h = 0; h < heads; ++h, head.from += width, head.to += step) {
        const f32x16 a = kWhole ? load(head.from) : load_first(head.from, count);
        const f32x16 b = kWhole ? load(head.from + half) : load_first(head.from + half, count);
        const f32x16 first = rounded<T>(a * c) - rounded<T>(b * s);
        const f32x16 second = rounded<T>(b * c) + rounded<T>(a * s);
        if constexpr (kWhole) {
            store(first, head.to);
            store(second, head.to + half);
        } else {
            store_first(first, head.to, count);
            store_first(second, head.to + half, count);
        }
    }
}

template <class T>
void rotate(const T* from, T* to, std::int64_t heads, std::int64_t step, std::int64_t width, const float* cos,
            const float* sin) {
    const std::int64_t half = width / 2;
    std::int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        const f32x16 c = rounded<T>(load(cos + i)), s = rounded<T>(load(sin + i));
        columns<T, true>({from + i, to + i}, heads, step, width, c, s, kLanes);
    }
    if (const int rest = static_cast<int>(half - i)) {
        const f32x16 c = rounded<T>(load_first(cos + i, rest)), s = rounded<T>(load_first(sin + i, rest));
        columns<T, false>({from + i, to + i}, heads, step, width, c, s, rest);
    }
}

template <class T>
void row(const RopeCacheArgs& a, std::int64_t r) {
    const float* const cos = a.cos + a.positions[r] * (a.width / 2);
    const float* const sin = a.sin + a.positions[r] * (a.width / 2);
    rotate(static_cast<const T*>(a.q) + r * a.q_stride, static_cast<T*>(a.out) + r * a.q_heads * a.width,
           a.q_heads, a.width, a.width, cos, sin);
    const std::int64_t slot = a.slots[r];
    if (slot < 0) return;
    const std::int64_t step = a.page * a.width;
    const std::int64_t at = slot / a.page * a.kv_heads * step + slot % a.page * a.width;
    rotate(static_cast<const T*>(a.k) + r * a.k_stride, static_cast<T*>(a.k_cache) + at, a.kv_heads, step,
           a.width, cos, sin);
    const T* value = static_cast<const T*>(a.v) + r * a.v_stride;
    T* to = static_cast<T*>(a.v_cache) + at;
    for (std::int64_t h = 0; h < a.kv_heads; ++h, value += a.width, to += step) {
        std::memcpy(to, value, static_cast<std::size_t>(a.width) * sizeof(T));
    }
}

template <class T>
void run(const RopeCacheArgs& a) {
    const std::int64_t elements = (a.q_heads + 2 * a.kv_heads) * a.width;
    parallel_for(a.rows, kElementsPerChunk / elements + 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) row<T>(a, r);
    });
}

}  // namespace

void rope_cache(const RopeCacheArgs& args) noexcept {
    args.dtype == DType::kFloat32 ? run<float>(args) : run<bf16>(args);
}

}  // namespace sftrl::SFTRL_LEVEL
