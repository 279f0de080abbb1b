"""The engine's own forward pass: the newest tokens of many sequences at once, over a paged cache.

It reads the parameters of the trainer's transformers model and no code of it; a test holds the two together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftrl_fast.core import UserError
from sftrl_fast.models.decoder_weights import CrossWeights, DecoderWeights, LayerWeights
from sftrl_fast.models.families import body, why_not
from sftrl_fast.models.projection import Projection
from sftrl_fast.ops.attention import CacheRows, Shown
from sftrl_fast.ops.dispatch import choose, resolve

if TYPE_CHECKING:
    from sftrl_fast.ops.cpp.decoder_layers import CppDecoderLayers, Layer

_OPS = ("rms_norm", "rope_cache", "cached_attention", "swiglu")


_Step = tuple[tuple[Tensor, Tensor], Tensor, Tensor, CacheRows]
"""Rotary tables, positions, slots, rows: what all layers of a pass read."""


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
        self.cross_layers = len(weights.cross)
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
        layers: list[LayerWeights | CrossWeights] = list(self._weights.layers)
        self._blind = self._in_one_call(layers)
        for place, layer in reversed(self._weights.cross):
            layers.insert(place, layer)
        self._layers = layers
        self._seeing = self._in_one_call(layers) if self._weights.cross else self._blind
        self._bound = self._weights.version

    def _in_one_call(self, layers: list[LayerWeights | CrossWeights]) -> CppDecoderLayers | None:
        if not (self._fused and all(choose(op, tensor=self._embedding) == "cpp" for op in (*_OPS, "linear"))):
            return None
        from sftrl_fast.ops.cpp.decoder_layers import CppDecoderLayers

        return CppDecoderLayers(
            [_parts(layer) for layer in layers], self._final_norm, self.head_dim, self._eps, self._scale
        )

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
        shown: Shown | None = None,
    ) -> Tensor:
        """Encode T tokens into the cache; the normalised last hidden states of those ``wanted``, ``[R, D]``.

        ``tokens`` int64 ``[T]``; ``positions`` int64 ``[T]`` in their sequences; ``slots`` int64 ``[T]``, where in the
        cache each one's keys and values go (page times page size plus offset); ``rows`` the sequences they belong to,
        in the same order; ``keys`` and ``values`` a ``[pages, Hkv, page, Dh]`` a layer; ``wanted`` int64 ``[R]``,
        places in ``tokens``, ascending. ``shown`` tells which of them see a picture. Arguments are trusted.
        """
        rotary = self._weights.rotary(int(positions.max()) + 1)
        x = F.embedding(tokens, self._embedding)
        in_one_call = self._blind if shown is None else self._seeing
        if in_one_call is not None:
            return in_one_call.run(x, rotary, positions, slots, rows, keys, values, wanted, shown)
        step = (rotary, positions, slots, rows)
        layers = self._weights.layers if shown is None else self._layers
        residual, number = None, 0
        for place, layer in enumerate(layers, 1):
            # Behind the last layer's attention only what somebody reads goes on.
            last = wanted if place == len(layers) else None
            if isinstance(layer, LayerWeights):
                x, residual = self._layer(layer, x, residual, step, keys[number], values[number], last)
                number += 1
            else:
                assert shown is not None
                x, residual = self._look(layer, shown, x, residual, last)
        return self._rms_norm(x, self._final_norm, self._eps, residual)[0]

    def _layer(
        self, layer: LayerWeights, x: Tensor, residual: Tensor | None, step: _Step, keys: Tensor, values: Tensor,
        wanted: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What a layer adds to the residual stream, which is ``x + residual`` ahead of it; and that stream so far.
        With ``wanted`` of those tokens only."""
        rotary, positions, slots, rows = step
        x, residual = self._rms_norm(x, layer.norm, self._eps, residual)
        q, k, v = self._project(layer, x)
        q = self._rope_cache(q, k, v, *rotary, positions, slots, keys, values)
        mixed = self._attention(q, keys, values, rows, self._scale).view(len(x), -1)
        if wanted is not None:
            mixed, residual = mixed[wanted], residual[wanted]
        x, residual = self._rms_norm(layer.out(mixed), layer.mlp_norm, self._eps, residual)
        return layer.down(self._swiglu(layer.gate_up(x))), residual

    def _look(
        self, layer: CrossWeights, shown: Shown, x: Tensor, residual: Tensor | None, wanted: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`_layer`, of one that attends to pictures; it adds zero to a token that sees none."""
        x, residual = self._rms_norm(x, layer.norm, self._eps, residual)
        query = self._head_norm(layer.q(x).view(len(x), -1, self.head_dim), layer.q_norm)
        keys, values = shown.keys[layer.depth], shown.values[layer.depth]
        if shown.tokens is None:
            mixed = self._attention(query, keys, values, shown.rows, self._scale)
        else:
            mixed = torch.zeros_like(query)
            mixed[shown.tokens] = self._attention(query[shown.tokens], keys, values, shown.rows, self._scale)
        follows = shown.follows
        if wanted is not None:
            mixed, residual, follows = mixed[wanted], residual[wanted], follows[wanted]
        added = layer.out(mixed.flatten(1)) * layer.gate
        x, residual = self._rms_norm(added, layer.mlp_norm, self._eps, residual)
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


def _parts(layer: LayerWeights | CrossWeights) -> Layer:
    """The layer as the call of all layers takes it."""
    half = layer.out.packed, layer.mlp_norm, layer.gate_up.packed, layer.down.packed
    if isinstance(layer, CrossWeights):
        return layer.norm, layer.q.packed, layer.q_norm, None, *half, layer.gate, layer.mlp_gate
    return layer.norm, layer.qkv.packed, layer.q_norm, layer.k_norm, *half, None, None
