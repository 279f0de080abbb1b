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

void test_levels_do_not_rise_above_what_was_detected() {
    const Level best = detected_level();
    CHECK(set_level(Level::kScalar) && level() == Level::kScalar);
    if (best != Level::kAvx512Bf16) CHECK(!set_level(Level::kAvx512Bf16) && level() == Level::kScalar);
    CHECK(set_level(best) && level() == best);
}

}  // namespace

int main() {
    CHECK(max_threads() == 1);  // no OpenMP in this process
    test_every_index_is_visited_once();
    set_thread_runner(&threads, 4);
    CHECK(max_threads() == 4);
    test_every_index_is_visited_once();
    set_thread_runner(nullptr, 1);
    test_levels_do_not_rise_above_what_was_detected();
    return failures == 0 ? 0 : 1;
}
