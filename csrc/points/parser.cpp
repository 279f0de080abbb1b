#include "sftrl/parser.h"

namespace sftrl {
namespace {

constexpr std::size_t kNone = std::string_view::npos;

// Plain loops here and below: the texts are short, and the library's searches for sets cost a call a
// character.
bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }
bool is_quote(char c) { return c == '"' || c == '\''; }

std::size_t skip_blanks(std::string_view text, std::size_t at) {
    while (at < text.size() && is_blank(text[at])) ++at;
    return at;
}

std::string_view stripped(std::string_view text) {
    text.remove_prefix(skip_blanks(text, 0));
    while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
    return text;
}

// Where the value of the quoted key that holds `name` at `at` begins; kNone if that is no key.
std::size_t value_of_key(std::string_view text, std::size_t at, std::string_view name) {
    const std::size_t end = at + name.size();
    if (at == 0 || end >= text.size() || !is_quote(text[at - 1]) || text[end] != text[at - 1]) return kNone;
    const std::size_t colon = skip_blanks(text, end + 1);
    if (colon == text.size() || text[colon] != ':') return kNone;
    const std::size_t value = skip_blanks(text, colon + 1);
    return value < text.size() ? value : kNone;
}

// Calls `visit(position of the value)` for the keys `name`, first to last.
template <class Visit>
void for_each_key(std::string_view text, std::string_view name, Visit visit) {
    for (std::size_t at = text.find(name[0]); at != kNone; at = text.find(name[0], at + 1)) {
        if (!text.substr(at).starts_with(name)) continue;
        const std::size_t value = value_of_key(text, at, name);
        if (value != kNone) visit(value);
    }
}

// 1..13, or 0 if it names no card.
int rank_of(std::string_view name) {
    if (name.size() == 2) return name[0] == '1' && name[1] == '0' ? 10 : 0;
    if (name.size() != 1) return 0;
    if (name[0] >= '2' && name[0] <= '9') return name[0] - '0';
    switch (name[0]) {
        case 'A':
        case 'a':
            return 1;
        case 'J':
        case 'j':
            return 11;
        case 'Q':
        case 'q':
            return 12;
        case 'K':
        case 'k':
            return 13;
        default:
            return 0;
    }
}

std::optional<RankCounts> count_ranks(std::string_view list) {
    RankCounts counts{};
    std::size_t begin = 0;
    for (std::size_t entry = 0; entry < kHandSize; ++entry) {
        std::size_t end = begin;
        while (end < list.size() && list[end] != ',') ++end;
        if ((end == list.size()) != (entry + 1 == kHandSize)) return std::nullopt;
        std::string_view name = stripped(list.substr(begin, end - begin));
        if (name.size() >= 2 && is_quote(name.front()) && name.back() == name.front()) {
            name = stripped(name.substr(1, name.size() - 2));
        }
        const int rank = rank_of(name);
        if (rank == 0) return std::nullopt;
        ++counts[static_cast<std::size_t>(rank)];
        begin = end + 1;
    }
    return counts;
}

}  // namespace

std::optional<std::string_view> find_formula(std::string_view text) {
    std::size_t begin = kNone;
    for_each_key(text, "formula", [&](std::size_t value) { begin = value; });
    if (begin == kNone || !is_quote(text[begin])) return std::nullopt;
    const std::size_t end = text.find(text[begin], begin + 1);
    if (end == kNone) return std::nullopt;
    const std::string_view formula = text.substr(begin + 1, end - begin - 1);
    return formula.substr(0, formula.find('='));
}

std::optional<RankCounts> find_cards(std::string_view text) {
    const std::size_t last_close = text.rfind(']');
    if (last_close == kNone) return std::nullopt;
    std::size_t begin = kNone;
    for_each_key(text, "cards", [&](std::size_t value) {
        if (text[value] == '[' && value < last_close) begin = value;
    });
    if (begin == kNone) return std::nullopt;
    return count_ranks(text.substr(begin + 1, text.find(']', begin) - begin - 1));
}

}  // namespace sftrl
