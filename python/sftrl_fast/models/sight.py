"""A vision-language model made from a text model: an Mllama around a Llama's weights.

The new cross-attention layers stand between the old ones and their gates are closed (0), so that until they are
trained every answer is the text model's own, pictures or not.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from sftrl_fast.core import UserError
from sftrl_fast.models.chat import Chat
from sftrl_fast.models.load import LanguageModel
from sftrl_fast.models.mllama import IMAGE_TOKEN, Mllama

# Turns contents that are lists of parts into texts, then goes on with the text model's own template.
_FLATTEN = """\
{%- set seen = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set text -%}
{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}
{%- for part in message['content'] -%}{{ 'TOKEN' if part['type'] == 'image' else part['text'] }}{%- endfor -%}
{%- endif -%}
{%- endset -%}
{%- set seen.messages = seen.messages + [{'role': message['role'], 'content': text}] -%}
{%- endfor -%}
{%- set messages = seen.messages -%}
""".replace("TOKEN", IMAGE_TOKEN)


@dataclass(frozen=True, slots=True)
class Tower:
    """Sizes of the vision tower. One tile a picture."""

    tile: int = 112
    patch: int = 14
    hidden: int = 96
    heads: int = 4
    layers: int = 3
    global_layers: int = 1
    feed_forward: int = 256


def give_sight(text: LanguageModel, tower: Tower, cross_layers: tuple[int, ...]) -> LanguageModel:
    """An Mllama that holds the text model's weights; what is new is drawn from torch's global generator.

    ``cross_layers`` are the places of the new layers among all. Raises ``UserError`` for a text model that is no plain
    Llama, and for places that are none.
    """
    source: Any = text.model
    _check(source, text.tokenizer, cross_layers)
    old = source.config
    layers = old.num_hidden_layers + len(cross_layers)
    # A copy, so that the text model keeps its own.
    tokenizer: Any = copy.deepcopy(text.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.chat_template = _FLATTEN + text.tokenizer.chat_template
    config = MllamaConfig(
        vision_config={
            "hidden_size": tower.hidden, "attention_heads": tower.heads, "num_hidden_layers": tower.layers,
            "num_global_layers": tower.global_layers, "intermediate_size": tower.feed_forward,
            "vision_output_dim": 2 * tower.hidden, "image_size": tower.tile, "patch_size": tower.patch,
            "max_num_tiles": 1, "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]],
        },
        text_config={
            "vocab_size": old.vocab_size, "hidden_size": old.hidden_size, "num_hidden_layers": layers,
            "num_attention_heads": old.num_attention_heads, "num_key_value_heads": old.num_key_value_heads,
            "intermediate_size": old.intermediate_size, "rms_norm_eps": old.rms_norm_eps,
            "rope_parameters": old.rope_parameters, "max_position_embeddings": old.max_position_embeddings,
            "cross_attention_layers": list(cross_layers), "pad_token_id": old.pad_token_id or 0,
            "bos_token_id": old.bos_token_id or 0, "eos_token_id": old.eos_token_id,
        },
        image_token_index=old.vocab_size,
    )  # fmt: skip
    model = MllamaForConditionalGeneration(config).to(source.dtype)
    _copy(source, model, cross_layers)
    processor = MllamaImageProcessorPil(size={"height": tower.tile, "width": tower.tile}, max_image_tiles=1)
    vision = Mllama.of(config, tokenizer, processor)
    torch.nn.Module.to(model, text.device)
    return LanguageModel(model, tokenizer, Chat(tokenizer, vision), vision)


def even_places(layers: int) -> tuple[int, ...]:
    """Places for new layers, evenly among ``layers`` old ones: one for every four of them, at least two."""
    new = max(2, round(layers / 4))
    return tuple(int((place + 0.5) * (layers + new) / new) for place in range(new))


def freeze_text(seeing: LanguageModel) -> None:
    """Train only what :func:`give_sight` added: answers to text stay the text model's, to the bit."""
    model: Any = seeing.model
    language, crosses = model.model.language_model, model.config.text_config.cross_attention_layers
    own = [layer for place, layer in enumerate(language.layers) if place not in crosses]
    for module in (language.embed_tokens, language.norm, model.lm_head, *own):
        module.requires_grad_(False)


def _check(source: Any, tokenizer: Any, cross_layers: tuple[int, ...]) -> None:
    if type(source) is not LlamaForCausalLM:
        raise UserError(f"text model is a {type(source).__name__}; needed: a LlamaForCausalLM")
    config: Any = source.config
    if (
        config.attention_bias
        or config.mlp_bias
        or config.head_dim * config.num_attention_heads != config.hidden_size
    ):
        raise UserError(
            "text model has biases or heads of another size; needed: a Llama that Mllama can hold"
        )
    if len(tokenizer) != config.vocab_size:
        raise UserError(
            f"text model's vocabulary is {config.vocab_size} and its tokenizer's {len(tokenizer)}; needed: the same, "
            "since the image token comes right after"
        )
    layers = config.num_hidden_layers + len(cross_layers)
    if sorted(set(cross_layers)) != list(cross_layers) or not all(
        1 <= place < layers for place in cross_layers
    ):
        raise UserError(f"cross_layers={cross_layers} must be rising places from 1 to {layers - 1}")


@torch.no_grad()
def _copy(source: Any, model: Any, cross_layers: tuple[int, ...]) -> None:
    language = model.model.language_model
    own = [layer for place, layer in enumerate(language.layers) if place not in cross_layers]
    for old, new in zip(source.model.layers, own, strict=True):
        new.load_state_dict(old.state_dict())
    language.norm.load_state_dict(source.model.norm.state_dict())
    embedding: Tensor = source.get_input_embeddings().weight
    language.embed_tokens.weight[: len(embedding)] = embedding
    model.lm_head.weight.copy_(source.get_output_embeddings().weight)
