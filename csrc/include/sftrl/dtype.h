// Element types that kernels read and write. Values are part of the binding: ops/cpp/__init__.py has the
// same.
#pragma once

namespace sftrl {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1 };

}  // namespace sftrl
