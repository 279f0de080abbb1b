#include "sftrl/ops/swiglu.h"

#include "gated.h"
#include "sftrl/parallel.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::int64_t kElementsPerChunk = 8192;  // a thread's share must be worth waking it for

template <class T>
void run(const SwigluArgs& a) {
    parallel_for(a.rows, kElementsPerChunk / a.width + 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
            const T* const gate = static_cast<const T*>(a.gate_up) + r * 2 * a.width;
            const T* const up = gate + a.width;
            T* const out = static_cast<T*>(a.out) + r * a.width;
            std::int64_t i = 0;
            for (; i + kLanes <= a.width; i += kLanes) store(gated<T>(load(gate + i), load(up + i)), out + i);
            if (const int rest = static_cast<int>(a.width - i); rest > 0) {
                store_first(gated<T>(load_first(gate + i, rest), load_first(up + i, rest)), out + i, rest);
            }
        }
    });
}

}  // namespace

void swiglu(const SwigluArgs& args) noexcept {
    args.dtype == DType::kFloat32 ? run<float>(args) : run<bf16>(args);
}

}  // namespace sftrl::SFTRL_LEVEL
