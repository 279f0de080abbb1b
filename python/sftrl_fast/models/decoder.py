"""The engine's own forward pass: the newest tokens of many sequences at once, over a paged cache.

It reads the parameters of the trainer's transformers model and no code of it; a test holds the two together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftrl_fast.core import UserError
from sftrl_fast.models.decoder_weights import DecoderWeights, LayerWeights
from sftrl_fast.models.families import why_not
from sftrl_fast.models.projection import Projection
from sftrl_fast.ops.attention import CacheRows
from sftrl_fast.ops.dispatch import choose, resolve

if TYPE_CHECKING:
    from sftrl_fast.ops.cpp.decoder_layers import CppDecoderLayers

_OPS = ("rms_norm", "rope_cache", "cached_attention", "swiglu")


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
        self._body = self._model.model
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
    ) -> Tensor:
        """Encode T tokens into the cache; the normalised last hidden states of those ``wanted``, ``[R, D]``.

        ``tokens`` int64 ``[T]``; ``positions`` int64 ``[T]`` in their sequences; ``slots`` int64 ``[T]``, where in the
        cache each one's keys and values go (page times page size plus offset); ``rows`` the sequences they belong to,
        in the same order; ``keys`` and ``values`` a ``[pages, Hkv, page, Dh]`` a layer; ``wanted`` int64 ``[R]``,
        places in ``tokens``, ascending. Arguments are trusted.
        """
        tables = self._weights.rotary(int(positions.max()) + 1)
        x, residual = F.embedding(tokens, self._embedding), None
        if self._whole is not None:
            return self._whole.run(x, tables, positions, slots, rows, keys, values, wanted)
        for layer, k_cache, v_cache in zip(self._weights.layers, keys, values, strict=True):
            x, residual = self._rms_norm(x, layer.norm, self._eps, residual)
            q, k, v = self._project(layer, x)
            q = self._rope_cache(q, k, v, *tables, positions, slots, k_cache, v_cache)
            mixed = self._attention(q, k_cache, v_cache, rows, self._scale).view(len(x), -1)
            if layer is self._weights.layers[-1]:
                mixed, residual = mixed[wanted], residual[wanted]
            x, residual = self._rms_norm(layer.out(mixed), layer.mlp_norm, self._eps, residual)
            x = layer.down(self._swiglu(layer.gate_up(x)))
        return self._rms_norm(x, self._final_norm, self._eps, residual)[0]

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
