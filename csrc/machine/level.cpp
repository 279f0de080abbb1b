#include "sftrl/level.h"

#include <atomic>

namespace sftrl {
namespace {

Level detect() noexcept {
#if defined(__x86_64__)
    // __builtin_cpu_supports also asks the system whether it saves the wide registers.
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Level::kScalar;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
        return Level::kAvx2;
    }
    return __builtin_cpu_supports("avx512bf16") ? Level::kAvx512Bf16 : Level::kAvx512;
#else
    return Level::kScalar;
#endif
}

std::atomic<Level>& current() noexcept {
    static std::atomic<Level> chosen{detected_level()};
    return chosen;
}

}  // namespace

Level detected_level() noexcept {
    static const Level found = detect();
    return found;
}

Level level() noexcept { return current().load(std::memory_order_relaxed); }

bool set_level(Level wanted) noexcept {
    if (wanted > detected_level()) return false;
    current().store(wanted, std::memory_order_relaxed);
    return true;
}

}  // namespace sftrl
