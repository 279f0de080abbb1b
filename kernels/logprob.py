"""``logprob`` on the GPU: the vocabulary product fused with the softmax, forward and backward.

Forward walks the vocabulary in chunks of :data:`CHUNK` columns, each a program of its own whatever the number of
rows, so that a few rows fill the device too and a row's result does not depend on its batch. Backward computes each
tile of logits again, turns it into the logits' gradient in a buffer of at most ``ROWS x COLUMNS``, and multiplies
that by the vocabulary (gradient of hidden) and by the hidden states (gradient of the weight). Every sum has one
order and one writer: no atomics, the same bits on every run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sftrl_fast.kernels.compile_case import FUSION, TYPE_NAMES, CompileCase, Work, padded

CHUNK = 1024
"""Columns that one program of the forward pass walks."""
ROWS, COLUMNS = 4096, 4096
"""Largest tile of the logits' gradient that exists at a time: 32 MiB in bf16."""

HALF = {"BLOCK_T": 128, "BLOCK_V": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3, **FUSION}
SINGLE = {"BLOCK_T": 64, "BLOCK_V": 64, "BLOCK_D": 16, "num_warps": 4, "num_stages": 2, **FUSION}
ODD = {"BLOCK_T": 64, "BLOCK_V": 64, "BLOCK_D": 32, "num_warps": 8, "num_stages": 2, **FUSION}
TILE = {torch.bfloat16: HALF, torch.float16: HALF, torch.float32: SINGLE}
"""Tile of logits a program holds, and how it is computed; ODD where a row's length or distance is no multiple of 16:
loads of one number at a time take registers."""
HALF_PRODUCT = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3, **FUSION}
SINGLE_PRODUCT = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2, **FUSION}
ODD_PRODUCT = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2, **FUSION}
PRODUCT = {torch.bfloat16: HALF_PRODUCT, torch.float16: HALF_PRODUCT, torch.float32: SINGLE_PRODUCT}
"""Tile of a gradient; BLOCK_N = 64 divides the usual widths and leaves enough programs."""
MERGE_ROWS = 128
PRECISION = "ieee"
"""Of float32 products: tensor cores would round their factors to tf32."""


@triton.jit
def _tile_logits(
    hidden, weight, rows, columns, T, V, D, stride_h, stride_w, scale,
    BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``hidden[rows] @ weight[columns].T * scale``; rows and columns past the end repeat the last one."""
    inner = tl.arange(0, BLOCK_D)
    h = hidden + tl.minimum(rows, T - 1).to(tl.int64)[:, None] * stride_h + inner[None, :]
    w = weight + tl.minimum(columns, V - 1).to(tl.int64)[None, :] * stride_w + inner[:, None]
    z = tl.zeros((BLOCK_T, BLOCK_V), tl.float32)
    for start in range(0, D, BLOCK_D):
        if EVEN_D:
            a, b = tl.load(h), tl.load(w)
        else:
            live = inner < D - start
            a, b = tl.load(h, mask=live[None, :], other=0.0), tl.load(w, mask=live[:, None], other=0.0)
        z = tl.dot(a, b, z, input_precision=PRECISION)
        h += BLOCK_D
        w += BLOCK_D
    return z * scale


@triton.jit
def _forward(
    hidden, weight, targets, partial, T, V, D, stride_h, stride_w, scale, chunks,
    CHUNK: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one chunk of columns, for each row: largest logit m, sum of exp(z - m), sum of (z - m) exp(z - m), and
    the target's logit (0 if it is elsewhere), into ``partial`` [4, chunks, T]."""
    chunk = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    target = tl.load(targets + rows, mask=rows < T, other=-1).to(tl.int32)
    top = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    weighted = tl.zeros((BLOCK_T,), tl.float32)
    chosen = tl.zeros((BLOCK_T,), tl.float32)
    for first in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, V), BLOCK_V):
        columns = first + tl.arange(0, BLOCK_V)
        z = _tile_logits(
            hidden, weight, rows, columns, T, V, D, stride_h, stride_w, scale,
            BLOCK_T, BLOCK_V, BLOCK_D, EVEN_D, PRECISION,
        )  # fmt: skip
        z = tl.where(columns[None, :] < V, z, float("-inf"))
        chosen += tl.sum(tl.where(columns[None, :] == target[:, None], z, 0.0), 1)
        new_top = tl.maximum(top, tl.max(z, 1))
        z -= new_top[:, None]
        e = tl.exp(z)
        # The first block finds a running maximum of -inf: nothing is there to be rescaled.
        step = tl.where(total == 0, 0.0, top - new_top)
        decay = tl.exp(step)
        # exp(-inf) is 0, but 0 times -inf would be NaN.
        weighted = (weighted + step * total) * decay + tl.sum(tl.where(z > float("-inf"), z, 0.0) * e, 1)
        total = total * decay + tl.sum(e, 1)
        top = new_top
    out = partial + chunk.to(tl.int64) * T + rows
    plane = tl.cast(chunks, tl.int64) * T
    tl.store(out, top, mask=rows < T)
    tl.store(out + plane, total, mask=rows < T)
    tl.store(out + 2 * plane, weighted, mask=rows < T)
    tl.store(out + 3 * plane, chosen, mask=rows < T)


@triton.jit
def _merge(partial, logp, entropy, lse, T, chunks, BLOCK_T: tl.constexpr):
    """Bring the chunks of :func:`_forward` together, one after another."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = rows < T
    plane = tl.cast(chunks, tl.int64) * T
    top = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    weighted = tl.zeros((BLOCK_T,), tl.float32)
    chosen = tl.zeros((BLOCK_T,), tl.float32)
    for chunk in range(chunks):
        source = partial + tl.cast(chunk, tl.int64) * T + rows
        its_top = tl.load(source, mask=live, other=0.0)
        its_total = tl.load(source + plane, mask=live, other=1.0)
        its_weighted = tl.load(source + 2 * plane, mask=live, other=0.0)
        chosen += tl.load(source + 3 * plane, mask=live, other=0.0)
        new_top = tl.maximum(top, its_top)
        step = tl.where(total == 0, 0.0, top - new_top)
        its_step = its_top - new_top
        weighted = (weighted + step * total) * tl.exp(step) + (its_weighted + its_step * its_total) * tl.exp(
            its_step
        )
        total = total * tl.exp(step) + its_total * tl.exp(its_step)
        top = new_top
    log_total = tl.log(total)
    tl.store(lse + rows, top + log_total, mask=live)
    tl.store(logp + rows, chosen - (top + log_total), mask=live)
    # H = log sum exp(z) - sum p z, with z counted from its maximum; rounding may leave -1e-8.
    tl.store(entropy + rows, tl.maximum(log_total - weighted / total, 0.0), mask=live)


@triton.jit
def _grad_logits(
    hidden, weight, targets, lse, entropy, grad_logp, grad_entropy, out, T, V, D, stride_h, stride_w, scale,
    first_row, first_column, width,
    BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
    WITH_ENTROPY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of ``hidden @ weight.T`` in a rectangle of ``width`` columns, into ``out``.

    With p the softmax: d logp / d z_j = [j = target] - p_j and d H / d z_j = -p_j (log p_j + H).
    """
    down = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    right = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    rows, columns = first_row + down, first_column + right
    z = _tile_logits(
        hidden, weight, rows, columns, T, V, D, stride_h, stride_w, scale,
        BLOCK_T, BLOCK_V, BLOCK_D, EVEN_D, PRECISION,
    )  # fmt: skip
    live = rows < T
    slope = tl.load(grad_logp + rows, mask=live, other=0.0)
    target = tl.load(targets + rows, mask=live, other=-1).to(tl.int32)
    logp = z - tl.load(lse + rows, mask=live, other=0.0)[:, None]
    p = tl.exp(logp)
    if WITH_ENTROPY:
        bend = tl.load(grad_entropy + rows, mask=live, other=0.0)
        level = tl.load(entropy + rows, mask=live, other=0.0)
        d = -p * (slope[:, None] + bend[:, None] * (logp + level[:, None]))
    else:
        d = -p * slope[:, None]
    d = (d + tl.where(columns[None, :] == target[:, None], slope[:, None], 0.0)) * scale
    place = out + down.to(tl.int64)[:, None] * width + right[None, :]
    tl.store(place, d.to(out.dtype.element_ty), mask=live[:, None] & (right < width)[None, :])


@triton.jit
def _product(
    a, b, out, M, N, K, stride_a, stride_b, stride_out,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    TRANSPOSED: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``a @ b``, or ``a.T @ b`` if TRANSPOSED, into ``out`` [M, N], or added to it if ADD."""
    down = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    right = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    m, n, k = down.to(tl.int64), right.to(tl.int64), inner.to(tl.int64)
    left = a + k[None, :] * stride_a + m[:, None] if TRANSPOSED else a + m[:, None] * stride_a + k[None, :]
    other = b + k[:, None] * stride_b + n[None, :]
    place = out + m[:, None] * stride_out + n[None, :]
    inside = (down < M)[:, None] & (right < N)[None, :]
    acc = tl.load(place, mask=inside, other=0.0) if ADD else tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        live = inner < K - start
        x = tl.load(left, mask=live[None, :] & (down < M)[:, None], other=0.0)
        y = tl.load(other, mask=live[:, None] & (right < N)[None, :], other=0.0)
        acc = tl.dot(x, y, acc, input_precision=PRECISION)
        left += BLOCK_K * stride_a if TRANSPOSED else BLOCK_K
        other += BLOCK_K * stride_b
    tl.store(place, acc.to(out.dtype.element_ty), mask=inside)


def logprob_triton(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Arguments as checked by :func:`sftrl_fast.ops.logprob.logprob`. In float16 small gradients of the logits fall
    to zero as they do in torch's own: scale the loss."""
    result: tuple[Tensor, Tensor] = _Logprob.apply(hidden, weight, targets, temperature)
    return result


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _even(*sizes: int) -> bool:
    return all(size % 16 == 0 for size in sizes)


def _tile(hidden: Tensor, weight: Tensor) -> dict[str, Any]:
    tile = TILE[hidden.dtype] if _even(hidden.shape[1], hidden.stride(0), weight.stride(0)) else ODD
    return tile | {"EVEN_D": hidden.shape[1] % tile["BLOCK_D"] == 0, "PRECISION": PRECISION}


class _Logprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        hidden, weight, targets = _dense_rows(hidden), _dense_rows(weight), targets.contiguous()
        (rows, width), vocab = hidden.shape, weight.shape[0]
        tile, chunks = _tile(hidden, weight), triton.cdiv(vocab, CHUNK)
        partial = torch.empty((4, chunks, rows), dtype=torch.float32, device=hidden.device)
        logp, entropy, lse = torch.empty((3, rows), dtype=torch.float32, device=hidden.device)
        if rows:
            _forward[(triton.cdiv(rows, tile["BLOCK_T"]), chunks)](
                hidden, weight, targets, partial, rows, vocab, width, hidden.stride(0), weight.stride(0),
                1.0 / temperature, chunks, CHUNK=CHUNK, **tile,
            )  # fmt: skip
            _merge[(triton.cdiv(rows, MERGE_ROWS),)](
                partial, logp, entropy, lse, rows, chunks, BLOCK_T=MERGE_ROWS, num_warps=4, **FUSION
            )
        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, _, lse, _ = ctx.saved_tensors
        vocab, rows = weight.shape[0], hidden.shape[0]
        slope = torch.zeros_like(lse) if grad_logp is None else grad_logp.contiguous()
        bend = None if grad_entropy is None else grad_entropy.contiguous()
        grads = _Gradients(hidden, weight, *ctx.needs_input_grad[:2])
        for column in range(0, vocab, COLUMNS):
            columns = slice(column, min(column + COLUMNS, vocab))
            for row in range(0, rows, ROWS):
                block = slice(row, min(row + ROWS, rows))
                grads.add(_logits_gradient(ctx, slope, bend, block, columns), block, columns)
        return *grads.totals(), None, None


def _logits_gradient(ctx: Any, slope: Tensor, bend: Tensor | None, rows: slice, columns: slice) -> Tensor:
    hidden, weight, targets, lse, entropy = ctx.saved_tensors
    tile = _tile(hidden, weight)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    d = torch.empty((height, width), dtype=hidden.dtype, device=hidden.device)
    _grad_logits[(triton.cdiv(height, tile["BLOCK_T"]), triton.cdiv(width, tile["BLOCK_V"]))](
        hidden, weight, targets, lse, entropy, slope, slope if bend is None else bend, d,
        rows.stop, weight.shape[0], hidden.shape[1], hidden.stride(0), weight.stride(0), 1.0 / ctx.temperature,
        rows.start, columns.start, width, WITH_ENTROPY=bend is not None, **tile,
    )  # fmt: skip
    return d


class _Gradients:
    """Sums of the products over the rectangles, in float32: of the weight for one stretch of columns at a time."""

    def __init__(self, hidden: Tensor, weight: Tensor, want_hidden: bool, want_weight: bool) -> None:
        self._hidden, self._weight = hidden, weight
        self._of_hidden = torch.empty_like(hidden, dtype=torch.float32) if want_hidden else None
        self._of_weight = torch.empty_like(weight) if want_weight else None
        self._stretch: Tensor | None = None
        if want_weight and len(hidden) > ROWS and weight.dtype != torch.float32:
            self._stretch = weight.new_empty(
                (min(COLUMNS, len(weight)), weight.shape[1]), dtype=torch.float32
            )

    def add(self, d: Tensor, rows: slice, columns: slice) -> None:
        if self._of_hidden is not None:
            _multiply(d, self._weight[columns], self._of_hidden[rows], False, columns.start > 0)
        if self._of_weight is not None:
            part = self._of_weight[columns]
            total = part if self._stretch is None else self._stretch[: len(part)]
            _multiply(d, self._hidden[rows], total, True, rows.start > 0)
            if self._stretch is not None and rows.stop == len(self._hidden):
                part.copy_(total)

    def totals(self) -> tuple[Tensor | None, Tensor | None]:
        if self._of_weight is not None and len(self._hidden) == 0:
            self._of_weight.zero_()
        return None if self._of_hidden is None else self._of_hidden.to(self._hidden.dtype), self._of_weight


def _multiply(a: Tensor, b: Tensor, out: Tensor, transposed: bool, add: bool) -> None:
    height, width = out.shape
    product = PRODUCT[b.dtype] if _even(width, a.stride(0), b.stride(0), out.stride(0)) else ODD_PRODUCT
    grid = (triton.cdiv(height, product["BLOCK_M"]), triton.cdiv(width, product["BLOCK_N"]))
    _product[grid](
        a, b, out, height, width, len(b), a.stride(0), b.stride(0), out.stride(0),
        TRANSPOSED=transposed, ADD=add, PRECISION=PRECISION, **product,
    )  # fmt: skip


REGISTER_BUDGET = 255  # all that a thread can name: one program of 256 threads fills a multiprocessor


def _tile_case(name: str, kernel: Any, dtype: torch.dtype, data: dict[str, str], **flags: Any) -> CompileCase:
    tile, whole = (TILE[dtype], "i32:16") if flags["EVEN_D"] else (ODD, "i32")
    sizes = {"T": "i32", "scale": "fp32"} | dict.fromkeys(("V", "D", "stride_h", "stride_w"), whole)
    blocks = {key: value for key, value in tile.items() if key.startswith("BLOCK")}
    return CompileCase(
        f"logprob.{name}", TYPE_NAMES[dtype], kernel, data | sizes,
        blocks | {"PRECISION": PRECISION} | flags,
        tile["num_warps"], tile["num_stages"], REGISTER_BUDGET,
    )  # fmt: skip


def _product_case(
    name: str, dtype: torch.dtype, transposed: bool, add: bool, even: bool = True
) -> CompileCase:
    product, data = PRODUCT[dtype] if even else ODD_PRODUCT, f"*{TYPE_NAMES[dtype]}"
    signature = {"a": data, "b": data, "out": "*fp32" if add else data, "M": "i32", "K": "i32"}
    signature |= dict.fromkeys(("N", "stride_a", "stride_b", "stride_out"), "i32:16" if even else "i32")
    if even:
        signature["M" if transposed else "K"] = "i32:16"
    blocks = {key: value for key, value in product.items() if key.startswith("BLOCK")}
    constexprs = blocks | {"PRECISION": PRECISION, "TRANSPOSED": transposed, "ADD": add}
    launch = product["num_warps"], product["num_stages"], REGISTER_BUDGET
    return CompileCase(f"logprob.{name}", TYPE_NAMES[dtype], _product, signature, constexprs, *launch)


def _cases(dtype: torch.dtype) -> list[CompileCase]:
    read = dict.fromkeys(("hidden", "weight"), data := f"*{TYPE_NAMES[dtype]}") | {"targets": "*i64"}
    back = read | dict.fromkeys(("lse", "entropy", "grad_logp", "grad_entropy"), "*fp32") | {"out": data}
    back |= {"first_row": "i32:16", "first_column": "i32:16", "width": "i32:16"}
    partial = read | {"partial": "*fp32", "chunks": "i32"}
    return [
        _tile_case("forward", _forward, dtype, partial, CHUNK=CHUNK, EVEN_D=True),
        _tile_case("forward/odd", _forward, dtype, partial, CHUNK=CHUNK, EVEN_D=False),
        _tile_case("grad_logits", _grad_logits, dtype, back, WITH_ENTROPY=False, EVEN_D=True),
        _tile_case("grad_logits+entropy", _grad_logits, dtype, back, WITH_ENTROPY=True, EVEN_D=True),
        _tile_case("grad_logits+entropy/odd", _grad_logits, dtype, back, WITH_ENTROPY=True, EVEN_D=False),
        _product_case("grad_hidden", dtype, False, True),
        _product_case("grad_weight", dtype, True, False),
        _product_case("grad_weight+rows", dtype, True, True),
        _product_case("grad_hidden/odd", dtype, False, True, even=False),
        _product_case("grad_weight+rows/odd", dtype, True, True, even=False),
    ]


_MERGED = dict.fromkeys(("partial", "logp", "entropy", "lse"), "*fp32") | {"T": "i32", "chunks": "i32"}
COMPILE_CASES = [CompileCase("logprob.merge", "fp32", _merge, _MERGED, {"BLOCK_T": MERGE_ROWS}, 4, 3, 64)]
COMPILE_CASES += [case for dtype in TYPE_NAMES for case in _cases(dtype)]


def forward_work(rows: int, width: int, vocab: int, dtype: torch.dtype) -> Work:
    """A tile of logits reads its rows of both factors whole: what it moves falls with the tile's sides."""
    tile, size = TILE[dtype], dtype.itemsize
    tall, wide = padded(rows, tile["BLOCK_T"]), padded(vocab, tile["BLOCK_V"])
    tiles = tall // tile["BLOCK_T"] * (wide // tile["BLOCK_V"])
    deep, needed = padded(width, tile["BLOCK_D"]), (rows + vocab) * width * size + rows * (8 + 8)
    moved = tiles * (tile["BLOCK_T"] + tile["BLOCK_V"]) * deep * size
    moved += rows * (20 + 2 * 16 * triton.cdiv(vocab, CHUNK))
    shape, least = _shape(rows, width, vocab, dtype), 2 * rows * width * vocab
    return Work("logprob forward", shape, needed, moved, least, 2 * tall * wide * deep)


def backward_work(rows: int, width: int, vocab: int, dtype: torch.dtype) -> Work:
    """Both gradients: the logits once more and two products; needed are the two products with the logits kept."""
    product, size, again = PRODUCT[dtype], dtype.itemsize, forward_work(rows, width, vocab, dtype)
    moved, done = again.bytes_moved + rows * vocab * size, again.operations_done
    stretches = triton.cdiv(vocab, COLUMNS)
    for height, inner, addends in ((rows, vocab, stretches), (vocab, rows, triton.cdiv(rows, ROWS))):
        tall, across = padded(height, product["BLOCK_M"]), padded(width, product["BLOCK_N"])
        tiles = tall // product["BLOCK_M"] * (across // product["BLOCK_N"])
        moved += tiles * (product["BLOCK_M"] + product["BLOCK_N"]) * inner * size
        moved += height * width * (4 * (2 * addends - 1) if addends > 1 else size)
        done += 2 * tall * across * inner
    shape, needed = _shape(rows, width, vocab, dtype), 2 * (rows + vocab) * width * size + rows * 24
    return Work("logprob backward", shape, needed, moved, 4 * rows * width * vocab, done)


def _shape(rows: int, width: int, vocab: int, dtype: torch.dtype) -> str:
    return f"T={rows} D={width} V={vocab} {TYPE_NAMES[dtype]}"


WORK = [
    formula(rows, width, vocab, dtype)
    for rows, width, vocab in ((2048, 576, 49_152), (2048, 1024, 128_256), (64, 576, 49_152))
    for dtype in (torch.bfloat16, torch.float32)
    for formula in (forward_work, backward_work)
]
