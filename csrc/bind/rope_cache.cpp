#include "sftrl/ops/rope_cache.h"

#include "bind.h"

namespace sftrl::bind {

void rope_cache(pybind11::module_& m) {
    m.def(
        "rope_cache",
        [](Address q, Address k, Address v, Address out, Address cos, Address sin, Address positions,
           Address slots, Address k_cache, Address v_cache, std::int64_t tokens, std::int64_t q_stride,
           std::int64_t k_stride, std::int64_t v_stride, std::int64_t heads, std::int64_t kv_heads,
           std::int64_t dim, std::int64_t page, int dtype) {
            const pybind11::gil_scoped_release release;
            sftrl::rope_cache({at(q), at(k), at(v), at(out), at(cos), at(sin),
                               at<const std::int64_t>(positions), at<const std::int64_t>(slots), at(k_cache),
                               at(v_cache), tokens, q_stride, k_stride, v_stride, heads, kv_heads, dim, page,
                               static_cast<DType>(dtype)});
        },
        "Fills out and the caches; see RopeCacheArgs.");
}

}  // namespace sftrl::bind
