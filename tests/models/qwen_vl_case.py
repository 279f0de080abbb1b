"""A small random Qwen2.5-VL, its tokenizer and pictures; the same inputs by way of transformers' own processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sftrl_fast.models.chat import Chat
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.models.qwen_vl import IMAGE_TOKEN, QwenVL
from sftrl_fast.models.tiny import ASSETS

START, END = "<|vision_start|>", "<|vision_end|>"
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def processor() -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84}, patch_size=7, merge_size=2
    )


def make(context: int = 512) -> LanguageModel:
    """Two layers of language, two of vision, one of which looks through windows."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS)
    tokenizer.add_special_tokens({"additional_special_tokens": [START, END, IMAGE_TOKEN, "<|video_pad|>"]})
    tokenizer.chat_template = TEMPLATE
    ids = {
        token: tokenizer.convert_tokens_to_ids(token) for token in (START, END, IMAGE_TOKEN, "<|video_pad|>")
    }
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 32, "depth": 2, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 48,
            "patch_size": 7, "window_size": 28, "fullatt_block_indexes": [1],
        },
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": context,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
            "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
        },
        image_token_id=ids[IMAGE_TOKEN], video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids[START],
        vision_end_token_id=ids[END],
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 0.1))
    vision = QwenVL.of(config, tokenizer, processor())
    return LanguageModel(model.eval(), tokenizer, Chat(tokenizer, vision), vision)


def theirs(language: LanguageModel, ids: list[int], images: Sequence[np.ndarray]) -> dict[str, Any]:
    """What transformers' processor would make of one row."""
    tokens = torch.tensor([ids])
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if images:
        found = processor()(list(images), input_data_format="channels_last", return_tensors="pt")
        is_image = tokens == language.model.config.image_token_id
        inputs |= dict(found) | {"mm_token_type_ids": is_image.int()}
    return inputs


def logprobs(
    language: LanguageModel, ids: list[int], images: Sequence[np.ndarray], without: Sequence[int] = ()
) -> Tensor:
    """Of the row's tokens after the first, by transformers, where tokens ``without`` have no part."""
    language.model.model.rope_deltas = None
    logits = language.model(**theirs(language, ids, images), use_cache=False).logits[0, :-1]
    logits[:, list(without)] = float("-inf")
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
