#include "sftrl/level.h"

#include <atomic>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sftrl {
namespace {

#if defined(__x86_64__)
// Whether AMX's matrix registers are there and the system lets this process use them. It must be asked: the
// registers make what it saves of a thread larger by 8 KiB (Linux's Documentation/arch/x86/xstate.rst).
bool may_use_amx() noexcept {
    if (!__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-bf16")) return false;
#if defined(__linux__)
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}
#endif

Level detect() noexcept {
#if defined(__x86_64__)
    // __builtin_cpu_supports also asks the system whether it saves the wide registers.
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Level::kScalar;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
        return Level::kAvx2;
    }
    if (!__builtin_cpu_supports("avx512bf16")) return Level::kAvx512;
    return may_use_amx() ? Level::kAmx : Level::kAvx512Bf16;
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
