#include "sftrl/ops/swiglu.h"
#include "sftrl/parallel.h"
#include "simd.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::int64_t kElementsPerChunk = 16384;  // a thread's share must be worth waking it for

struct Gradients {
    f32x16 gate, up, out;
};

// With s the sigmoid of the gate: out = gate s up, whose slopes are up s (1 + gate (1 - s)) and gate s.
template <class T>
SFTRL_INLINE Gradients gradients(f32x16 gate, f32x16 up, f32x16 grad) {
    const f32x16 part = exp(-gate) + 1.0f, silu = rounded<T>(gate / part), s = 1.0f / part;
    return {grad * up * (s * (gate * (1.0f - s) + 1.0f)), grad * silu, silu * up};
}

template <class T>
void run(const SwigluBackwardArgs& a) {
    parallel_for(a.rows, kElementsPerChunk / a.width + 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
            const T* const gate = static_cast<const T*>(a.gate_up) + r * 2 * a.width;
            const T* const grad = static_cast<const T*>(a.grad) + r * a.width;
            T* const to = static_cast<T*>(a.grad_gate_up) + r * 2 * a.width;
            T* const out = static_cast<T*>(a.out) + r * a.width;
            std::int64_t i = 0;
            for (; i + kLanes <= a.width; i += kLanes) {
                const Gradients g = gradients<T>(load(gate + i), load(gate + a.width + i), load(grad + i));
                store(g.gate, to + i);
                store(g.up, to + a.width + i);
                store(g.out, out + i);
            }
            if (const int rest = static_cast<int>(a.width - i); rest > 0) {
                const Gradients g =
                    gradients<T>(load_first(gate + i, rest), load_first(gate + a.width + i, rest),
                                 load_first(grad + i, rest));
                store_first(g.gate, to + i, rest);
                store_first(g.up, to + a.width + i, rest);
                store_first(g.out, out + i, rest);
            }
        }
    });
}

}  // namespace

void swiglu_backward(const SwigluBackwardArgs& args) noexcept {
    args.dtype == DType::kFloat32 ? run<float>(args) : run<bf16>(args);
}

}  // namespace sftrl::SFTRL_LEVEL
