#include "sftrl/solver.h"

#include <algorithm>
#include <array>
#include <bit>
#include <mutex>
#include <utility>

#include "sftrl/rational.h"

namespace sftrl {
namespace {

using Mask = std::uint32_t;

// One formula over a subset of the positions: a leaf, or two earlier nodes joined.
struct Node {
    std::uint32_t left, right;  // leaf: `left` is the position
    Op op;
    bool leaf;
};

// Every class of formulas over n positions, once each, smaller subsets first; the last `num_whole` use all of
// them (1, 6, 68, 1260, 32632, 1085952 for n = 1..6).
//
// A class is built in one way only. A sum of positive terms is the term that holds the lowest position plus
// the rest; a mixed sum is (sum of its positive terms) - (sum of its negative terms). Products likewise, with
// factors above and below the line. So `kAdd` and `kMul` nodes are pure, and `kSub` and `kDiv` join pure
// nodes.
class FormulaTable {
  public:
    explicit FormulaTable(int n) : per_mask_(std::size_t{1} << n) {
        std::vector<Mask> masks;
        for (Mask mask = 1; mask < (Mask{1} << n); ++mask) masks.push_back(mask);
        std::stable_sort(masks.begin(), masks.end(),
                         [](Mask a, Mask b) { return std::popcount(a) < std::popcount(b); });
        for (const Mask mask : masks) add_formulas_of(mask);
        num_whole_ = per_mask_.back().size();
    }

    const std::vector<Node>& nodes() const { return nodes_; }
    std::size_t first_whole() const { return nodes_.size() - num_whole_; }

    static const FormulaTable& of(int n) {
        static std::array<std::once_flag, kMaxNumbers + 1> flags;
        static std::array<const FormulaTable*, kMaxNumbers + 1> tables{};  // never freed: alive until exit
        const auto i = static_cast<std::size_t>(n);
        std::call_once(flags[i], [&] { tables[i] = new FormulaTable(n); });
        return *tables[i];
    }

  private:
    void add_formulas_of(Mask mask) {
        if (std::has_single_bit(mask)) {
            push(mask, {static_cast<std::uint32_t>(std::countr_zero(mask)), 0, Op::kAdd, true});
            return;
        }
        const Mask lowest = mask & (~mask + 1);
        for (Mask a = (mask - 1) & mask; a != 0; a = (a - 1) & mask) {
            const Mask b = mask & ~a;
            for (const std::uint32_t left : per_mask_[a]) {
                for (const std::uint32_t right : per_mask_[b]) {
                    join(mask, left, right, (a & lowest) != 0, Op::kAdd, Op::kSub);
                    join(mask, left, right, (a & lowest) != 0, Op::kMul, Op::kDiv);
                }
            }
        }
    }

    // `pure` is kAdd or kMul, `inverse` the operator that undoes it.
    void join(Mask mask, std::uint32_t left, std::uint32_t right, bool left_holds_lowest, Op pure,
              Op inverse) {
        const auto is = [&](std::uint32_t i, Op op) { return !nodes_[i].leaf && nodes_[i].op == op; };
        if (is(left, inverse) || is(right, inverse)) return;
        if (left_holds_lowest && !is(left, pure)) push(mask, {left, right, pure, false});
        push(mask, {left, right, inverse, false});
    }

    void push(Mask mask, Node node) {
        per_mask_[mask].push_back(static_cast<std::uint32_t>(nodes_.size()));
        nodes_.push_back(node);
    }

    std::vector<Node> nodes_;
    std::vector<std::vector<std::uint32_t>> per_mask_;
    std::size_t num_whole_ = 0;
};

// The printed form of a node, the same for every node of its class: operands longest first, equals in
// descending order of their text; parentheses only around a sum inside a product.
class Printer {
  public:
    Printer(const std::vector<Node>& nodes, std::span<const std::int64_t> numbers)
        : nodes_(nodes), numbers_(numbers) {}

    std::string print(std::uint32_t index) const {
        const Node& node = nodes_[index];
        if (node.leaf) return std::to_string(numbers_[node.left]);
        const bool sum = node.op == Op::kAdd || node.op == Op::kSub;
        std::vector<std::string> direct, inverse;
        gather(index, sum ? Op::kAdd : Op::kMul, sum ? Op::kSub : Op::kDiv, direct, inverse);
        std::string out;
        for (const std::string& operand : direct) {
            if (!out.empty()) out += sum ? '+' : '*';
            out += operand;
        }
        for (const std::string& operand : inverse) {
            out += sum ? '-' : '/';
            out += operand;
        }
        return out;
    }

  private:
    void gather(std::uint32_t index, Op pure, Op inverse_op, std::vector<std::string>& direct,
                std::vector<std::string>& inverse) const {
        const Node& node = nodes_[index];
        if (node.op == inverse_op) {
            flatten(node.left, pure, direct);
            flatten(node.right, pure, inverse);
        } else {
            flatten(index, pure, direct);
        }
        const auto before = [](const std::string& a, const std::string& b) {
            return a.size() != b.size() ? a.size() > b.size() : a > b;
        };
        std::sort(direct.begin(), direct.end(), before);
        std::sort(inverse.begin(), inverse.end(), before);
    }

    void flatten(std::uint32_t index, Op pure, std::vector<std::string>& out) const {
        while (!nodes_[index].leaf && nodes_[index].op == pure) {
            out.push_back(operand(nodes_[index].left, pure));
            index = nodes_[index].right;
        }
        out.push_back(operand(index, pure));
    }

    std::string operand(std::uint32_t index, Op pure) const {
        std::string text = print(index);
        return pure == Op::kMul && !nodes_[index].leaf ? "(" + text + ")" : text;
    }

    const std::vector<Node>& nodes_;
    std::span<const std::int64_t> numbers_;
};

// Calls `found(index)` for every whole formula with the value; stops when it returns false.
template <class Found>
void search(std::span<const std::int64_t> numbers, std::int64_t target, Found found) {
    const FormulaTable& table = FormulaTable::of(static_cast<int>(numbers.size()));
    const std::vector<Node>& nodes = table.nodes();
    const std::size_t first_whole = table.first_whole();
    std::vector<Rational> values(first_whole);
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        const Node& node = nodes[i];
        const Rational value =
            node.leaf ? Rational(numbers[node.left]) : apply(node.op, values[node.left], values[node.right]);
        if (i < first_whole) {
            values[i] = value;
        } else if (value.equals(target) && !found(static_cast<std::uint32_t>(i))) {
            return;
        }
    }
}

}  // namespace

std::vector<std::string> solve(std::span<const std::int64_t> numbers, std::int64_t target) {
    std::vector<std::string> out;
    const Printer printer(FormulaTable::of(static_cast<int>(numbers.size())).nodes(), numbers);
    search(numbers, target, [&](std::uint32_t index) {
        out.push_back(printer.print(index));
        return true;
    });
    std::sort(out.begin(), out.end(), [](const std::string& a, const std::string& b) {
        return a.size() != b.size() ? a.size() < b.size() : a < b;
    });
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
}

bool solvable(std::span<const std::int64_t> numbers, std::int64_t target) {
    bool any = false;
    search(numbers, target, [&](std::uint32_t) {
        any = true;
        return false;
    });
    return any;
}

}  // namespace sftrl
