// Verdicts on one answer under the two reward tables. Nothing here throws on any text.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "sftrl/parser.h"

namespace sftrl {

// The order is public: the Python enumeration mirrors it.
enum class Outcome : std::uint8_t {
    kRight,
    kWrongValue,
    kUndefinedValue,
    kOverflow,
    kWrongNumbers,
    kMalformed
};

struct Question {
    std::array<std::int64_t, kHandSize> ranks;    // 1..13
    std::array<std::int64_t, kHandSize> numbers;  // what each card counts under the rule
    std::int64_t target;
    bool cards_shown;  // the cards come as a picture, so reading them is judged too
};

struct Verdict {
    float reward = 0;
    Outcome outcome = Outcome::kMalformed;
    bool cards_ok = false;
    Rational::Fraction value{0, 0};  // of the formula; 0/0: malformed, undefined, or beyond 64 bits
};

class ExactVerifier {
  public:
    Verdict verify(std::string_view text, const Question& question);

    // One sentence for the verdict, without full stop.
    static std::string message(const Verdict& verdict, const Question& question);

  private:
    FormulaParser<Rational> parser_;
};

// The published code's rewards, to the letter. `message`, if given, receives its sentence.
Verdict verify_reference(std::string_view text, const Question& question, std::string* message = nullptr);

}  // namespace sftrl
