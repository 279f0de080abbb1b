#include "sftrl/ops/advantage.h"

#include <algorithm>
#include <cmath>
#include <utility>

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

// The places 0 to count - 1 by group, those of one group in order: a radix sort by the bytes in which groups
// differ. It stands in one half of a.order.
const std::int64_t* by_group(const GroupAdvantageArgs& a) {
    std::int64_t *from = a.order, *to = a.order + a.count;
    std::int64_t low = a.groups[0], high = low;
    bool sorted = true;
    for (std::int64_t i = 0; i < a.count; ++i) {
        from[i] = i;
        sorted = sorted && a.groups[i] >= high;
        low = std::min(low, a.groups[i]);
        high = std::max(high, a.groups[i]);
    }
    const auto above = [&](std::int64_t group) {
        return static_cast<std::uint64_t>(group) - static_cast<std::uint64_t>(low);
    };
    for (int shift = 0; !sorted && shift < 64 && above(high) >> shift; shift += 8) {
        const auto digit = [&](std::int64_t i) { return above(a.groups[i]) >> shift & 0xFF; };
        std::int64_t next[257] = {};
        for (std::int64_t i = 0; i < a.count; ++i) ++next[digit(i) + 1];
        for (int d = 0; d < 256; ++d) next[d + 1] += next[d];
        for (std::int64_t i = 0; i < a.count; ++i) to[next[digit(from[i])]++] = from[i];
        std::swap(from, to);
    }
    return from;
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
    if (a.count == 0) return;
    const std::int64_t* const order = by_group(a);
    for (std::int64_t begin = 0, end = 0; begin < a.count; begin = end) {
        while (end < a.count && a.groups[order[end]] == a.groups[order[begin]]) ++end;
        compare(a, order + begin, end - begin);
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
