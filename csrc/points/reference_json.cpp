#include "reference_json.h"

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace sftrl {
namespace {

constexpr std::size_t kMaxIntegerDigits = 4300;  // sys.get_int_max_str_digits()
constexpr std::size_t kMaxDepth = 990;           // the recursion limit of 1,000 less the callers' frames

class JsonReader {
  public:
    explicit JsonReader(std::string_view text) : text_(text) {}

    JsonAnswer read() {
        skip_blanks();
        if (peek() != '{' || !read_value()) return {};
        skip_blanks();
        if (at_ != text_.size()) return {};
        return std::move(answer_);
    }

  private:
    // One value with all that it holds; `open_` stands for the recursion.
    bool read_value() {
        do {
            if (!begin_value()) return false;
            while (!value_next_ && !open_.empty()) {
                if (!after_value()) return false;
            }
        } while (value_next_);
        return true;
    }

    // A scalar, or the beginning of a container. Leaves `value_next_` true if a value must follow.
    bool begin_value() {
        value_next_ = false;
        JsonMember* const member = open_.size() == 1 ? member_ : nullptr;
        if (member != nullptr) *member = {true, std::nullopt};
        if (peek() == '"') {
            string_.clear();
            if (!read_string()) return false;
            if (member != nullptr) member->text = string_;
            return true;
        }
        if (peek() == '{' || peek() == '[') return begin_container();
        return read_number() || skip_word("true") || skip_word("false") || skip_word("null") ||
               skip_word("NaN") || skip_word("Infinity") || skip_word("-Infinity");
    }

    bool begin_container() {
        if (open_.size() == kMaxDepth) return false;
        const char opening = text_[at_++];
        skip_blanks();
        if (skip(opening == '{' ? '}' : ']')) return true;
        open_.push_back(opening);
        value_next_ = true;
        return opening == '[' || read_key();
    }

    bool after_value() {
        skip_blanks();
        const bool in_object = open_.back() == '{';
        if (skip(in_object ? '}' : ']')) {
            open_.pop_back();
            return true;
        }
        if (!skip(',')) return false;
        skip_blanks();
        value_next_ = true;
        return !in_object || read_key();
    }

    bool read_key() {
        string_.clear();
        if (!read_string()) return false;
        if (open_.size() == 1) {
            member_ = string_ == "formula" ? &answer_.formula : string_ == "cards" ? &answer_.cards : nullptr;
        }
        skip_blanks();
        if (!skip(':')) return false;
        skip_blanks();
        return true;
    }

    bool read_string() {
        if (!skip('"')) return false;
        while (at_ < text_.size()) {
            const char c = text_[at_++];
            if (c == '"') return true;
            if (static_cast<unsigned char>(c) < 0x20) return false;
            if (c != '\\') {
                string_ += c;
            } else if (!read_escape(string_)) {
                return false;
            }
        }
        return false;
    }

    bool read_escape(std::string& out) {
        static constexpr std::string_view kNames = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
        if (at_ == text_.size()) return false;
        const char c = text_[at_++];
        if (const std::size_t i = kNames.find(c); i != std::string_view::npos) {
            out += kMeanings[i];
            return true;
        }
        std::uint32_t code = 0, low = 0;
        if (c != 'u' || !read_hex4(code)) return false;
        if (code >= 0xD800 && code < 0xDC00 && text_.substr(at_, 2) == "\\u") {
            const std::size_t before = at_;
            at_ += 2;
            if (!read_hex4(low)) return false;
            if (low >= 0xDC00 && low < 0xE000) {
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
            } else {
                at_ = before;
            }
        }
        append_utf8(code, out);
        return true;
    }

    bool read_hex4(std::uint32_t& out) {
        for (int i = 0; i < 4; ++i) {
            const char c = peek();
            std::uint32_t digit = 0;
            if (c >= '0' && c <= '9') {
                digit = static_cast<std::uint32_t>(c - '0');
            } else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')) {
                digit = static_cast<std::uint32_t>((c | 0x20) - 'a') + 10;
            } else {
                return false;
            }
            out = out * 16 + digit;
            ++at_;
        }
        return true;
    }

    static void append_utf8(std::uint32_t code, std::string& out) {
        const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((code >> shift) & 0x3F)); };
        if (code < 0x80) {
            out += static_cast<char>(code);
        } else if (code < 0x800) {
            out += static_cast<char>(0xC0 | (code >> 6));
            tail(0);
        } else if (code < 0x10000) {
            out += static_cast<char>(0xE0 | (code >> 12));
            tail(6);
            tail(0);
        } else {
            out += static_cast<char>(0xF0 | (code >> 18));
            tail(12);
            tail(6);
            tail(0);
        }
    }

    // On failure nothing is read.
    bool read_number() {
        const std::size_t start = at_;
        skip('-');
        const std::size_t first = at_;
        if (!skip('0') && skip_digits() == 0) {
            at_ = start;
            return false;
        }
        const std::size_t integer_digits = at_ - first;
        const bool fraction = skip_if_digits_follow(".", "");
        const bool exponent = skip_if_digits_follow("eE", "+-");
        if (fraction || exponent || integer_digits <= kMaxIntegerDigits) return true;
        at_ = start;
        return false;
    }

    bool skip_if_digits_follow(std::string_view marks, std::string_view signs) {
        const std::size_t start = at_;
        if (at_ < text_.size() && marks.find(text_[at_]) != std::string_view::npos) {
            ++at_;
            if (at_ < text_.size() && signs.find(text_[at_]) != std::string_view::npos) ++at_;
            if (skip_digits() > 0) return true;
        }
        at_ = start;
        return false;
    }

    std::size_t skip_digits() {
        const std::size_t start = at_;
        while (peek() >= '0' && peek() <= '9') ++at_;
        return at_ - start;
    }

    bool skip_word(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    bool skip(char c) {
        if (at_ == text_.size() || text_[at_] != c) return false;
        ++at_;
        return true;
    }

    void skip_blanks() {
        while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos)
            ++at_;
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    std::string_view text_;
    std::size_t at_ = 0;
    std::vector<char> open_;  // the containers around the current position
    bool value_next_ = false;
    std::string string_;            // the newest string
    JsonMember* member_ = nullptr;  // of the newest key of the outermost object, if it is wanted
    JsonAnswer answer_;
};

}  // namespace

JsonAnswer read_json_answer(std::string_view text) { return JsonReader(text).read(); }

}  // namespace sftrl
