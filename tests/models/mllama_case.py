"""A small random Mllama, its tokenizer and pictures; the same inputs by way of transformers' own code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from transformers import AutoTokenizer, MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from sftrl_fast.models.chat import Chat
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.models.mllama import IMAGE_TOKEN, Mllama
from sftrl_fast.models.tiny import ASSETS

TILE = 28
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RATIOS = {1: [[1, 1]], 4: [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]}


def processor(slots: int) -> MllamaImageProcessorPil:
    return MllamaImageProcessorPil(size={"height": TILE, "width": TILE}, max_image_tiles=slots)


def make(slots: int = 4, *, context: int = 512) -> LanguageModel:
    """Two self- and two cross-attention layers; gates and norms away from where they start."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS)
    vocabulary = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = MllamaConfig(
        vision_config={
            "hidden_size": 32, "attention_heads": 2, "num_hidden_layers": 2, "num_global_layers": 1,
            "intermediate_size": 48, "vision_output_dim": 64, "image_size": TILE, "patch_size": 7,
            "max_num_tiles": slots, "intermediate_layers_indices": [1], "supported_aspect_ratios": RATIOS[slots],
        },
        text_config={
            "vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 48, "cross_attention_layers": [1, 3],
            "max_position_embeddings": context, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
        },
        image_token_index=vocabulary,
    )  # fmt: skip
    model = MllamaForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.dim() > 1 else 0.5 if "gate" in name else 0.2
            parameter.add_(torch.randn_like(parameter) * spread)
    vision = Mllama.of(config, tokenizer, processor(slots))
    return LanguageModel(model.eval(), tokenizer, Chat(tokenizer, vision), vision)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image.setflags(write=False)
    return image


def theirs(language: LanguageModel, ids: list[int], images: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """What transformers' processor would make of one row."""
    config: Any = language.model.config
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    if images:
        slots = config.vision_config.max_num_tiles
        found = processor(slots)([[Pillow.fromarray(image) for image in images]], return_tensors="pt")
        tiles = found.pop("num_tiles")
        sparse = [get_cross_attention_token_mask(ids, config.image_token_index)]
        mask = convert_sparse_cross_attention_mask_to_dense(sparse, tiles, slots, len(ids))
        inputs |= dict(found) | {"cross_attention_mask": torch.from_numpy(mask)}
    return inputs


def logprobs(language: LanguageModel, ids: list[int], images: Sequence[np.ndarray]) -> Tensor:
    """Of the row's tokens after the first, by transformers; image tokens have none and get 0."""
    logits = language.model(**theirs(language, ids, images), use_cache=False).logits[0, :-1]
    targets = torch.tensor(ids[1:])
    known = targets < logits.shape[-1]
    found = logits.log_softmax(-1).gather(1, targets.where(known, 0)[:, None])[:, 0]
    return found.where(known, 0.0)
