// Reading an answer: the formula and the cards it names, and the value of a formula.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "sftrl/rational.h"

namespace sftrl {

inline constexpr std::size_t kHandSize = 4;
inline constexpr int kNumRanks = 13;  // 1 = A, 11 = J, 12 = Q, 13 = K

// The quoted string of the last `"formula":` or `'formula':` key, cut at the first `=`. Nothing if there is
// no such key or its value is no closed string.
std::optional<std::string_view> find_formula(std::string_view text);

// How often each rank is named; index 0 is not used.
using RankCounts = std::array<std::uint8_t, kNumRanks + 1>;

// The bracketed list of the last `"cards":` or `'cards':` key that has one: A, 2..10, J, Q, K in any case,
// with or without quotes. Nothing if there is no list, it has not four entries, or one of them is no card.
std::optional<RankCounts> find_cards(std::string_view text);

// What a formula says. Meaningful only if `well_formed`.
template <class Value>
struct Parsed {
    bool well_formed = false;
    Value value{};
    std::array<std::int64_t, kHandSize> numbers{};  // the first four; -1 stands for one beyond 64 bits
    std::size_t num_numbers = 0;
};

// Numbers, + - * /, parentheses, blanks between tokens; the usual precedence, from left to right. No
// recursion: the depth of parentheses costs memory only. `Value` needs `Value(std::int64_t)`,
// `Value::overflow()` and `apply(Op, Value, Value)`. One parser serves many formulas and keeps its stacks.
template <class Value>
class FormulaParser {
  public:
    Parsed<Value> parse(std::string_view text) {
        operators_.clear();
        values_.clear();
        Parsed<Value> out;
        bool operand_next = true;
        std::size_t i = 0;
        while (i < text.size()) {
            const char c = text[i];
            if (c == ' ') {
                ++i;
            } else if (operand_next && c == '(') {
                operators_.push_back(c);
                ++i;
            } else if (operand_next && is_digit(c)) {
                if (!read_number(text, i, out)) return out;
                operand_next = false;
            } else if (!operand_next && c == ')') {
                reduce_while(1);
                if (operators_.empty()) return out;
                operators_.pop_back();
                ++i;
            } else if (!operand_next && precedence(c) > 0) {
                reduce_while(precedence(c));
                operators_.push_back(c);
                operand_next = true;
                ++i;
            } else {
                return out;
            }
        }
        if (operand_next) return out;
        reduce_while(1);
        if (!operators_.empty()) return out;
        out.value = values_.back();
        out.well_formed = true;
        return out;
    }

  private:
    static bool is_digit(char c) { return c >= '0' && c <= '9'; }

    static int precedence(char c) {
        if (c == '+' || c == '-') return 1;
        if (c == '*' || c == '/') return 2;
        return 0;  // an open parenthesis on the stack
    }

    static Op op_of(char c) {
        if (c == '+') return Op::kAdd;
        if (c == '-') return Op::kSub;
        return c == '*' ? Op::kMul : Op::kDiv;
    }

    bool read_number(std::string_view text, std::size_t& i, Parsed<Value>& out) {
        const std::size_t start = i;
        while (i < text.size() && is_digit(text[i])) ++i;
        if (text[start] == '0' && i - start > 1) return false;
        std::int64_t number = 0;
        bool fits = true;
        for (std::size_t at = start; at < i && fits; ++at) {
            fits = !__builtin_mul_overflow(number, std::int64_t{10}, &number) &&
                   !__builtin_add_overflow(number, std::int64_t{text[at] - '0'}, &number);
        }
        values_.push_back(fits ? Value(number) : Value::overflow());
        if (out.num_numbers < kHandSize) out.numbers[out.num_numbers] = fits ? number : -1;
        ++out.num_numbers;
        return true;
    }

    void reduce_while(int at_least) {
        while (!operators_.empty() && precedence(operators_.back()) >= at_least) {
            const Value right = values_.back();
            values_.pop_back();
            values_.back() = apply(op_of(operators_.back()), values_.back(), right);
            operators_.pop_back();
        }
    }

    std::vector<char> operators_;
    std::vector<Value> values_;
};

}  // namespace sftrl
