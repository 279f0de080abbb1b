// The reward rules of the published code (Chu et al., arXiv 2501.17161), kept with their oddities.
#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include "reference_json.h"
#include "reference_solutions.h"
#include "sftrl/verifier.h"

namespace sftrl {
namespace {

constexpr float kRight = 5.0F, kPartial = 1.0F, kNoSolution = -1.0F, kCardsMisread = -1.5F;
constexpr float kWrongNumbers = -2.0F, kOffence = -3.0F;
constexpr std::size_t kMaxPythonDepth = 200;  // CPython refuses to compile deeper parentheses

// ---- Reading the answer
// --------------------------------------------------------------------------------------

// The regular expression `begin([^stops]{min_length,})end`, where `stops` holds `end`: the first match's
// group.
std::optional<std::string_view> search(std::string_view text, std::string_view begin, char end,
                                       std::string_view stops, std::size_t min_length) {
    for (std::size_t at = text.find(begin); at != std::string_view::npos; at = text.find(begin, at + 1)) {
        const std::size_t first = at + begin.size();
        const std::size_t last = text.find_first_of(stops, first);
        if (last == std::string_view::npos) return std::nullopt;
        if (text[last] == end && last - first >= min_length) return text.substr(first, last - first);
    }
    return std::nullopt;
}

// Whether Python's int() takes every part between `, `. Only texts of ASCII digits matter here: any other
// text that int() takes names no card either way.
bool splits_into_integers(std::string_view inside) {
    for (;;) {
        const std::size_t comma = inside.find(", ");
        std::string_view part = inside.substr(0, comma);
        while (!part.empty() && part.front() == ' ') part.remove_prefix(1);
        while (!part.empty() && part.back() == ' ') part.remove_suffix(1);
        if (part.empty() || part.find_first_not_of("0123456789") != std::string_view::npos) return false;
        if (comma == std::string_view::npos) return true;
        inside.remove_prefix(comma + 2);
    }
}

// 1..13, or 0 if it is no card's name.
std::size_t rank_of(std::string_view name) {
    static constexpr std::array<std::string_view, kNumRanks> kNames{"A", "2", "3",  "4", "5", "6", "7",
                                                                    "8", "9", "10", "J", "Q", "K"};
    const auto found = std::find(kNames.begin(), kNames.end(), name);
    return found == kNames.end() ? 0 : static_cast<std::size_t>(found - kNames.begin()) + 1;
}

// The recognised cards; nothing unless there are four and each is one.
std::optional<RankCounts> split_cards(std::string_view text) {
    RankCounts counts{};
    std::size_t parts = 0;
    std::string part;
    for (std::size_t i = 0; i <= text.size(); ++i) {
        if (i == text.size() || text[i] == ',') {
            const std::size_t rank = rank_of(part);
            if (rank == 0) return std::nullopt;
            ++parts;
            if (parts > kHandSize) return std::nullopt;
            ++counts[rank];
            part.clear();
        } else if (text[i] != '[' && text[i] != ']' && text[i] != '\'' && text[i] != ' ') {
            part += text[i];
        }
    }
    return parts == kHandSize ? std::optional(counts) : std::nullopt;
}

struct Answer {
    std::string formula;
    bool formula_is_text = true;
    std::optional<RankCounts> cards;
};

Answer read_answer(std::string_view text) {
    const JsonAnswer json = read_json_answer(text);
    Answer answer;
    if (json.formula.present) {
        answer.formula_is_text = json.formula.text.has_value();
        answer.formula = json.formula.text.value_or("");
    } else {
        answer.formula = search(text, "\"formula\": \"", '"', "\"\n", 0).value_or("None");
    }
    answer.formula.resize(std::min(answer.formula.find('='), answer.formula.size()));
    if (json.cards.present) {
        if (json.cards.text) answer.cards = split_cards(*json.cards.text);
    } else if (const auto inside = search(text, "\"cards\": [", ']', "]", 1)) {
        if (!splits_into_integers(*inside)) answer.cards = split_cards(*inside);
    }
    return answer;
}

bool same_cards(const std::optional<RankCounts>& cards, const Question& question) {
    RankCounts expected{};
    for (const std::int64_t rank : question.ranks) ++expected[static_cast<std::size_t>(rank)];
    return cards == expected;
}

// ---- Tokens
// --------------------------------------------------------------------------------------------------

enum class TokenKind { kStart, kNumber, kOperator, kOpen, kClose };

struct Token {
    TokenKind kind;
    std::size_t begin, end;  // bytes of the formula
    std::string integer;     // of a number: as Python prints it
};

// First code points of the runs 0..9 of Unicode 14's decimal digits.
constexpr std::array<char32_t, 66> kZeros{
    0x30,    0x660,   0x6F0,   0x7C0,   0x966,   0x9E6,   0xA66,   0xAE6,   0xB66,   0xBE6,   0xC66,
    0xCE6,   0xD66,   0xDE6,   0xE50,   0xED0,   0xF20,   0x1040,  0x1090,  0x17E0,  0x1810,  0x1946,
    0x19D0,  0x1A80,  0x1A90,  0x1B50,  0x1BB0,  0x1C40,  0x1C50,  0xA620,  0xA8D0,  0xA900,  0xA9D0,
    0xA9F0,  0xAA50,  0xABF0,  0xFF10,  0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0,
    0x11450, 0x114D0, 0x11650, 0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x16A60,
    0x16AC0, 0x16B50, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E950, 0x1FBF0};

// The decimal digit at `at` and its length in bytes; nothing if the text goes on otherwise or is no UTF-8.
std::optional<std::pair<int, std::size_t>> digit_at(std::string_view text, std::size_t at) {
    if (at >= text.size()) return std::nullopt;
    const auto lead = static_cast<unsigned char>(text[at]);
    const std::size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if (lead >= 0x80 && (lead < 0xC2 || lead > 0xF4)) return std::nullopt;
    if (at + length > text.size()) return std::nullopt;
    char32_t code = length == 1 ? lead : lead & (0xFFU >> (length + 1));
    for (std::size_t i = 1; i < length; ++i) {
        const auto tail = static_cast<unsigned char>(text[at + i]);
        if ((tail & 0xC0) != 0x80) return std::nullopt;
        code = (code << 6) | (tail & 0x3F);
    }
    if (length >= 3 && code < (length == 3 ? 0x800U : 0x10000U)) return std::nullopt;  // overlong
    const auto above = std::upper_bound(kZeros.begin(), kZeros.end(), code);
    if (above == kZeros.begin() || code - *(above - 1) > 9) return std::nullopt;
    return std::pair{static_cast<int>(code - *(above - 1)), length};
}

// Nothing if the formula holds anything but tokens.
std::optional<std::vector<Token>> tokenize(std::string_view text) {
    std::vector<Token> tokens;
    tokens.reserve(std::min<std::size_t>(text.size(), 32));  // most formulas, in one piece
    for (std::size_t at = 0; at < text.size();) {
        Token token{TokenKind::kNumber, at, at, ""};
        while (const auto digit = digit_at(text, token.end)) {
            token.integer += static_cast<char>('0' + digit->first);
            token.end += digit->second;
        }
        if (token.end > at) {
            token.integer.erase(0, std::min(token.integer.find_first_not_of('0'), token.integer.size() - 1));
        } else {
            const char c = text[at];
            if (c == '(') {
                token.kind = TokenKind::kOpen;
            } else if (c == ')') {
                token.kind = TokenKind::kClose;
            } else if (c == '+' || c == '-' || c == '*' || c == '/') {
                token.kind = TokenKind::kOperator;
            } else {
                return std::nullopt;
            }
            ++token.end;
        }
        at = token.end;
        tokens.push_back(std::move(token));
    }
    return tokens;
}

// Collects the reward and, if wanted, the parts of the message.
class Report {
  public:
    explicit Report(std::string* message) : message_(message) {}

    void add(float reward, std::string_view part) {
        add(reward, [part] { return part; });
    }

    // `part()` is called only if there is a message to make.
    template <class Part>
        requires std::is_invocable_v<Part>
    void add(float reward, Part part) {
        reward_ += reward;
        if (message_ == nullptr) return;
        if (!message_->empty()) *message_ += ", ";
        *message_ += part();
    }

    void finish() {
        if (message_ != nullptr) *message_ += '.';
    }
    float reward() const { return reward_; }

  private:
    std::string* message_;
    float reward_ = 0;
};

// Returns the deepest nesting.
std::size_t check_order(const std::vector<Token>& tokens, Report& report) {
    using enum TokenKind;
    TokenKind before = kStart;
    std::size_t open = 0, deepest = 0;
    for (const Token& token : tokens) {
        const bool after_value = before == kNumber || before == kClose;
        switch (token.kind) {
            case kNumber:
                if (after_value) report.add(kOffence, "invalid sequence after number");
                break;
            case kOperator:
                if (!after_value) report.add(kOffence, "invalid sequence after operator");
                break;
            case kOpen:
                if (after_value) {
                    report.add(kOffence, "invalid sequence before '('");
                } else {
                    deepest = std::max(deepest, ++open);
                }
                break;
            case kClose:
                if (!after_value) {
                    report.add(kOffence, "invalid sequence after ')'");
                } else if (open == 0) {
                    report.add(kOffence, "unmatched closing parenthesis");
                } else {
                    --open;
                }
                break;
            case kStart:
                break;
        }
        before = token.kind;
    }
    return deepest;
}

template <class Items>
std::string printed(const Items& integers) {
    std::string out = "[";
    for (const auto& integer : integers) {
        if (out.size() > 1) out += ", ";
        out += integer;
    }
    return out += ']';
}

void check_numbers(const std::vector<Token>& tokens, const Question& question, Report& report) {
    std::vector<std::string> hand;  // distinct, in order of first appearance
    std::array<int, kHandSize> held{}, used{};
    const auto place = [&](const std::string& integer) {
        return static_cast<std::size_t>(std::find(hand.begin(), hand.end(), integer) - hand.begin());
    };
    for (const std::int64_t number : question.numbers) {
        const std::size_t i = place(std::to_string(number));
        if (i == hand.size()) hand.push_back(std::to_string(number));
        ++held[i];
    }
    std::vector<std::string_view> invalid, too_often, too_seldom;
    std::vector<std::size_t> order;  // places in `hand`, as the formula comes to them
    std::unordered_set<std::string_view> seen_invalid;
    for (const Token& token : tokens) {
        if (token.kind != TokenKind::kNumber) continue;
        const std::size_t i = place(token.integer);
        if (i == hand.size()) {
            if (seen_invalid.insert(token.integer).second) invalid.push_back(token.integer);
        } else if (used[i]++ == 0) {
            order.push_back(i);
        }
    }
    for (const std::size_t i : order) {
        if (used[i] > held[i]) too_often.push_back(hand[i]);
    }
    for (std::size_t i = 0; i < hand.size(); ++i) {
        if (used[i] < held[i]) too_seldom.push_back(hand[i]);
    }
    if (!invalid.empty()) {
        report.add(kWrongNumbers, [&] { return "you used invalid numbers: " + printed(invalid); });
    } else if (!too_often.empty()) {
        report.add(kWrongNumbers,
                   [&] { return "you used numbers: " + printed(too_often) + " too many times"; });
    }
    if (!too_seldom.empty()) {
        report.add(kWrongNumbers, [&] { return "you didn't use numbers: " + printed(too_seldom); });
    }
}

// Python's float arithmetic. The formulas that get this far hold the hand's numbers alone, so that every
// intermediate integer is exact in a double.
struct PythonFloat {
    double value = 0;
    bool defined = true;

    PythonFloat() = default;
    explicit PythonFloat(std::int64_t integer) : value(static_cast<double>(integer)) {}
    static PythonFloat overflow() { return PythonFloat{}; }  // unreachable for a hand's numbers

    friend PythonFloat apply(Op op, PythonFloat a, PythonFloat b) {
        a.defined = a.defined && b.defined && !(op == Op::kDiv && b.value == 0);
        switch (op) {
            case Op::kAdd:
                a.value += b.value;
                break;
            case Op::kSub:
                a.value -= b.value;
                break;
            case Op::kMul:
                a.value *= b.value;
                break;
            case Op::kDiv:
                a.value = a.defined ? a.value / b.value : 0;
                break;
        }
        return a;
    }
};

// The judgement of a formula whose tokens and numbers are in order.
Outcome check_value(const std::string& formula, const std::vector<Token>& tokens, std::size_t depth,
                    const Question& question, Report& report) {
    FormulaParser<PythonFloat> parser;
    const Parsed<PythonFloat> parsed = parser.parse(formula);
    const bool compiles = parsed.well_formed && depth <= kMaxPythonDepth;
    const bool evaluates = compiles && parsed.value.defined;
    if (evaluates && parsed.value.value == static_cast<double>(question.target)) {
        report.add(kRight, "Correct solution");
        return Outcome::kRight;
    }
    const Outcome outcome = !compiles    ? Outcome::kMalformed
                            : !evaluates ? Outcome::kUndefinedValue
                                         : Outcome::kWrongValue;
    const auto solutions = StoredSolutions::of(question.numbers, question.target);
    const std::string_view text = formula;
    if (!evaluates && solutions->any_begins_with(text)) {
        report.add(kPartial, "partial solution");
        return outcome;
    }
    for (const Token& token : tokens) {
        if (solutions->any_begins_with(text.substr(0, token.end))) continue;
        report.add(kNoSolution, [&] {
            if (token.begin == 0) return std::string("your formula does not match any solution");
            return formula.substr(0, token.begin) +
                   " is partially correct but the full formula does not match any solution";
        });
        break;
    }
    return outcome;
}

Outcome check_formula(const Answer& answer, const Question& question, Report& report) {
    const auto tokens = tokenize(answer.formula);
    if (!tokens || !answer.formula_is_text) {
        report.add(kOffence, "illegal characters");
        return Outcome::kMalformed;
    }
    const std::size_t depth = check_order(*tokens, report);
    const bool in_order = report.reward() == 0;
    check_numbers(*tokens, question, report);
    if (!in_order) return Outcome::kMalformed;
    if (report.reward() != 0) return Outcome::kWrongNumbers;
    return check_value(answer.formula, *tokens, depth, question, report);
}

}  // namespace

Verdict verify_reference(std::string_view text, const Question& question, std::string* message) {
    if (message != nullptr) message->clear();
    const Answer answer = read_answer(text);
    Verdict verdict;
    verdict.cards_ok = same_cards(answer.cards, question);
    if (question.cards_shown && !verdict.cards_ok) {
        verdict.reward = kCardsMisread;
        verdict.outcome = Outcome::kWrongNumbers;
        if (message != nullptr) *message = "you recognized wrong cards";
        return verdict;
    }
    Report report(message);
    verdict.outcome = check_formula(answer, question, report);
    report.finish();
    verdict.reward = report.reward();
    FormulaParser<Rational> parser;
    if (const Parsed<Rational> parsed = parser.parse(answer.formula); parsed.well_formed) {
        verdict.value = parsed.value.lowest_terms();
    }
    return verdict;
}

}  // namespace sftrl
