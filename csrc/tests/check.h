// What the test programs share: a check that counts and goes on, and a team of threads.
#pragma once

#include <cstdio>
#include <string>
#include <thread>
#include <vector>

namespace sftrl::test {

inline int failures = 0;

// `which` names the case where one line checks many.
inline void check(bool ok, const char* what, const char* file, int line, const std::string& which = {}) {
    if (ok) return;
    ++failures;
    std::fprintf(stderr, "%s:%d: failed: %s%s%s\n", file, line, what, which.empty() ? "" : " in ",
                 which.c_str());
}
#define CHECK(condition, ...) \
    ::sftrl::test::check((condition), #condition, __FILE__, __LINE__ __VA_OPT__(, ) __VA_ARGS__)

// A runner for set_thread_runner: `count` threads do the work, this one among them.
inline void threads(void (*work)(void*), void* context, int count) {
    std::vector<std::thread> team;
    for (int i = 1; i < count; ++i) team.emplace_back(work, context);
    work(context);
    for (std::thread& thread : team) thread.join();
}

}  // namespace sftrl::test
