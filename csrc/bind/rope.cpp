#include "sftrl/ops/rope.h"

#include "bind.h"

namespace sftrl::bind {

void rope(pybind11::module_& m) {
    m.def(
        "rope_cache",
        [](Address q, Address k, Address v, std::int64_t q_stride, std::int64_t k_stride,
           std::int64_t v_stride, Address cos, Address sin, Address positions, Address slots, Address out,
           Address k_cache, Address v_cache, std::int64_t rows, std::int64_t q_heads, std::int64_t kv_heads,
           std::int64_t width, std::int64_t page, int dtype) {
            const pybind11::gil_scoped_release release;
            rope_cache({at(q), at(k), at(v), q_stride, k_stride, v_stride, at<const float>(cos),
                        at<const float>(sin), at<const std::int64_t>(positions),
                        at<const std::int64_t>(slots), at(out), at(k_cache), at(v_cache), rows, q_heads,
                        kv_heads, width, page, static_cast<DType>(dtype)});
        },
        "Fills out and the slots of both caches; see RopeCacheArgs.");
}

}  // namespace sftrl::bind
