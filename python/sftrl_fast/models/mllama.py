"""Llama-3.2-Vision (Mllama): tiles through a vision tower, then cross-attention from the text after the picture.

The tower runs once for each picture of a batch, and so do the cross-attention's keys and values, however many rows
or answers share it. Packed rows may mix text with pictures: a token without a picture passes the cross-attention
layers unchanged, as in transformers' text-only path.

The text before a picture (the template's header) attends to all of its positions, those of empty tiles included, and
skips only the feed-forward half of those layers: so transformers does, and so the released checkpoints were trained.
A token sees the last picture before it, those ahead of a row's first picture see that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MllamaForConditionalGeneration
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.modeling_mllama import MllamaTextCrossAttention

from sftrl_fast.core import Image, UserError
from sftrl_fast.models.packed import PackedTokens
from sftrl_fast.models.vision import Cells, Family, Generating, check_image, check_one_token, distinct
from sftrl_fast.ops.image_tiles import fit_grid, image_tiles

MODEL_TYPE = "mllama"
IMAGE_TOKEN = "<|image|>"


@dataclass(frozen=True, slots=True)
class Tiles:
    """Pictures as the tower takes them."""

    pixels: Tensor
    """``[P, 1, slots, 3, tile, tile]``."""
    ratio_ids: Tensor
    """Number of the grid in the model's list, from 1, int64 ``[P, 1]``."""
    counts: list[int]
    """Tiles in use of each picture."""

    def mask(self) -> Tensor:
        """1 for tiles in use, int64 ``[P, 1, slots]``."""
        slots = torch.arange(self.pixels.shape[2], device=self.pixels.device)
        counts = torch.tensor(self.counts, device=self.pixels.device)
        return (slots < counts[:, None]).long().unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Mllama:
    """The adapter; see :class:`~sftrl_fast.models.vision.Vision`."""

    image_id: int
    tile: int
    slots: int
    patches: int
    """Positions of a tile, the class position included."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    ratios: tuple[tuple[int, int], ...]
    """Grids the model knows, rows x columns, in the order of their numbers."""
    image_token: str = IMAGE_TOKEN
    undrawn: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: Any, tokenizer: Any, processor: MllamaImageProcessorPil) -> Mllama:
        """``UserError`` if the processor's tiles are not the tower's, or the tokenizer has another image token."""
        vision = config.vision_config
        size = processor.size["height"] if isinstance(processor.size, dict) else processor.size.height
        if (size, processor.max_image_tiles) != (vision.image_size, vision.max_num_tiles):
            raise UserError(
                f"model.name: its image processor makes {processor.max_image_tiles} tiles of {size} pixels and its "
                f"vision tower takes {vision.max_num_tiles} of {vision.image_size}"
            )
        found = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if found != config.image_token_index:
            raise UserError(
                f"model.name: its tokenizer has {IMAGE_TOKEN} at {found} and the model at {config.image_token_index}"
            )
        return cls(
            config.image_token_index, size, vision.max_num_tiles, (size // vision.patch_size) ** 2 + 1,
            tuple(processor.image_mean), tuple(processor.image_std),
            tuple((rows, columns) for rows, columns in vision.supported_aspect_ratios),
        )  # fmt: skip

    @property
    def picture_tokens(self) -> int:
        return self.slots * self.patches

    def positions(self, image: Image) -> int:  # noqa: ARG002  (every picture takes as many)
        return self.picture_tokens

    def save(self, folder: Path) -> None:
        MllamaImageProcessorPil(
            size={"height": self.tile, "width": self.tile}, max_image_tiles=self.slots,
            image_mean=list(self.mean), image_std=list(self.std),
        ).save_pretrained(folder)  # fmt: skip

    def parts(self, model: Any) -> dict[str, list[nn.Module]]:
        inner = model.model
        return {
            "vision": [inner.vision_model],
            "projector": [inner.multi_modal_projector],
            "language": [inner.language_model, model.lm_head],
        }

    def expand(self, ids: list[int], image: Image) -> list[int]:
        check_one_token(ids, self.image_id)
        check_image(image)
        return ids

    def tiles(self, images: Sequence[Image], dtype: torch.dtype, device: torch.device) -> Tiles:
        pixels, ratio_ids, counts = [], [], []
        for image in images:
            grid = fit_grid(image.shape[0], image.shape[1], self.tile, self.slots)
            # A copy, since torch warns of arrays that may not be written to; the tower takes a hundred times as long.
            source = torch.from_numpy(image.copy())
            pixels.append(
                image_tiles(
                    source, grid, tile=self.tile, slots=self.slots, mean=self.mean, std=self.std,
                    dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32,
                )
            )  # fmt: skip
            ratio_ids.append([self.ratios.index((grid.rows, grid.columns)) + 1])
            counts.append(grid.rows * grid.columns)
        stacked = torch.stack(pixels).unsqueeze(1).to(device, dtype)
        return Tiles(stacked, torch.tensor(ratio_ids, device=device), counts)

    def states(self, model: Any, tiles: Tiles) -> Tensor:
        """What the cross-attention reads of each picture, ``[P, slots x patches, D]``."""
        seen = model.model.vision_model(
            pixel_values=tiles.pixels, aspect_ratio_ids=tiles.ratio_ids, aspect_ratio_mask=tiles.mask()
        ).last_hidden_state
        projected: Tensor = model.model.multi_modal_projector(seen)
        return projected.reshape(len(tiles.counts), self.picture_tokens, -1)

    def packed(self, model: Any, tokens: PackedTokens) -> dict[str, Any]:
        assert tokens.pictures is not None
        images, seen = distinct(tokens.pictures.images)
        picture, after = self._pictures_of(tokens, seen)
        device = tokens.ids.device
        tiles = self.tiles(images, model.dtype, device)
        groups = []
        for number, count in enumerate(tiles.counts):
            for follows, length in ((True, count * self.patches), (False, self.picture_tokens)):
                places = np.flatnonzero((picture == number) & (after == follows))
                if len(places):
                    groups.append(_Group(torch.from_numpy(places).to(device), number, length))
        kept = torch.from_numpy((picture >= 0) & after).to(device, model.dtype).view(1, 1, -1, 1)
        return {
            "cross_attention_states": self.states(model, tiles),
            "full_text_row_masked_out_mask": kept,
            "crossed": _Crossed(len(images), groups),
        }

    def _pictures_of(self, tokens: PackedTokens, seen: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The picture each token sees, -1 for none, and whether the token stands at or after it."""
        ids = tokens.ids.cpu().numpy()
        places = np.flatnonzero(ids == self.image_id)
        if len(places) != len(seen):
            raise UserError(f"rows hold {len(places)} image tokens and {len(seen)} pictures; needed: as many")
        picture, after = np.full(len(ids), -1), np.ones(len(ids), dtype=bool)
        offsets = tokens.layout.offsets.tolist()
        for segment, parent in enumerate(tokens.layout.parent.tolist()):
            begin, end = offsets[segment], offsets[segment + 1]
            if parent >= 0:
                picture[begin:end] = picture[offsets[parent + 1] - 1]
            own = [i for i, place in enumerate(places.tolist()) if begin <= place < end]
            for number in own:
                picture[places[number] : end] = seen[number]
            if own and (parent < 0 or picture[begin] < 0):
                header = slice(begin, places[own[0]])
                picture[header], after[header] = seen[own[0]], False
        return picture, after

    def cells(self, model: Any, images: Sequence[Image]) -> list[Cells]:
        tiles = self.tiles(images, model.dtype, model.device)
        states = self.states(model, tiles)
        layers = model.model.language_model.layers
        each = [
            _keys_and_values(layers[i].cross_attn, states)
            for i in model.config.text_config.cross_attention_layers
        ]
        return [
            Cells([(k[p], v[p]) for k, v in each], count * self.patches)
            for p, count in enumerate(tiles.counts)
        ]

    def seen(self, context: np.ndarray, pictures: int) -> tuple[np.ndarray, np.ndarray]:
        places = np.flatnonzero(context == self.image_id)
        if len(places) != pictures:
            raise UserError(
                f"context holds {len(places)} image tokens and {pictures} pictures; needed: as many"
            )
        number = np.searchsorted(places, np.arange(len(context)), side="right") - 1
        follows = number >= 0
        return np.maximum(number, 0 if pictures else -1), follows

    def generating(self, model: Any, ids: Tensor, images: Sequence[Sequence[Image]]) -> Generating:
        each, flat = distinct([image for row in images for image in row])
        tiles = self.tiles(each, model.dtype, model.device)
        states = self.states(model, tiles)
        most, numbers = max(map(len, images)), iter(flat)
        # Rows with fewer pictures repeat one that none of their tokens sees.
        of_row = [[next(numbers) for _ in row] for row in images]
        index = torch.tensor([row + row[-1:] * (most - len(row)) for row in of_row], device=states.device)
        mask = torch.zeros(*ids.shape, most, self.slots, dtype=torch.int64)
        for row, seen in enumerate(of_row):
            places = (ids[row] == self.image_id).nonzero()[:, 0].tolist()
            if len(places) != len(seen):
                raise UserError(
                    f"context holds {len(places)} image tokens and {len(seen)} pictures; needed: as many"
                )
            for number, (begin, end) in enumerate(zip(places, [*places[1:], ids.shape[1]], strict=True)):
                mask[row, begin:end, number, : tiles.counts[seen[number]]] = 1
        layers = model.model.language_model.layers
        cached = {
            i: tuple(_of_rows(part, index) for part in _keys_and_values(layers[i].cross_attn, states))
            for i in model.config.text_config.cross_attention_layers
        }
        return Generating({"cross_attention_mask": mask.to(states.device)}, cached)  # type: ignore[arg-type]


FAMILY = Family(MllamaForConditionalGeneration, MllamaImageProcessorPil, Mllama.of)


def _keys_and_values(attention: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Of every picture, ``[P, kv heads, S, Dh]`` each."""
    shape = (*states.shape[:2], attention.num_key_value_heads, attention.head_dim)
    keys, values = (
        project(states).view(shape).transpose(1, 2) for project in (attention.k_proj, attention.v_proj)
    )
    return attention.k_norm(keys), values


def _of_rows(part: Tensor, index: Tensor) -> Tensor:
    """``[P, heads, S, Dh]`` to ``[B, heads, n x S, Dh]``, row b those of the pictures ``index[b]``."""
    rows, most = index.shape
    _, heads, _, dim = part.shape
    if most == 1 and len(part) == 1:
        return part.expand(rows, -1, -1, -1)
    return part[index].transpose(1, 2).reshape(rows, heads, -1, dim)


@dataclass(frozen=True, slots=True)
class _Group:
    """Tokens that see the same positions."""

    tokens: Tensor
    picture: int
    length: int


@dataclass(frozen=True, slots=True)
class _Crossed:
    """Cross-attention of packed tokens, a group at a time; tokens of no group get zeros."""

    pictures: int
    groups: list[_Group]

    def covers(self, module: nn.Module) -> bool:
        return isinstance(module, MllamaTextCrossAttention)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        _, heads, tokens, dim = query.shape
        keys, values = (part[0].unflatten(1, (self.pictures, -1)) for part in (key, value))
        parts = []
        for group in self.groups:
            k, v = (part[:, group.picture, : group.length].unsqueeze(0) for part in (keys, values))
            q = query[:, :, group.tokens]
            parts.append(F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)[0])
        out = query.new_zeros(tokens, heads, dim)
        places = torch.cat([group.tokens for group in self.groups])
        return out.index_copy(0, places, torch.cat(parts, dim=1).transpose(0, 1)).unsqueeze(0)
