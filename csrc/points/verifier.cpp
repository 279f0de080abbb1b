#include "sftrl/verifier.h"

#include <algorithm>

namespace sftrl {
namespace {

constexpr float kRight = 5.0F;
constexpr float kWrongValue = -1.0F;
constexpr float kWrongNumbers = -2.0F;
constexpr float kMalformed = -3.0F;
constexpr float kCardsMisread = -1.5F;  // added to the above

bool same_cards(std::string_view text, const Question& question) {
    const auto counts = find_cards(text);
    if (!counts) return false;
    RankCounts expected{};
    for (const std::int64_t rank : question.ranks) ++expected[static_cast<std::size_t>(rank)];
    return *counts == expected;
}

bool same_numbers(const Parsed<Rational>& parsed, const Question& question) {
    if (parsed.num_numbers != kHandSize) return false;
    return std::is_permutation(parsed.numbers.begin(), parsed.numbers.end(), question.numbers.begin());
}

Outcome judge(const Parsed<Rational>& parsed, const Question& question) {
    if (!parsed.well_formed) return Outcome::kMalformed;
    if (!same_numbers(parsed, question)) return Outcome::kWrongNumbers;
    switch (parsed.value.kind()) {
        case Rational::Kind::kUndefined:
            return Outcome::kUndefinedValue;
        case Rational::Kind::kOverflow:
            return Outcome::kOverflow;
        case Rational::Kind::kFinite:
            break;
    }
    return parsed.value.equals(question.target) ? Outcome::kRight : Outcome::kWrongValue;
}

float reward_of(Outcome outcome) {
    switch (outcome) {
        case Outcome::kRight:
            return kRight;
        case Outcome::kWrongNumbers:
            return kWrongNumbers;
        case Outcome::kMalformed:
            return kMalformed;
        default:
            return kWrongValue;
    }
}

std::string formula_message(const Verdict& verdict, const Question& question) {
    switch (verdict.outcome) {
        case Outcome::kRight:
            return "the formula is right";
        case Outcome::kUndefinedValue:
            return "the formula divides by zero";
        case Outcome::kOverflow:
            return "the formula's value is too large";
        case Outcome::kMalformed:
            return "the formula is malformed";
        case Outcome::kWrongNumbers: {
            std::string hand;
            for (const std::int64_t number : question.numbers) {
                if (!hand.empty()) hand += ", ";
                hand += std::to_string(number);
            }
            return "the formula must use each of " + hand + " exactly once";
        }
        case Outcome::kWrongValue:
            break;
    }
    std::string value = std::to_string(verdict.value.numerator);
    if (verdict.value.denominator != 1) value.append("/").append(std::to_string(verdict.value.denominator));
    return "the formula's value is " + value + ", not " + std::to_string(question.target);
}

}  // namespace

Verdict ExactVerifier::verify(std::string_view text, const Question& question) {
    Parsed<Rational> parsed;
    if (const auto formula = find_formula(text)) parsed = parser_.parse(*formula);
    Verdict verdict;
    verdict.outcome = judge(parsed, question);
    verdict.reward = reward_of(verdict.outcome);
    verdict.cards_ok = same_cards(text, question);
    if (question.cards_shown && !verdict.cards_ok) verdict.reward += kCardsMisread;
    if (parsed.well_formed) verdict.value = parsed.value.lowest_terms();
    return verdict;
}

std::string ExactVerifier::message(const Verdict& verdict, const Question& question) {
    const bool misread = question.cards_shown && !verdict.cards_ok;
    return (misread ? "the cards were read wrongly, and " : "") + formula_message(verdict, question);
}

}  // namespace sftrl
