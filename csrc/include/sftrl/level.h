// Instruction-set levels: every kernel is compiled once a level, and the level is chosen at run time.
#pragma once

#include <string_view>

namespace sftrl {

// In rising order; each includes those before it. Elsewhere than on x86-64 there is only kScalar, which is
// the compiler's baseline for the target.
enum class Level { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmx };
inline constexpr std::string_view kLevelNames[] = {"scalar", "avx2", "avx512", "avx512_bf16", "amx"};

// The highest level that this build holds and this processor and its system run.
Level detected_level() noexcept;

// The level that kernels run at: the detected one, unless `set_level` has lowered it.
Level level() noexcept;

// Run kernels at `wanted` from now on, in every thread. False, and no change, if it is above the detected
// one.
bool set_level(Level wanted) noexcept;

}  // namespace sftrl

// SFTRL_KERNEL(rms_norm, RmsNormArgs) declares sftrl::rms_norm(const RmsNormArgs&), which runs the kernel of
// the current level. Its source is compiled once a level, with SFTRL_LEVEL set, and defines
// sftrl::SFTRL_LEVEL::rms_norm.
#if defined(__x86_64__)
#define SFTRL_KERNEL(name, Args)                  \
    namespace scalar {                            \
    void name(const Args&) noexcept;              \
    }                                             \
    namespace avx2 {                              \
    void name(const Args&) noexcept;              \
    }                                             \
    namespace avx512 {                            \
    void name(const Args&) noexcept;              \
    }                                             \
    namespace avx512_bf16 {                       \
    void name(const Args&) noexcept;              \
    }                                             \
    namespace amx {                               \
    void name(const Args&) noexcept;              \
    }                                             \
    inline void name(const Args& args) noexcept { \
        switch (level()) {                        \
            case Level::kScalar:                  \
                return scalar::name(args);        \
            case Level::kAvx2:                    \
                return avx2::name(args);          \
            case Level::kAvx512:                  \
                return avx512::name(args);        \
            case Level::kAvx512Bf16:              \
                return avx512_bf16::name(args);   \
            case Level::kAmx:                     \
                return amx::name(args);           \
        }                                         \
    }
#else
#define SFTRL_KERNEL(name, Args)     \
    namespace scalar {               \
    void name(const Args&) noexcept; \
    }                                \
    inline void name(const Args& args) noexcept { scalar::name(args); }
#endif
