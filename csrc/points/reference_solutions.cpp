#include "reference_solutions.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <span>
#include <utility>

#include "sftrl/rational.h"

namespace sftrl {
namespace {

using Hand = std::array<std::int64_t, kHandSize>;
using Ops = std::array<Op, kHandSize - 1>;

constexpr std::size_t kMaxCachedHands = 8192;
constexpr std::string_view kSigns = "+-*/";

// A parenthesisation: up to two groups of positions [first, last], neither inside the other.
struct Shape {
    struct Group {
        std::size_t first, last;
    };
    std::array<Group, 2> groups;
    std::size_t num_groups;
};

constexpr std::array<Shape, 7> kShapes{{
    {{}, 0},
    {{{{0, 1}, {}}}, 1},
    {{{{0, 2}, {}}}, 1},
    {{{{1, 2}, {}}}, 1},
    {{{{1, 3}, {}}}, 1},
    {{{{2, 3}, {}}}, 1},
    {{{{0, 1}, {2, 3}}}, 2},
}};

// The value of `values[0] ops[0] values[1] ...` without parentheses.
Rational chain(std::span<const Rational> values, std::span<const Op> ops) {
    Rational sum, product = values[0];
    Op pending = Op::kAdd;
    for (std::size_t i = 0; i < ops.size(); ++i) {
        if (ops[i] == Op::kMul || ops[i] == Op::kDiv) {
            product = apply(ops[i], product, values[i + 1]);
        } else {
            sum = apply(pending, sum, product);
            pending = ops[i];
            product = values[i + 1];
        }
    }
    return apply(pending, sum, product);
}

Rational value_of(const Hand& numbers, const Ops& ops, const Shape& shape) {
    std::array<Rational, kHandSize> values;
    std::array<Op, kHandSize - 1> outer;
    std::size_t n = 0, group = 0;
    for (std::size_t i = 0; i < kHandSize && n < kHandSize; ++n) {
        std::size_t last = i;
        if (group < shape.num_groups && shape.groups[group].first == i) last = shape.groups[group++].last;
        std::array<Rational, kHandSize> inner;
        for (std::size_t j = i; j <= last; ++j) inner[j - i] = Rational(numbers[j]);
        values[n] = chain(std::span(inner).first(last - i + 1), std::span(ops).subspan(i, last - i));
        if (last + 1 < kHandSize) outer[n] = ops[last];
        i = last + 1;
    }
    return chain(std::span(values).first(n), std::span(outer).first(n - 1));
}

std::string text_of(const Hand& numbers, const Ops& ops, const Shape& shape) {
    std::string out;
    for (std::size_t i = 0; i < kHandSize; ++i) {
        for (std::size_t g = 0; g < shape.num_groups; ++g) out += shape.groups[g].first == i ? "(" : "";
        out += std::to_string(numbers[i]);
        for (std::size_t g = 0; g < shape.num_groups; ++g) out += shape.groups[g].last == i ? ")" : "";
        if (i + 1 < kHandSize) out += kSigns[static_cast<std::size_t>(ops[i])];
    }
    return out;
}

}  // namespace

StoredSolutions::StoredSolutions(std::array<std::int64_t, kHandSize> numbers, std::int64_t target) {
    constexpr std::array<Op, 4> kOps{Op::kAdd, Op::kSub, Op::kMul, Op::kDiv};
    std::sort(numbers.begin(), numbers.end());
    do {
        for (std::size_t code = 0; code < 64; ++code) {
            const Ops ops{kOps[code / 16], kOps[code / 4 % 4], kOps[code % 4]};
            for (const Shape& shape : kShapes) {
                if (value_of(numbers, ops, shape).equals(target))
                    texts_.push_back(text_of(numbers, ops, shape));
            }
        }
    } while (std::next_permutation(numbers.begin(), numbers.end()));
    std::sort(texts_.begin(), texts_.end());
}

bool StoredSolutions::any_begins_with(std::string_view text) const {
    const auto at = std::lower_bound(texts_.begin(), texts_.end(), text);
    return at != texts_.end() && at->starts_with(text);
}

std::shared_ptr<const StoredSolutions> StoredSolutions::of(std::array<std::int64_t, kHandSize> numbers,
                                                           std::int64_t target) {
    using Key = std::pair<Hand, std::int64_t>;
    static std::mutex mutex;
    static std::map<Key, std::shared_ptr<const StoredSolutions>> cache;
    std::sort(numbers.begin(), numbers.end());
    const Key key{numbers, target};
    {
        const std::lock_guard lock(mutex);
        if (const auto found = cache.find(key); found != cache.end()) return found->second;
    }
    auto solutions = std::make_shared<const StoredSolutions>(numbers, target);
    const std::lock_guard lock(mutex);
    if (cache.size() >= kMaxCachedHands) cache.clear();
    return cache.emplace(key, std::move(solutions)).first->second;
}

}  // namespace sftrl
