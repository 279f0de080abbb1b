// Tests of the card code that need no Python; ctest runs them, under sanitizers too (SFTRL_SANITIZE).
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "sftrl/parser.h"
#include "sftrl/rational.h"
#include "sftrl/solver.h"
#include "sftrl/verifier.h"

namespace {

using namespace sftrl;

using test::failures;

constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();

Rational value_of(const std::string& formula) { return FormulaParser<Rational>().parse(formula).value; }
bool well_formed(const std::string& formula) { return FormulaParser<Rational>().parse(formula).well_formed; }
std::string answer(const std::string& formula) { return R"({"formula": ")" + formula + R"("})"; }
Question hand(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
    return {{a, b, c, d}, {a, b, c, d}, 24, false};
}

void test_rational_is_exact_up_to_64_bits() {
    const Rational third = apply(Op::kDiv, Rational(8), Rational(3));
    CHECK(apply(Op::kDiv, Rational(8), apply(Op::kSub, Rational(3), third)).equals(24));
    CHECK(apply(Op::kDiv, Rational(6), Rational(-4)).lowest_terms().numerator == -3);
    CHECK(apply(Op::kDiv, Rational(6), Rational(-4)).lowest_terms().denominator == 2);
    CHECK(apply(Op::kDiv, Rational(1), Rational(0)).kind() == Rational::Kind::kUndefined);
    CHECK(apply(Op::kAdd, Rational(kMax), Rational(1)).kind() == Rational::Kind::kOverflow);
    CHECK(apply(Op::kMul, Rational(kMax), Rational(kMax)).kind() == Rational::Kind::kOverflow);
    CHECK(Rational::overflow().lowest_terms().denominator == 0);
    // Unreduced products leave 64 bits here; the reduced result does not.
    const Rational half = apply(Op::kDiv, Rational(kMax), Rational(2));
    CHECK(apply(Op::kDiv, half, half).equals(1));
    CHECK(apply(Op::kAdd, half, half).equals(kMax));
    CHECK(apply(Op::kSub, half, half).equals(0));
    CHECK(apply(Op::kMul, half, apply(Op::kDiv, Rational(2), Rational(kMax))).equals(1));
    const Rational least = apply(Op::kSub, Rational(-kMax), Rational(1));
    CHECK(least.lowest_terms().numerator == std::numeric_limits<std::int64_t>::min());
    CHECK(apply(Op::kDiv, least, Rational(-1)).kind() == Rational::Kind::kOverflow);
    CHECK(apply(Op::kDiv, Rational(1), least).kind() == Rational::Kind::kOverflow);
    CHECK(apply(Op::kDiv, least, least).equals(1));
}

void test_grammar() {
    CHECK(value_of("2+3*4-6/2").equals(11));
    CHECK(value_of("100/10/5").equals(2));
    CHECK(value_of("10-4-3").equals(3));
    CHECK(value_of(" ( 1 + 2 ) * ((8)) ").equals(24));
    for (const char* text :
         {"",   " ",    "()",   "1+",   "+1",   "-1+2",  "1--2", "1 2", "1(2)", "(1)(2)", "(1",
          "1)", "01+2", "1**2", "1//2", "1+2;", "1\t+2", "1.5",  "1e3", "a",    "(1+2))"}) {
        CHECK(!well_formed(text));
    }
    CHECK(well_formed("0+10"));
    CHECK(!well_formed("00"));
    CHECK(value_of("9223372036854775808").kind() == Rational::Kind::kOverflow);
    CHECK(value_of("9223372036854775807").equals(kMax));
}

void test_any_text_is_safe() {
    constexpr std::size_t kMega = 1 << 20;
    const std::string open(kMega, '('), close(kMega, ')');
    CHECK(well_formed(open + "1" + close));
    CHECK(!well_formed(open));
    ExactVerifier verifier;
    const Question question = hand(1, 2, 3, 4);
    std::vector<std::string> texts{"",
                                   "\"",
                                   "formula",
                                   "\"formula\"",
                                   "\"formula\":",
                                   "\"formula\": \"",
                                   answer(open),
                                   answer(open + "1" + close),
                                   answer(std::string(400, '9')),
                                   std::string("\0\0", 2),
                                   "\xff\xfe\"formula\": \"1\xed\xa0\x80\"",
                                   "\"cards\": [",
                                   "\"cards\":[,,,]",
                                   std::string(kMega, '['),
                                   std::string(kMega, '{')};
    std::string keys, sums = "1";
    for (int i = 0; i < 50000; ++i) {
        keys += "\"cards\": [\"formula\": ";
        sums += "+" + std::to_string(i);
    }
    texts.push_back(keys);
    texts.push_back(answer(sums));
    for (const std::string& text : texts) {
        CHECK(verifier.verify(text, question).reward < 0);
        std::string message;
        CHECK(verify_reference(text, question, &message).reward < 0);
        CHECK(!message.empty());
    }
}

void test_random_bytes_are_safe_and_never_right() {
    std::mt19937_64 random(7);
    const std::string alphabet = "{}[]()\"':,=+-*/ 0123456789AJQKformulacards\\\n\xd9\xa3\xff";
    ExactVerifier verifier;
    for (int i = 0; i < 20000; ++i) {
        std::string text = i % 2 ? R"({"cards": [A, 2, 3, 4], "formula": ")" : "";
        for (auto n = random() % 40; n > 0; --n) text += alphabet[random() % alphabet.size()];
        const Verdict verdict = verifier.verify(text, hand(1, 1, 1, 1));
        CHECK(verdict.outcome != Outcome::kRight);
        CHECK(!ExactVerifier::message(verdict, hand(1, 1, 1, 1)).empty());
        std::string message;
        CHECK(verify_reference(text, hand(1, 1, 1, 1), &message).reward < 5);
        CHECK(!message.empty());
    }
}

void test_outcomes() {
    ExactVerifier verifier;
    const auto outcome = [&](const std::string& formula) {
        return verifier.verify(answer(formula), hand(3, 3, 8, 8)).outcome;
    };
    CHECK(outcome("8/(3-8/3)=24") == Outcome::kRight);
    CHECK(outcome("8+8+3+3") == Outcome::kWrongValue);
    CHECK(outcome("8/(8-8+3-3)") == Outcome::kWrongNumbers);
    CHECK(outcome("8*8/(3-3)") == Outcome::kUndefinedValue);
    CHECK(outcome("8/(3-8/3") == Outcome::kMalformed);
    CHECK(verify_reference(answer("8/(3-8/3)"), hand(3, 3, 8, 8)).outcome == Outcome::kWrongValue);
    // No four ranks overflow, other numbers do.
    const Question large{{1, 1, 1, 1}, {kMax, kMax, 1, 1}, 24, false};
    const std::string number = std::to_string(kMax);
    const Verdict verdict = verifier.verify(answer(number + "*" + number + "*1*1"), large);
    CHECK(verdict.outcome == Outcome::kOverflow && verdict.value.denominator == 0 && verdict.reward == -1);
}

void test_solver_finds_each_class_once() {
    const std::vector<std::int64_t> two{7, 1000};
    for (const std::int64_t target : {1007, 993, -993, 7000}) CHECK(solve(two, target).size() == 1);
    CHECK(solve(two, 24).empty());
    const std::vector<std::int64_t> hand{3, 3, 8, 8}, none{1, 1, 1, 1}, one{24};
    CHECK(solve(hand, 24) == std::vector<std::string>{"8/(3-8/3)"});
    CHECK(solvable(hand, 24) && !solvable(none, 24));
    CHECK(solve(one, 24) == std::vector<std::string>{"24"});
}

void test_threads_share_the_caches() {
    std::vector<std::thread> threads;
    std::vector<int> right(4, 0);
    for (std::size_t t = 0; t < right.size(); ++t) {
        threads.emplace_back([&right, t] {
            for (std::int64_t d = 1; d <= 13; ++d) {
                const std::vector<std::int64_t> numbers{4, 5, 6, d};
                right[t] += solvable(numbers, 24);
                verify_reference(answer("4+5+6+" + std::to_string(d)), hand(4, 5, 6, d));
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    for (const int count : right) CHECK(count == right[0] && count > 0);
}

}  // namespace

int main() {
    test_rational_is_exact_up_to_64_bits();
    test_grammar();
    test_any_text_is_safe();
    test_random_bytes_are_safe_and_never_right();
    test_outcomes();
    test_solver_finds_each_class_once();
    test_threads_share_the_caches();
    if (failures == 0) std::puts("all points tests passed");
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
