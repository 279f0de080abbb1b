// Advantages of ragged groups and episodes against the definitions, at every level and on several threads.
#include "sftrl/ops/advantage.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "sftrl/parallel.h"

namespace {

using namespace sftrl;

using test::failures, test::threads;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<double> random(std::int64_t count, std::mt19937& generator) {
    std::normal_distribution<double> normal(0.0, 2.0);
    std::vector<double> out(static_cast<std::size_t>(count));
    for (double& x : out) x = normal(generator);
    return out;
}

bool near(float got, double wanted) {
    return std::abs(static_cast<double>(got) - wanted) <= 1e-6 * (1.0 + std::abs(wanted));
}

// Member i compared with its group, member by member.
double compared(const std::vector<double>& rewards, const std::vector<std::int64_t>& groups, std::size_t i,
                GroupKind kind) {
    double sum = 0.0, squares = 0.0, size = 0.0;
    for (std::size_t j = 0; j < rewards.size(); ++j) {
        if (groups[j] == groups[i]) sum += rewards[j], size += 1.0;
    }
    if (size == 1.0) return 0.0;
    for (std::size_t j = 0; j < rewards.size(); ++j) {
        if (groups[j] == groups[i]) squares += std::pow(rewards[j] - sum / size, 2);
    }
    const double others = (sum - rewards[i]) / (size - 1.0);
    if (kind == GroupKind::kLeaveOneOut) return rewards[i] - others;
    return (rewards[i] - sum / size) / (kind == GroupKind::kMean ? 1.0 : std::sqrt(squares / (size - 1.0)));
}

void test_groups(std::int64_t count, bool sorted, std::int64_t apart = 1) {
    std::mt19937 generator(static_cast<unsigned>(count));
    const std::vector<double> rewards = random(count, generator);
    std::vector<std::int64_t> groups(rewards.size()), order(2 * rewards.size());
    for (std::size_t i = 0; i < groups.size(); ++i) {
        const auto drawn = static_cast<std::int64_t>(generator() % 9) - 4;
        groups[i] = sorted ? static_cast<std::int64_t>(i / 5) - 3 : drawn * apart;
    }
    for (const GroupKind kind : {GroupKind::kMean, GroupKind::kMeanStd, GroupKind::kLeaveOneOut}) {
        std::vector<float> out(rewards.size(), kNaN);
        group_advantage({rewards.data(), groups.data(), order.data(), out.data(), count, 1e-6, kind});
        for (std::size_t i = 0; i < out.size(); ++i) {
            CHECK(near(out[i], compared(rewards, groups, i, kind)), std::to_string(count));
        }
    }
}

void test_tied_groups_get_nothing() {
    const std::vector<double> rewards{0.1 + 0.2, 0.3, 1e6, 1e6};
    const std::vector<std::int64_t> groups{7, 7, -1, -1};
    for (const GroupKind kind : {GroupKind::kMean, GroupKind::kMeanStd, GroupKind::kLeaveOneOut}) {
        std::vector<std::int64_t> order(8);
        std::vector<float> out(4, kNaN);
        group_advantage({rewards.data(), groups.data(), order.data(), out.data(), 4, 1e-6, kind});
        for (const float each : out) CHECK(each == 0.0f);
    }
}

void test_episodes(const std::vector<std::int64_t>& lengths, bool with_bootstrap) {
    std::vector<std::int64_t> offsets{0};
    for (const std::int64_t length : lengths) offsets.push_back(offsets.back() + length);
    std::mt19937 generator(static_cast<unsigned>(offsets.back()));
    const auto count = offsets.back(), episodes = static_cast<std::int64_t>(lengths.size());
    const std::vector<double> rewards = random(count, generator), values = random(count, generator);
    const std::vector<double> bootstrap = random(episodes, generator);
    std::vector<float> out(rewards.size(), kNaN);
    gae({rewards.data(), values.data(), offsets.data(), with_bootstrap ? bootstrap.data() : nullptr,
         out.data(), count, episodes, 0.9, 0.8});
    for (std::size_t e = 0; e < lengths.size(); ++e) {
        double following = with_bootstrap ? bootstrap[e] : 0.0, advantage = 0.0;
        for (std::int64_t t = offsets[e + 1] - 1; t >= offsets[e]; --t) {
            const auto i = static_cast<std::size_t>(t);
            advantage = rewards[i] + 0.9 * following - values[i] + 0.9 * 0.8 * advantage;
            following = values[i];
            CHECK(near(out[i], advantage), std::to_string(count));
        }
    }
}

void test_level() {
    for (const std::int64_t count : {0, 1, 2, 31, 200}) {
        test_groups(count, true);
        test_groups(count, false);
        test_groups(count, false, std::int64_t{1} << 60);  // differences take all 64 bits
    }
    test_tied_groups_get_nothing();
    for (const bool with_bootstrap : {false, true}) {
        test_episodes({}, with_bootstrap);
        test_episodes({0, 0}, with_bootstrap);
        test_episodes({3, 0, 1, 700, 0}, with_bootstrap);
        test_episodes(std::vector<std::int64_t>(9000, 5), with_bootstrap);  // work for every thread
    }
}

}  // namespace

int main() {
    set_thread_runner(&threads, 4);
    const Level best = level();
    for (int i = 0; i <= static_cast<int>(best); ++i) {
        set_level(static_cast<Level>(i));
        test_level();
    }
    set_thread_runner(nullptr, 1);
    return failures == 0 ? 0 : 1;
}
