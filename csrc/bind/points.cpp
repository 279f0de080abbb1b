// The Python face of the card code: names, array checks and the release of the GIL. Nothing is computed here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bind.h"
#include "sftrl/solver.h"
#include "sftrl/verifier.h"

namespace py = pybind11;

namespace {

using sftrl::kHandSize;
using Integers = py::array_t<std::int64_t, py::array::c_style>;

// A view of the text of one str or bytes object, alive as long as `keep`. A str with lone surrogates has no
// UTF-8: its view is of the three-byte form of each, which is not valid UTF-8 and so no token of any formula.
std::string_view view_of(PyObject* response, std::size_t index, std::vector<py::object>& keep) {
    if (PyBytes_Check(response)) {
        return {PyBytes_AS_STRING(response), static_cast<std::size_t>(PyBytes_GET_SIZE(response))};
    }
    if (!PyUnicode_Check(response)) {
        throw py::type_error("responses[" + std::to_string(index) + "] must be str or bytes, not " +
                             Py_TYPE(response)->tp_name);
    }
    Py_ssize_t size = 0;
    if (const char* data = PyUnicode_AsUTF8AndSize(response, &size))
        return {data, static_cast<std::size_t>(size)};
    if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) throw py::error_already_set();
    PyErr_Clear();
    auto encoded =
        py::reinterpret_steal<py::object>(PyUnicode_AsEncodedString(response, "utf-8", "surrogatepass"));
    if (!encoded) throw py::error_already_set();
    keep.push_back(encoded);
    return view_of(encoded.ptr(), index, keep);
}

std::vector<std::string_view> views_of(const py::tuple& responses, std::vector<py::object>& keep) {
    std::vector<std::string_view> views;
    views.reserve(responses.size());
    for (std::size_t i = 0; i < responses.size(); ++i) {
        views.push_back(view_of(PyTuple_GET_ITEM(responses.ptr(), static_cast<Py_ssize_t>(i)), i, keep));
    }
    return views;
}

class Questions {
  public:
    Questions(const Integers& ranks, const Integers& numbers, const Integers& targets, bool cards_shown,
              std::size_t n)
        : ranks_(ranks.data()),
          numbers_(numbers.data()),
          targets_(targets.data()),
          cards_shown_(cards_shown) {
        const auto size = static_cast<py::ssize_t>(n), hand = static_cast<py::ssize_t>(kHandSize);
        if (ranks.size() != size * hand || numbers.size() != size * hand || targets.size() != size) {
            throw py::value_error("ranks and numbers must be [n, 4] and targets [n]");
        }
        for (py::ssize_t i = 0; i < ranks.size(); ++i) {
            if (ranks_[i] < 1 || ranks_[i] > sftrl::kNumRanks) throw py::value_error("ranks must be 1 to 13");
        }
    }

    sftrl::Question operator[](std::size_t row) const {
        sftrl::Question question{{}, {}, targets_[row], cards_shown_};
        for (std::size_t i = 0; i < kHandSize; ++i) {
            question.ranks[i] = ranks_[row * kHandSize + i];
            question.numbers[i] = numbers_[row * kHandSize + i];
        }
        return question;
    }

  private:
    const std::int64_t *ranks_, *numbers_, *targets_;
    bool cards_shown_;
};

py::tuple verify_points(const py::tuple& responses, const Integers& ranks, const Integers& numbers,
                        const Integers& targets, bool reference, bool cards_shown) {
    const std::size_t n = responses.size();
    const Questions questions(ranks, numbers, targets, cards_shown, n);
    std::vector<py::object> keep;
    const auto views = views_of(responses, keep);
    const auto rows = static_cast<py::ssize_t>(n);
    py::array_t<float> reward(rows);
    py::array_t<std::uint8_t> outcome(rows);
    py::array_t<bool> cards_ok(rows);
    py::array_t<std::int64_t> value({rows, py::ssize_t{2}});
    float* const rewards = reward.mutable_data();
    std::uint8_t* const outcomes = outcome.mutable_data();
    bool* const reads = cards_ok.mutable_data();
    std::int64_t* const values = value.mutable_data();
    {
        const py::gil_scoped_release release;
        sftrl::ExactVerifier exact;
        for (std::size_t i = 0; i < n; ++i) {
            const sftrl::Verdict verdict = reference ? sftrl::verify_reference(views[i], questions[i])
                                                     : exact.verify(views[i], questions[i]);
            rewards[i] = verdict.reward;
            outcomes[i] = static_cast<std::uint8_t>(verdict.outcome);
            reads[i] = verdict.cards_ok;
            values[2 * i] = verdict.value.numerator;
            values[2 * i + 1] = verdict.value.denominator;
        }
    }
    return py::make_tuple(reward, outcome, cards_ok, value);
}

std::vector<std::string> explain_points(const py::tuple& responses, const Integers& ranks,
                                        const Integers& numbers, const Integers& targets, bool reference,
                                        bool cards_shown) {
    const std::size_t n = responses.size();
    const Questions questions(ranks, numbers, targets, cards_shown, n);
    std::vector<py::object> keep;
    const auto views = views_of(responses, keep);
    const py::gil_scoped_release release;
    std::vector<std::string> messages(n);
    sftrl::ExactVerifier exact;
    for (std::size_t i = 0; i < n; ++i) {
        const sftrl::Question question = questions[i];
        if (reference) {
            sftrl::verify_reference(views[i], question, &messages[i]);
        } else {
            messages[i] = sftrl::ExactVerifier::message(exact.verify(views[i], question), question);
        }
    }
    return messages;
}

void check_solver_input(std::size_t count) {
    if (count < 1 || count > sftrl::kMaxNumbers) throw py::value_error("the solver takes 1 to 6 numbers");
}

std::vector<std::string> solve_points(const std::vector<std::int64_t>& numbers, std::int64_t target) {
    check_solver_input(numbers.size());
    const py::gil_scoped_release release;
    return sftrl::solve(numbers, target);
}

py::array_t<bool> solvable_points(const Integers& hands, std::int64_t target) {
    if (hands.ndim() != 2) throw py::value_error("hands must be [m, k]");
    const auto rows = hands.shape(0);
    const auto width = static_cast<std::size_t>(hands.shape(1));
    check_solver_input(width);
    py::array_t<bool> out(rows);
    bool* const flags = out.mutable_data();
    const std::int64_t* const numbers = hands.data();
    const py::gil_scoped_release release;
    for (py::ssize_t i = 0; i < rows; ++i) {
        flags[i] = sftrl::solvable(std::span(numbers + static_cast<std::size_t>(i) * width, width), target);
    }
    return out;
}

}  // namespace

namespace sftrl::bind {

void points(py::module_& m) {
    m.attr("MAX_NUMBERS") = sftrl::kMaxNumbers;
    m.def("verify_points", &verify_points, py::arg("responses"), py::arg("ranks").noconvert(),
          py::arg("numbers").noconvert(), py::arg("targets").noconvert(), py::arg("reference"),
          py::arg("cards_shown"), "(reward [n], outcome [n], cards_ok [n], value [n, 2]) of n answers.");
    m.def("explain_points", &explain_points, py::arg("responses"), py::arg("ranks").noconvert(),
          py::arg("numbers").noconvert(), py::arg("targets").noconvert(), py::arg("reference"),
          py::arg("cards_shown"), "The verifier's sentence for each of n answers.");
    m.def("solve_points", &solve_points, py::arg("numbers"), py::arg("target"),
          "Every formula over the numbers whose value is the target, one a class.");
    m.def("solvable_points", &solvable_points, py::arg("hands").noconvert(), py::arg("target"),
          "Whether each row of hands [m, k] reaches the target.");
}

}  // namespace sftrl::bind
