#include "sftrl/ops/advantage.h"

#include "bind.h"

namespace sftrl::bind {

void advantage(pybind11::module_& m) {
    m.def(
        "group_advantage",
        [](Address rewards, Address groups, Address order, Address out, std::int64_t count, double tie,
           int kind) {
            const pybind11::gil_scoped_release release;
            sftrl::group_advantage({at<const double>(rewards), at<const std::int64_t>(groups),
                                    at<std::int64_t>(order), at<float>(out), count, tie,
                                    static_cast<GroupKind>(kind)});
        },
        "Fills out, with order as scratch; see GroupAdvantageArgs.");
    m.def(
        "gae",
        [](Address rewards, Address values, Address offsets, Address bootstrap, Address out,
           std::int64_t count, std::int64_t episodes, double gamma, double lam) {
            const pybind11::gil_scoped_release release;
            sftrl::gae({at<const double>(rewards), at<const double>(values), at<const std::int64_t>(offsets),
                        at<const double>(bootstrap), at<float>(out), count, episodes, gamma, lam});
        },
        "Fills out; bootstrap is 0 for none. See GaeArgs.");
}

}  // namespace sftrl::bind
