// The part of Python's json.loads that the reference rewards rest on.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace sftrl {

// A key of the outermost object: absent, or present with its string, or present with a value that is no
// string.
struct JsonMember {
    bool present = false;
    std::optional<std::string> text;
};

// Of a repeated key the last one counts.
struct JsonAnswer {
    JsonMember formula, cards;
};

// The text as json.loads of CPython 3.11 takes it: no member is present if that raises, or if the text is no
// object. NaN and the infinities are numbers; integers of more than 4,300 digits and nesting of more than 990
// levels raise. Lone surrogates come back as three bytes each.
JsonAnswer read_json_answer(std::string_view text);

}  // namespace sftrl
