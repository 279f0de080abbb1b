// The solutions that the published code keeps for a hand, as texts.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "sftrl/parser.h"

namespace sftrl {

// Sorted. All `a o b o c o d` over the permutations of the numbers and all operators, plain or with one of
// the six parenthesisations that the published code tries, whose exact value is the target.
class StoredSolutions {
  public:
    StoredSolutions(std::array<std::int64_t, kHandSize> numbers, std::int64_t target);

    bool any_begins_with(std::string_view text) const;

    // One copy for each hand and target, shared between threads; old ones are dropped when there are many.
    static std::shared_ptr<const StoredSolutions> of(std::array<std::int64_t, kHandSize> numbers,
                                                     std::int64_t target);

  private:
    std::vector<std::string> texts_;
};

}  // namespace sftrl
