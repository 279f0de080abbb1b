// Exact fractions in 64-bit integers. Leaving their range is a value (`kOverflow`), never undefined
// behaviour.
#pragma once

#include <cstdint>
#include <limits>
#include <numeric>

namespace sftrl {

enum class Op : std::uint8_t { kAdd, kSub, kMul, kDiv };

class Rational {
  public:
    enum class Kind : std::uint8_t { kFinite, kUndefined, kOverflow };

    constexpr Rational() = default;
    constexpr explicit Rational(std::int64_t integer) : num_(integer) {}

    static constexpr Rational undefined() { return Rational(Kind::kUndefined); }
    static constexpr Rational overflow() { return Rational(Kind::kOverflow); }

    constexpr Kind kind() const { return kind_; }
    constexpr bool finite() const { return kind_ == Kind::kFinite; }

    struct Fraction {
        std::int64_t numerator, denominator;
    };

    // Lowest terms, positive denominator; 0/0 if not finite.
    constexpr Fraction lowest_terms() const {
        if (!finite()) return {0, 0};
        const Rational r = reduced();
        return {r.num_, r.den_};
    }

    constexpr bool equals(std::int64_t integer) const {
        return finite() && static_cast<Wide>(num_) == static_cast<Wide>(integer) * den_;
    }

    // `a op b`. What is not finite stays so, the left operand's kind first.
    friend constexpr Rational apply(Op op, const Rational& a, const Rational& b) {
        if (!a.finite()) return a;
        if (!b.finite()) return b;
        if (op == Op::kDiv && b.num_ == 0) return undefined();
        Rational out;
        if (combine(op, a, b, out)) return out;
        if (combine(op, a.reduced(), b.reduced(), out)) return out;
        return combine_wide(op, a.reduced(), b.reduced());
    }

  private:
    __extension__ using Wide = __int128;
    __extension__ using UnsignedWide = unsigned __int128;

    constexpr explicit Rational(Kind kind) : kind_(kind) {}
    constexpr Rational(std::int64_t num, std::int64_t den) : num_(num), den_(den) {}

    template <class Unsigned>
    static constexpr Unsigned gcd(Unsigned a, Unsigned b) {
        while (b != 0) {
            const Unsigned r = a % b;
            a = b;
            b = r;
        }
        return a;
    }

    constexpr Rational reduced() const {
        if (den_ == 1) return *this;
        const auto magnitude =
            num_ < 0 ? 0 - static_cast<std::uint64_t>(num_) : static_cast<std::uint64_t>(num_);
        // Not above den_, so it fits.
        const auto g = static_cast<std::int64_t>(gcd(magnitude, static_cast<std::uint64_t>(den_)));
        return Rational(num_ / g, den_ / g);
    }

    // The usual case, without a gcd: results stay unreduced until a product would not fit. False: it does
    // not.
    static constexpr bool combine(Op op, const Rational& a, const Rational& b, Rational& out) {
        std::int64_t x = 0, y = 0;
        switch (op) {
            case Op::kMul:
                return !__builtin_mul_overflow(a.num_, b.num_, &out.num_) &&
                       !__builtin_mul_overflow(a.den_, b.den_, &out.den_);
            case Op::kDiv:
                if (__builtin_mul_overflow(a.num_, b.den_, &out.num_) ||
                    __builtin_mul_overflow(a.den_, b.num_, &out.den_)) {
                    return false;
                }
                if (out.den_ > 0) return true;
                return !__builtin_sub_overflow(std::int64_t{0}, out.num_, &out.num_) &&
                       !__builtin_sub_overflow(std::int64_t{0}, out.den_, &out.den_);
            default:
                if (__builtin_mul_overflow(a.num_, b.den_, &x) ||
                    __builtin_mul_overflow(b.num_, a.den_, &y) ||
                    __builtin_mul_overflow(a.den_, b.den_, &out.den_)) {
                    return false;
                }
                return op == Op::kAdd ? !__builtin_add_overflow(x, y, &out.num_)
                                      : !__builtin_sub_overflow(x, y, &out.num_);
        }
    }

    // Products of two 64-bit integers and the sum of two of them fit in 128 bits; the reduced result may fit
    // in 64.
    static constexpr Rational combine_wide(Op op, const Rational& a, const Rational& b) {
        Wide num = 0, den = 0;
        switch (op) {
            case Op::kMul:
                num = static_cast<Wide>(a.num_) * b.num_;
                den = static_cast<Wide>(a.den_) * b.den_;
                break;
            case Op::kDiv:
                num = static_cast<Wide>(a.num_) * b.den_;
                den = static_cast<Wide>(a.den_) * b.num_;
                break;
            default: {
                const Wide x = static_cast<Wide>(a.num_) * b.den_, y = static_cast<Wide>(b.num_) * a.den_;
                num = op == Op::kAdd ? x + y : x - y;
                den = static_cast<Wide>(a.den_) * b.den_;
            }
        }
        if (den < 0) {
            num = -num;
            den = -den;
        }
        const auto g = static_cast<Wide>(
            gcd(static_cast<UnsignedWide>(num < 0 ? -num : num), static_cast<UnsignedWide>(den)));
        num /= g;
        den /= g;
        constexpr Wide low = std::numeric_limits<std::int64_t>::min(),
                       high = std::numeric_limits<std::int64_t>::max();
        if (num < low || num > high || den > high) return overflow();
        return Rational(static_cast<std::int64_t>(num), static_cast<std::int64_t>(den));
    }

    std::int64_t num_ = 0;
    std::int64_t den_ = 1;  // positive
    Kind kind_ = Kind::kFinite;
};

}  // namespace sftrl
