// Rewards compared within their groups, and generalised advantage estimates, both in double.
#pragma once

#include <cstdint>

#include "sftrl/level.h"

namespace sftrl {

// Values are part of the binding: the places of KINDS in ops/advantage.py.
enum class GroupKind : int { kMean = 0, kMeanStd = 1, kLeaveOneOut = 2 };

struct GroupAdvantageArgs {
    const double* rewards;       // [count], finite
    const std::int64_t* groups;  // [count]: members share a number; any numbers in any order
    std::int64_t* order;         // [2 count], scratch
    float* out;                  // [count]
    std::int64_t count;
    double tie;  // a group whose rewards spread by no more than this part of its largest gets 0
    GroupKind kind;
};
SFTRL_KERNEL(group_advantage, GroupAdvantageArgs)

struct GaeArgs {
    const double *rewards, *values;  // [count]
    const std::int64_t* offsets;     // [episodes + 1], ascending from 0 to count
    const double* bootstrap;         // [episodes]: the value after the last step; nullptr is 0
    float* out;                      // [count]
    std::int64_t count, episodes;
    double gamma, lam;
};
SFTRL_KERNEL(gae, GaeArgs)

}  // namespace sftrl
