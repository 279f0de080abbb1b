#include "sftrl/parallel.h"

#include <algorithm>
#include <atomic>
#include <string_view>

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
    if (!omp.parallel || !omp.max_threads || !omp.in_parallel) return 0;
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

}  // namespace

int max_threads() noexcept {
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
    if (const ThreadRunner runner = test_runner.load(std::memory_order_acquire)) {
        return runner(&drain, &work, test_threads.load(std::memory_order_relaxed));
    }
    const OpenMP* const omp = openmp();
    if (omp == nullptr || omp->in_parallel()) return drain(&work);
    const auto threads = static_cast<unsigned>(std::min<std::int64_t>(chunks, omp->max_threads()));
    if (threads <= 1) return drain(&work);
    omp->parallel(&drain, &work, threads, 0);
}

}  // namespace sftrl
