"""Qwen2.5-VL: a picture is a run of tokens in the row, each the tower's view of a square of patches.

How many tokens a picture takes depends on its size. They are placed in three dimensions, and what follows a picture
goes on behind its longer side (M-RoPE; Qwen2-VL, arXiv 2409.12191, section 2.1). The tower runs once for each picture
of a batch, however many rows or answers share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from sftrl_fast.core import Image, UserError
from sftrl_fast.models.packed import PackedTokens
from sftrl_fast.models.vision import Family, Generating, check_image, check_one_token, distinct

MODEL_TYPE = "qwen2_5_vl"
IMAGE_TOKEN = "<|image_pad|>"


@dataclass(frozen=True, slots=True)
class QwenVL:
    """The adapter; see :class:`~sftrl_fast.models.vision.Vision`."""

    image_id: int
    processor: Qwen2VLImageProcessorPil
    undrawn: tuple[int, ...]
    image_token: str = IMAGE_TOKEN

    @classmethod
    def of(cls, config: Any, tokenizer: Any, processor: Qwen2VLImageProcessorPil) -> QwenVL:
        """``UserError`` if the processor's patches are not the tower's, or the tokenizer has another image token."""
        vision = config.vision_config
        made = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
        taken = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        if made != taken:
            raise UserError(
                f"model.name: its image processor makes patches of {made} and its vision tower takes {taken} (pixels, "
                "patches merged a side, pictures in time)"
            )
        found = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if found != config.image_token_id:
            raise UserError(
                f"model.name: its tokenizer has {IMAGE_TOKEN} at {found} and the model at {config.image_token_id}"
            )
        marks = (config.image_token_id, config.video_token_id)
        return cls(config.image_token_id, processor, marks)

    def positions(self, image: Image) -> int:
        rows, columns = self._grid(image)
        return rows * columns * int(self.processor.merge_size) ** 2

    def expand(self, ids: list[int], image: Image) -> list[int]:
        check_one_token(ids, self.image_id)
        check_image(image)
        rows, columns = self._grid(image)
        place = ids.index(self.image_id)
        return ids[:place] + [self.image_id] * (rows * columns) + ids[place + 1 :]

    def parts(self, model: Any) -> dict[str, list[nn.Module]]:
        tower = model.model.visual
        return {
            "vision": [module for name, module in tower.named_children() if name != "merger"],
            "projector": [tower.merger],
            "language": [model.model.language_model, model.lm_head],
        }

    def save(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)

    def packed(self, model: Any, tokens: PackedTokens) -> dict[str, Any]:
        assert tokens.pictures is not None
        images, seen = distinct(tokens.pictures.images)
        features = self._features(model, images)
        is_image = tokens.ids == self.image_id
        shown = torch.cat([features[number] for number in seen])
        _check_count(int(is_image.sum()), len(shown))
        embedded = model.get_input_embeddings()(tokens.ids)
        embedded = embedded.masked_scatter(is_image[:, None], shown.to(embedded.dtype))
        positions = self._places(tokens, [self._grid(image) for image in tokens.pictures.images])
        return {
            "input_ids": None,
            "inputs_embeds": embedded.unsqueeze(0),
            "position_ids": positions.unsqueeze(1).to(tokens.ids.device),
        }

    def generating(self, model: Any, ids: Tensor, images: Sequence[Sequence[Image]]) -> Generating:
        """The tower's views go to ``generate`` as they are, those of a group's picture once for each of its rows."""
        flat = [image for row in images for image in row]
        found, seen = distinct(flat)
        features = self._features(model, found)
        shown = tuple(features[number] for number in seen)
        is_image = ids == self.image_id
        _check_count(int(is_image.sum()), sum(map(len, shown)))
        merge = self.processor.merge_size
        grids = [[1, rows * merge, columns * merge] for rows, columns in map(self._grid, flat)]
        device = model.device
        return Generating(
            {
                "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=shown)},  # type: ignore[arg-type]
                "image_grid_thw": torch.tensor(grids, device=device),
                "mm_token_type_ids": is_image.int().to(device),
            }
        )

    def _grid(self, image: Image) -> tuple[int, int]:
        """Rows and columns of the tokens that ``image`` takes. ``UserError`` for one that is a line."""
        processor: Any = self.processor
        square, limits = processor.patch_size * processor.merge_size, processor.size
        height, width = image.shape[0], image.shape[1]
        try:
            tall, wide = smart_resize(height, width, square, limits["shortest_edge"], limits["longest_edge"])
        except ValueError as fault:
            raise UserError(f"image of {height} x {width}: {fault}") from None
        return tall // square, wide // square

    def _features(self, model: Any, images: Sequence[Image]) -> list[Tensor]:
        """What stands for each picture in a row, ``[tokens, D]``."""
        pixels, grids = [], []
        for image in images:
            made = self.processor(image, input_data_format="channels_last", return_tensors="pt")
            pixels.append(made["pixel_values"])
            grids.append(made["image_grid_thw"])
        device = model.device
        seen = model.model.get_image_features(
            torch.cat(pixels).to(device), torch.cat(grids).to(device), return_dict=True
        )
        return list(seen.pooler_output)

    def _places(self, tokens: PackedTokens, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Of each token, in time and in the picture's rows and columns, int64 ``[3, T]``."""
        ids, offsets = tokens.ids.cpu().numpy(), tokens.layout.offsets.tolist()
        found, unseen = np.empty((3, len(ids)), dtype=np.int64), iter(grids)
        ends: list[int] = []
        for segment, parent in enumerate(tokens.layout.parent.tolist()):
            place, stop = offsets[segment], offsets[segment + 1]
            following = ends[parent] if parent >= 0 else 0
            starts = iter(np.flatnonzero(ids[place:stop] == self.image_id) + place)
            while place < stop:
                picture = next((int(start) for start in starts if start >= place), stop)
                found[:, place:picture] = following + np.arange(picture - place)
                following, place = following + picture - place, picture
                if place < stop:
                    rows, columns = next(unseen)
                    run = slice(place, place + rows * columns)
                    found[:, run] = following + np.stack(
                        [
                            np.zeros(rows * columns),
                            np.repeat(np.arange(rows), columns),
                            np.tile(np.arange(columns), rows),
                        ]
                    )
                    following, place = following + max(rows, columns), run.stop
            ends.append(following)
        return torch.from_numpy(found)


def _check_count(tokens: int, features: int) -> None:
    if tokens != features:
        raise UserError(f"rows hold {tokens} image tokens and pictures for {features}; needed: as many")


FAMILY = Family(Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil, QwenVL.of)
