// Threads and levels, without Python.
#include <atomic>
#include <vector>

#include "check.h"
#include "sftrl/level.h"
#include "sftrl/parallel.h"

namespace {

using namespace sftrl;

using test::failures, test::threads;

void test_every_index_is_visited_once() {
    for (const std::int64_t count : {0, 1, 7, 64, 1000}) {
        for (const std::int64_t grain : {0, 1, 3, 64, 5000}) {
            std::vector<std::atomic<int>> visits(static_cast<std::size_t>(count));
            parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end) {
                CHECK(begin < end);
                for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
            });
            for (const auto& visit : visits) CHECK(visit == 1);
        }
    }
}

// Short kernels in a row, as a decoder's pass is: each sees all that the one before it wrote.
void test_a_team_is_held_over_many_calls() {
    constexpr std::int64_t kCount = 300, kCalls = 400;
    std::vector<std::int64_t> values(kCount), next(kCount);
    std::atomic<std::int64_t> nested{0};
    with_team([&] {
        for (std::int64_t call = 0; call < kCalls; ++call) {
            parallel_for(kCount, call % 40 + 1, [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t i = begin; i < end; ++i) {
                    next[static_cast<std::size_t>(i)] =
                        values[static_cast<std::size_t>((i + 7) % kCount)] + 1;
                }
            });
            values.swap(next);
        }
        with_team([&] {  // is the one that is held already
            parallel_for(8, 1, [&](std::int64_t begin, std::int64_t) {
                parallel_for(4, 1, [&](std::int64_t, std::int64_t) { nested += begin; });
            });
        });
    });
    for (const std::int64_t value : values) CHECK(value == kCalls);
    CHECK(nested == 4 * 28);
    with_team([&] { nested = 0; });
    CHECK(nested == 0);
}

void test_levels_do_not_rise_above_what_was_detected() {
    const Level best = detected_level();
    CHECK(set_level(Level::kScalar) && level() == Level::kScalar);
    if (best != Level::kAmx) {
        const auto above = static_cast<Level>(static_cast<int>(best) + 1);
        CHECK(!set_level(above) && level() == Level::kScalar);
    }
    CHECK(set_level(best) && level() == best);
}

}  // namespace

int main() {
    CHECK(max_threads() == 1);  // no OpenMP in this process
    test_every_index_is_visited_once();
    test_a_team_is_held_over_many_calls();
    set_thread_runner(&threads, 4);
    CHECK(max_threads() == 4);
    test_every_index_is_visited_once();
    test_a_team_is_held_over_many_calls();
    set_thread_runner(nullptr, 1);
    test_levels_do_not_rise_above_what_was_detected();
    return failures == 0 ? 0 : 1;
}
