// Threads for kernels. There is no pool here: work runs on the OpenMP team that torch has loaded, since two
// pools on the same cores spin against each other. Without one in the process, work runs on the calling
// thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>

namespace sftrl {

// Threads that `parallel_for` may use, the caller included: what torch.set_num_threads set for this thread.
int max_threads() noexcept;

// Calls `work(context)` once on each of `threads` threads and returns when all have returned.
using ThreadRunner = void (*)(void (*work)(void*), void* context, int threads);

// For tests: run on `runner` with `threads` threads instead of OpenMP's; nullptr goes back.
void set_thread_runner(ThreadRunner runner, int threads) noexcept;

using Chunk = void (*)(void* context, std::int64_t begin, std::int64_t end);
void run_chunks(std::int64_t count, std::int64_t grain, Chunk chunk, void* context) noexcept;

// body(begin, end) over consecutive chunks of `grain` (the last may be smaller) that cover [0, count), each
// chunk once, on whichever thread is free: what a chunk computes must not depend on the thread. Nested calls
// run on the calling thread alone.
template <class Body>
void parallel_for(std::int64_t count, std::int64_t grain, Body&& body) noexcept {
    run_chunks(
        count, grain,
        [](void* context, std::int64_t begin, std::int64_t end) {
            (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
}

// Calls `body(context)` on this thread while the rest of the team stands by: each `run_chunks` within only
// hands them work, which costs a fraction of waking them. For kernels in a row with little between them;
// whoever stands by for long gives its core to others.
void hold_team(void (*body)(void*), void* context) noexcept;

template <class Body>
void with_team(Body&& body) noexcept {
    hold_team([](void* context) { (*static_cast<std::remove_reference_t<Body>*>(context))(); },
              const_cast<void*>(static_cast<const void*>(&body)));
}

// body(slot, index) once for each index of [0, count); two calls that run at once have different slots of
// [0, slots), so a slot can stand for a piece of scratch memory.
template <class Body>
void parallel_slots(std::int64_t count, int slots, Body&& body) noexcept {
    std::atomic<std::int64_t> next{0};
    parallel_for(std::min<std::int64_t>(slots, count), 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t slot = begin; slot < end; ++slot) {
            for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
                body(static_cast<int>(slot), i);
            }
        }
    });
}

}  // namespace sftrl
