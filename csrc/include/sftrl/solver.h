// Every formula over a few numbers with a given value, one for each class of formulas that differ only by
// commutativity and associativity.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace sftrl {

inline constexpr int kMaxNumbers = 6;

// Formulas that use each number once and whose value is `target`, shortest first, equals sorted by text.
// Two formulas are the same if their flattened sums (signed terms) and flattened products (factors above and
// below the line) are the same multisets, level by level. Formulas with an intermediate value beyond 64-bit
// fractions are left out. `numbers`: 1 to kMaxNumbers non-negative integers.
std::vector<std::string> solve(std::span<const std::int64_t> numbers, std::int64_t target);

// Whether `solve` would return anything; stops at the first formula.
bool solvable(std::span<const std::int64_t> numbers, std::int64_t target);

}  // namespace sftrl
