#include "sftrl/parallel.h"

#include <algorithm>
#include <atomic>
#include <string_view>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#endif

namespace sftrl {
namespace {

// The entry points of libgomp that compiled `#pragma omp parallel` calls; LLVM's and Intel's runtimes have
// them too.
struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags) = nullptr;
    int (*max_threads)() = nullptr;
    int (*in_parallel)() = nullptr;
    int (*team_size)() = nullptr;
};

#if defined(__linux__)
int visit(dl_phdr_info* info, std::size_t, void* found) {
    const std::string_view path = info->dlpi_name ? info->dlpi_name : "";
    const std::string_view file = path.substr(path.rfind('/') + 1);
    const bool named =
        file.starts_with("libgomp") || file.starts_with("libiomp5") || file.starts_with("libomp");
    if (!named) return 0;
    void* const library = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) return 0;
    OpenMP omp;
    omp.parallel = reinterpret_cast<decltype(omp.parallel)>(dlsym(library, "GOMP_parallel"));
    omp.max_threads = reinterpret_cast<decltype(omp.max_threads)>(dlsym(library, "omp_get_max_threads"));
    omp.in_parallel = reinterpret_cast<decltype(omp.in_parallel)>(dlsym(library, "omp_in_parallel"));
    omp.team_size = reinterpret_cast<decltype(omp.team_size)>(dlsym(library, "omp_get_num_threads"));
    if (!omp.parallel || !omp.max_threads || !omp.in_parallel || !omp.team_size) return 0;
    *static_cast<OpenMP*>(found) = omp;
    return 1;  // the library stays referenced, so its functions stay mapped
}
#endif

// Looked for until found: torch may be imported after this module.
const OpenMP* openmp() noexcept {
    static std::atomic<bool> known{false};
    static OpenMP omp;
    if (known.load(std::memory_order_acquire)) return &omp;
#if defined(__linux__)
    static std::atomic_flag busy = ATOMIC_FLAG_INIT;
    if (busy.test_and_set(std::memory_order_acquire)) return nullptr;
    OpenMP found;
    if (!known.load(std::memory_order_acquire) && dl_iterate_phdr(&visit, &found) == 1) {
        omp = found;
        known.store(true, std::memory_order_release);
    }
    busy.clear(std::memory_order_release);
#endif
    return known.load(std::memory_order_acquire) ? &omp : nullptr;
}

std::atomic<ThreadRunner> test_runner{nullptr};
std::atomic<int> test_threads{1};

struct Work {
    std::atomic<std::int64_t> next{0};
    std::int64_t count, grain;
    Chunk chunk;
    void* context;
};

void drain(void* shared) {
    Work& work = *static_cast<Work*>(shared);
    for (;;) {
        const std::int64_t begin = work.next.fetch_add(work.grain, std::memory_order_relaxed);
        if (begin >= work.count) return;
        work.chunk(work.context, begin, std::min(begin + work.grain, work.count));
    }
}

// The threads of one region, of which the one that opened it hands out the work.
class Team {
  public:
    Team(void (*body)(void*), void* context) : body_(body), context_(context) {}

    int size() const { return followers_ + 1; }
    void lead(int threads) noexcept;
    void follow() noexcept {
        for (std::uint64_t seen = 0;;) {
            wait([&] { return turn_.load(std::memory_order_acquire) != seen; });
            ++seen;  // the next turn begins when all have left this one
            if (work_ == nullptr) return;
            drain(work_);
            left_.fetch_add(1, std::memory_order_release);
        }
    }
    // Drained when this returns.
    void share(Work& work) noexcept {
        call(&work);
        drain(&work);
        wait([&] { return left_.load(std::memory_order_acquire) == followers_; });
    }

  private:
    void call(Work* work) noexcept {
        work_ = work;
        left_.store(0, std::memory_order_relaxed);
        turn_.fetch_add(1, std::memory_order_release);
    }

    template <class Done>
    static void wait(const Done& done) noexcept {
        for (int spins = 0; !done();) {
            if (spins == kSpins) {
                std::this_thread::yield();
                continue;
            }
            ++spins;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
    }
    static constexpr int kSpins = 2000;  // some 50 us: longer than what a pass does between two kernels

    void (*const body_)(void*);
    void* const context_;
    int followers_ = 0;
    Work* work_ = nullptr;  // of this turn; none: go home
    // Lines of their own: some watch the one while others write to the other.
    alignas(64) std::atomic<std::uint64_t> turn_{0};
    alignas(64) std::atomic<int> left_{0};
};

thread_local Team* led = nullptr;  // by this thread, while nothing is handed out

void Team::lead(int threads) noexcept {
    followers_ = threads - 1;
    led = this;
    body_(context_);
    led = nullptr;
    call(nullptr);
}

}  // namespace

int max_threads() noexcept {
    if (led) return led->size();
    if (test_runner.load(std::memory_order_acquire)) return test_threads.load(std::memory_order_relaxed);
    const OpenMP* const omp = openmp();
    return omp ? std::max(1, omp->max_threads()) : 1;
}

void set_thread_runner(ThreadRunner runner, int threads) noexcept {
    test_threads.store(std::max(1, threads), std::memory_order_relaxed);
    test_runner.store(runner, std::memory_order_release);
}

void run_chunks(std::int64_t count, std::int64_t grain, Chunk chunk, void* context) noexcept {
    if (count <= 0) return;
    grain = std::max<std::int64_t>(1, grain);
    Work work{{0}, count, grain, chunk, context};
    const std::int64_t chunks = (count + grain - 1) / grain;
    if (chunks == 1) return drain(&work);
    if (Team* const team = std::exchange(led, nullptr)) {
        team->share(work);
        led = team;
        return;
    }
    if (const ThreadRunner runner = test_runner.load(std::memory_order_acquire)) {
        return runner(&drain, &work, test_threads.load(std::memory_order_relaxed));
    }
    const OpenMP* const omp = openmp();
    if (omp == nullptr || omp->in_parallel()) return drain(&work);
    const auto threads = static_cast<unsigned>(std::min<std::int64_t>(chunks, omp->max_threads()));
    if (threads <= 1) return drain(&work);
    omp->parallel(&drain, &work, threads, 0);
}

void hold_team(void (*body)(void*), void* context) noexcept {
    const ThreadRunner runner = test_runner.load(std::memory_order_acquire);
    const OpenMP* const omp = runner ? nullptr : openmp();
    if (led || (!runner && (omp == nullptr || omp->in_parallel()))) return body(context);
    const int threads = runner ? test_threads.load(std::memory_order_relaxed) : omp->max_threads();
    if (threads <= 1) return body(context);
    struct Region {
        Team team;
        std::thread::id leader;
        int (*size)();
    } region{{body, context}, std::this_thread::get_id(), runner ? &max_threads : omp->team_size};
    const auto member = [](void* shared) {
        Region& here = *static_cast<Region*>(shared);
        // Fewer than asked for may have come.
        std::this_thread::get_id() == here.leader ? here.team.lead(here.size()) : here.team.follow();
    };
    runner ? runner(member, &region, threads)
           : omp->parallel(member, &region, static_cast<unsigned>(threads), 0);
}

}  // namespace sftrl
