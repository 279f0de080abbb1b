"""A Llama-type model's weights as the kernels want them: one copy for all that run the model, never of yesterday."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sftrl_fast.core import UserError
from sftrl_fast.models.families import body, crosses
from sftrl_fast.models.projection import Projection
from sftrl_fast.models.weights import WeightsWatch
from sftrl_fast.ops.dispatch import choose


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer's parameters; norms refer to the model's tensors."""

    norm: Tensor
    qkv: Projection
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Projection
    mlp_norm: Tensor
    gate_up: Projection
    down: Projection


@dataclass(frozen=True, slots=True)
class CrossWeights:
    """A layer that attends to pictures, number ``depth`` of those; norms refer to the model's tensors. The gates,
    ``[1]``, scale what it adds."""

    depth: int
    norm: Tensor
    q: Projection
    q_norm: Tensor
    out: Projection
    gate: Tensor
    mlp_norm: Tensor
    gate_up: Projection
    down: Projection
    mlp_gate: Tensor


class DecoderWeights:
    """Engine and trainer each take a model's from :meth:`of`, so that they are packed once after an update.

    Refers to the model's parameters and not to the model, which must be one that
    :func:`~sftrl_fast.models.families.why_not` has nothing against.
    """

    def __init__(self, model: nn.Module) -> None:
        self.kind = _kind(model)
        self._body = decoder = body(model)
        self._plain = [layer for layer in decoder.layers if not crosses(layer)]
        config, attention = decoder.config, self._plain[0].self_attn
        self.heads, self.kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.head_dim, self.scale = int(attention.head_dim), float(attention.scaling)
        self.eps, self.max_context = float(config.rms_norm_eps), int(config.max_position_embeddings)
        self._watch = WeightsWatch(model)
        self._bound = self._watch.version
        self._cos = self._sin = torch.empty(0, self.head_dim)
        self.layers = [_layer(layer) for layer in self._plain]
        self.cross = [
            (place, _cross(layer, depth)) for depth, (place, layer) in enumerate(_crossing(decoder))
        ]
        """Layers that attend to pictures, each ahead of the one of ``layers`` with that number."""

    @classmethod
    def of(cls, model: nn.Module) -> DecoderWeights:
        """The model's, as its weights are now."""
        known = _shared.get(model)
        if known is None or known.kind != _kind(model):
            known = _shared[model] = cls(model)
        known.sync(thorough=True)
        return known

    @property
    def version(self) -> int:
        """Rises when :meth:`sync` finds the weights changed."""
        return self._watch.version

    def sync(self, *, thorough: bool) -> None:
        """Take over the model's weights if they changed.

        ``thorough`` looks at every value; without it a write through ``.data`` may go unseen
        (:class:`~sftrl_fast.models.weights.WeightsWatch`). ``UserError`` if they are of another type or device now.
        """
        self._watch.changed(thorough=thorough)
        # An interrupt amid the packing leaves `_bound` behind, and so no half-packed weights in use.
        if self._bound == self._watch.version:
            return
        (dtype, device, _), now = self.kind, self._body.embed_tokens.weight
        if (now.dtype, now.device) != (dtype, device):
            came = f"{now.dtype} on {now.device}"
            raise UserError(f"the model is {came} now and was {dtype} on {device}: make a new engine")
        self.layers = [_layer(layer, old) for layer, old in zip(self._plain, self.layers, strict=True)]
        self.cross = [
            (place, _cross(layer, old.depth, old))
            for (place, layer), (_, old) in zip(_crossing(self._body), self.cross, strict=True)
        ]
        self._bound = self._watch.version

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of at least ``length`` positions, ``[P, Dh / 2]``, made by the model's own module."""
        if length > len(self._cos):
            dtype, device, _ = self.kind
            size = min(max(256, 1 << (length - 1).bit_length()), self.max_context)
            at = torch.arange(size, device=device).unsqueeze(0)
            tables = self._body.rotary_emb(torch.empty(0, dtype=dtype, device=device), at)
            # Both halves of a head turn by the same angles, and the module gives them twice.
            self._cos, self._sin = (table[0, :, : self.head_dim // 2].contiguous() for table in tables)
        return self._cos, self._sin


_shared: WeakKeyDictionary[nn.Module, DecoderWeights] = WeakKeyDictionary()


def _kind(model: nn.Module) -> tuple[torch.dtype, torch.device, str]:
    """Type, device and the implementation that the weights are packed for."""
    weight = body(model).embed_tokens.weight
    return weight.dtype, weight.device, choose("linear", tensor=weight)


def _layer(layer: Any, old: LayerWeights | None = None) -> LayerWeights:
    """The layer's weights as they are now, packed in the place of ``old``."""
    attention, mlp = layer.self_attn, layer.mlp
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    q_norm, k_norm = (None if norm is None else norm.weight.detach().contiguous() for norm in norms)
    modules = {
        "qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
        "out": [attention.o_proj],
        "gate_up": [mlp.gate_proj, mlp.up_proj],
        "down": [mlp.down_proj],
    }
    return LayerWeights(
        norm=layer.input_layernorm.weight.detach().contiguous(),
        q_norm=q_norm,
        k_norm=k_norm,
        mlp_norm=layer.post_attention_layernorm.weight.detach().contiguous(),
        **_packed(modules, old),
    )


def _crossing(decoder: Any) -> list[tuple[int, Any]]:
    """The layers that attend to pictures, with how many other layers go before each."""
    found, before = [], 0
    for layer in decoder.layers:
        if crosses(layer):
            found.append((before, layer))
        else:
            before += 1
    return found


def _cross(layer: Any, depth: int, old: CrossWeights | None = None) -> CrossWeights:
    attention, mlp = layer.cross_attn, layer.mlp
    modules = {
        "q": [attention.q_proj],
        "out": [attention.o_proj],
        "gate_up": [mlp.gate_proj, mlp.up_proj],
        "down": [mlp.down_proj],
    }
    return CrossWeights(
        depth=depth,
        norm=layer.input_layernorm.weight.detach().contiguous(),
        q_norm=attention.q_norm.weight.detach().contiguous(),
        gate=layer.cross_attn_attn_gate.detach().tanh(),
        mlp_norm=layer.post_attention_layernorm.weight.detach().contiguous(),
        mlp_gate=layer.cross_attn_mlp_gate.detach().tanh(),
        **_packed(modules, old),
    )


def _packed(modules: dict[str, list[Any]], old: LayerWeights | CrossWeights | None) -> dict[str, Projection]:
    """The projections of a layer, in the place of the ``old`` ones."""
    if old is None:
        return {name: Projection(parts) for name, parts in modules.items()}
    for name, parts in modules.items():
        getattr(old, name).update(parts)
    return {name: getattr(old, name) for name in modules}
