#include "sftrl/ops/advantage.h"

#include <algorithm>
#include <cmath>

#include "sftrl/parallel.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::int64_t kStepsPerChunk = 16384;  // a thread's share must be worth waking it for

// Fills out for one group, the rewards at members[0, size).
void compare(const GroupAdvantageArgs& a, const std::int64_t* members, std::int64_t size) {
    double sum = 0.0, high = a.rewards[members[0]], low = high;
    for (std::int64_t i = 0; i < size; ++i) {
        const double reward = a.rewards[members[i]];
        sum += reward;
        high = std::max(high, reward);
        low = std::min(low, reward);
    }
    const bool tied = high - low <= a.tie * std::max(std::abs(high), std::abs(low));
    const double mean = sum / static_cast<double>(size);
    // A lone member is tied with itself.
    const double others = static_cast<double>(std::max<std::int64_t>(size - 1, 1));
    double scale = 1.0;
    if (a.kind == GroupKind::kLeaveOneOut) scale = static_cast<double>(size) / others;
    if (a.kind == GroupKind::kMeanStd) {
        double squares = 0.0;
        for (std::int64_t i = 0; i < size; ++i) {
            const double off = a.rewards[members[i]] - mean;
            squares += off * off;
        }
        scale = 1.0 / std::sqrt(squares / others);
    }
    for (std::int64_t i = 0; i < size; ++i) {
        a.out[members[i]] = tied ? 0.0f : static_cast<float>((a.rewards[members[i]] - mean) * scale);
    }
}

// One episode, backwards: A_t = r_t + gamma V_{t+1} - V_t + gamma lam A_{t+1}.
void scan(const GaeArgs& a, std::int64_t first, std::int64_t end, double following) {
    double running = 0.0;
    for (std::int64_t t = end - 1; t >= first; --t) {
        running = a.rewards[t] + a.gamma * following - a.values[t] + a.gamma * a.lam * running;
        following = a.values[t];
        a.out[t] = static_cast<float>(running);
    }
}

}  // namespace

// On the calling thread: an update has thousands of rewards, which is less than waking another one costs.
void group_advantage(const GroupAdvantageArgs& a) noexcept {
    bool grouped = true;
    for (std::int64_t i = 0; i < a.count; ++i) {
        a.order[i] = i;
        grouped = grouped && (i == 0 || a.groups[i - 1] <= a.groups[i]);
    }
    if (!grouped) {
        std::sort(a.order, a.order + a.count, [&](std::int64_t i, std::int64_t j) {
            return a.groups[i] != a.groups[j] ? a.groups[i] < a.groups[j] : i < j;
        });
    }
    for (std::int64_t begin = 0, end = 0; begin < a.count; begin = end) {
        while (end < a.count && a.groups[a.order[end]] == a.groups[a.order[begin]]) ++end;
        compare(a, a.order + begin, end - begin);
    }
}

void gae(const GaeArgs& a) noexcept {
    const std::int64_t grain = kStepsPerChunk * a.episodes / std::max<std::int64_t>(a.count, 1) + 1;
    parallel_for(a.episodes, grain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t e = begin; e < end; ++e) {
            scan(a, a.offsets[e], a.offsets[e + 1], a.bootstrap ? a.bootstrap[e] : 0.0);
        }
    });
}

}  // namespace sftrl::SFTRL_LEVEL
