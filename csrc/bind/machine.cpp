#include <stdexcept>
#include <string>

#include "bind.h"
#include "sftrl/level.h"
#include "sftrl/parallel.h"

namespace sftrl::bind {
namespace {

void choose_level(const std::string& name) {
    for (int i = 0; i <= static_cast<int>(detected_level()); ++i) {
        if (name == kLevelNames[i]) {
            set_level(static_cast<Level>(i));
            return;
        }
    }
    const std::string best(kLevelNames[static_cast<int>(detected_level())]);
    throw pybind11::value_error("level is '" + name + "'; this machine runs scalar up to " + best);
}

}  // namespace

void machine(pybind11::module_& m) {
    m.def(
        "detected_level", [] { return std::string(kLevelNames[static_cast<int>(detected_level())]); },
        "The highest instruction-set level that this processor runs.");
    m.def(
        "level", [] { return std::string(kLevelNames[static_cast<int>(level())]); },
        "The level that kernels run at.");
    m.def("set_level", &choose_level, pybind11::arg("name"), "Run kernels at this level from now on.");
    m.def("max_threads", &max_threads, "Threads that a kernel called now would use.");
}

}  // namespace sftrl::bind
