"""The engine's own forward pass: the newest tokens of many sequences at once, over a paged cache.

It reads the parameters of the trainer's transformers model and no code of it; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftrl_fast.core import UserError
from sftrl_fast.models.decoder_weights import CrossWeights, DecoderWeights, LayerWeights
from sftrl_fast.models.families import body, why_not
from sftrl_fast.models.projection import Projection
from sftrl_fast.ops.attention import CacheRows
from sftrl_fast.ops.dispatch import choose, resolve

if TYPE_CHECKING:
    from sftrl_fast.ops.cpp.decoder_layers import CppDecoderLayers

_OPS = ("rms_norm", "rope_cache", "cached_attention", "swiglu")


@dataclass(frozen=True, slots=True)
class Shown:
    """Tokens of a pass that see the same positions of one picture."""

    tokens: Tensor
    """int64, their places in the pass."""
    cells: Sequence[tuple[Tensor, Tensor]]
    """The picture's keys and values in each layer that attends to pictures, ``[Hkv, S, Dh]``."""
    length: int
    """Of the S positions, how many of the first they see."""
    follows: bool
    """Whether they stand at or behind the picture: ahead of one, the feed-forward half of those layers is skipped."""


def attend(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attention of ``[T, Hq, Dh]`` to ``[Hkv, S, Dh]``, all positions; ``[T, Hq, Dh]``.

    The query heads of a key head, and the tokens, become rows of one product.
    """
    tokens, heads, dim = query.shape
    folded = query.view(tokens, len(keys), -1, dim).transpose(0, 1).reshape(1, len(keys), -1, dim)
    found = F.scaled_dot_product_attention(folded, keys.unsqueeze(0), values.unsqueeze(0), scale=scale)
    return found[0].view(len(keys), tokens, -1, dim).transpose(0, 1).reshape(tokens, heads, dim)


class Decoder:
    """A Llama-type model as a function of its newest tokens. Raises :class:`ValueError` where :meth:`why_not` says why.

    Weights that the chosen implementation packs are copies; :meth:`sync` renews them when the model's have changed.
    Where every op's implementation is ``cpp``, one call runs all layers; ``fused=False`` makes a call an op, with the
    same result.
    """

    def __init__(self, model: nn.Module, *, fused: bool = True) -> None:
        if reason := why_not(model):
            raise ValueError(f"{type(model).__name__} is not covered: {reason}")
        self._weights = weights = DecoderWeights.of(model)
        self._model = cast(Any, model)
        self._body = body(model)
        self.layers, self.kv_heads, self.head_dim = len(weights.layers), weights.kv_heads, weights.head_dim
        self._heads = [weights.heads, weights.kv_heads, weights.kv_heads]
        self.vocabulary, self.hidden_size = self._body.embed_tokens.weight.shape
        self.max_context = weights.max_context
        self.dtype, self.device, _ = weights.kind
        self._eps, self._scale = weights.eps, weights.scale
        self._fused = fused
        self._head = Projection([self._model.lm_head])
        self._bind()

    why_not = staticmethod(why_not)

    @property
    def weights_version(self) -> int:
        """Rises when :meth:`sync`, of this decoder or of another on the same model, finds the weights changed."""
        return self._weights.version

    def sync(self, *, thorough: bool) -> bool:
        """Take over the model's weights if they changed, and say whether they did since the last call.

        ``thorough`` as for :meth:`~sftrl_fast.models.decoder_weights.DecoderWeights.sync`. ``UserError`` if the model
        itself was changed: adapters put in, another type or device.
        """
        if thorough and (reason := why_not(self._model)):
            raise UserError(f"the model was changed into one that the decoder does not cover: {reason}")
        self._weights.sync(thorough=thorough)
        if self._bound == self._weights.version:
            return False
        self._head.update([self._model.lm_head])
        self._bind()
        return True

    def _bind(self) -> None:
        weight = self._body.embed_tokens.weight
        # Chosen once: a step calls each of these for every layer, with arguments that cannot be wrong.
        self._rms_norm, self._rope_cache, self._attention, self._swiglu = (
            resolve(op, tensor=weight) for op in _OPS
        )
        self._embedding, self._final_norm = weight.detach(), self._body.norm.weight.detach().contiguous()
        self._whole = self._in_one_call() if self._fused and self._all_cpp() else None
        self._bound = self._weights.version

    def _all_cpp(self) -> bool:
        return all(choose(op, tensor=self._embedding) == "cpp" for op in (*_OPS, "linear"))

    def _in_one_call(self) -> CppDecoderLayers:
        from sftrl_fast.ops.cpp.decoder_layers import CppDecoderLayers

        parts = [
            (
                layer.norm, layer.qkv.packed, layer.q_norm, layer.k_norm, layer.out.packed, layer.mlp_norm,
                layer.gate_up.packed, layer.down.packed,
            )
            for layer in self._weights.layers
        ]  # fmt: skip
        return CppDecoderLayers(parts, self._final_norm, self.head_dim, self._eps, self._scale)

    @torch.no_grad()
    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        rows: CacheRows,
        keys: list[Tensor],
        values: list[Tensor],
        wanted: Tensor,
        shown: Sequence[Shown] = (),
    ) -> Tensor:
        """Encode T tokens into the cache; the normalised last hidden states of those ``wanted``, ``[R, D]``.

        ``tokens`` int64 ``[T]``; ``positions`` int64 ``[T]`` in their sequences; ``slots`` int64 ``[T]``, where in the
        cache each one's keys and values go (page times page size plus offset); ``rows`` the sequences they belong to,
        in the same order; ``keys`` and ``values`` a ``[pages, Hkv, page, Dh]`` a layer; ``wanted`` int64 ``[R]``,
        places in ``tokens``, ascending. ``shown`` tells which of them see a picture; no token is in two. Arguments are
        trusted.
        """
        tables = self._weights.rotary(int(positions.max()) + 1)
        x, residual = F.embedding(tokens, self._embedding), None
        if self._whole is not None and not shown:
            return self._whole.run(x, tables, positions, slots, rows, keys, values, wanted)
        crossing = list(self._weights.cross) if shown else []
        last = None if crossing and crossing[-1][0] == self.layers else self._weights.layers[-1]
        for number, (layer, k_cache, v_cache) in enumerate(
            zip(self._weights.layers, keys, values, strict=True)
        ):
            x, residual = self._cross(crossing, number, shown, x, residual)
            x, residual = self._rms_norm(x, layer.norm, self._eps, residual)
            q, k, v = self._project(layer, x)
            q = self._rope_cache(q, k, v, *tables, positions, slots, k_cache, v_cache)
            mixed = self._attention(q, k_cache, v_cache, rows, self._scale).view(len(x), -1)
            if layer is last:
                mixed, residual = mixed[wanted], residual[wanted]
            x, residual = self._rms_norm(layer.out(mixed), layer.mlp_norm, self._eps, residual)
            x = layer.down(self._swiglu(layer.gate_up(x)))
        if last is None:
            x, residual = self._cross(crossing, self.layers, shown, x, residual)
            x, residual = x[wanted], residual[wanted]
        return self._rms_norm(x, self._final_norm, self._eps, residual)[0]

    def _cross(
        self,
        crossing: list[tuple[int, CrossWeights]],
        number: int,
        shown: Sequence[Shown],
        x: Tensor,
        residual: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The layers that attend to pictures ahead of layer ``number``; a token that sees none passes as it is."""
        for depth, (place, layer) in enumerate(crossing):
            if place == number:
                x, residual = self._look(layer, depth, shown, x, residual)
        return x, residual

    def _look(
        self, layer: CrossWeights, depth: int, shown: Sequence[Shown], x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        normed, residual = self._rms_norm(x, layer.norm, self._eps, residual)
        query = self._head_norm(layer.q(normed).view(len(x), -1, self.head_dim), layer.q_norm)
        mixed = query.new_zeros(query.shape)
        follows = x.new_zeros(len(x), 1)
        for each in shown:
            keys, values = each.cells[depth]
            mixed[each.tokens] = attend(
                query[each.tokens], keys[:, : each.length], values[:, : each.length], self._scale
            )
            if each.follows:
                follows[each.tokens] = 1
        x, residual = self._rms_norm(
            layer.out(mixed.flatten(1)) * layer.gate, layer.mlp_norm, self._eps, residual
        )
        return layer.down(self._swiglu(layer.gate_up(x))) * (layer.mlp_gate * follows), residual

    def _project(self, layer: LayerWeights, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[T, Hq, Dh]``, keys and values ``[T, Hkv, Dh]``, views into one row a token."""
        qkv = layer.qkv(x).view(len(x), -1, self.head_dim)
        q, k, v = qkv.split_with_sizes(self._heads, 1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._head_norm(q, layer.q_norm), self._head_norm(k, layer.k_norm)
        return q, k, v

    def _head_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        normed: Tensor = self._rms_norm(x.reshape(-1, self.head_dim), weight, self._eps, None)[0]
        return normed.view(x.shape)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits ``[R, V]`` of normalised hidden states ``[R, D]``."""
        return self._head(hidden, torch.float32)
