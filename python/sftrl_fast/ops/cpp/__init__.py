"""The C++ implementations: each file hands an op's tensors to ``sftrl_fast._C`` as addresses.

Arguments are as checked by the op; what is left for here is contiguity and the output buffers.
"""

from __future__ import annotations

import torch

DTYPE = {torch.float32: 0, torch.bfloat16: 1}
"""``DType`` of csrc/include/sftrl/dtype.h."""
