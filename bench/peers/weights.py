"""The same bfloat16 weights as other programs read them: a Hugging Face folder, and a GGUF file."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from sftrl_fast.models.load import LanguageModel, cache_folder, save

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""GGUF's names of the parts of a Llama, by transformers'."""


def folder(language: LanguageModel, name: str) -> Path:
    """A Hugging Face folder with the weights, made at first use."""
    path = _cached(f"{name}-bfloat16")
    if not (path / "config.json").is_file():
        save(language.model, language.tokenizer, path)
    return path


def gguf_file(model: PreTrainedModel, name: str) -> Path:
    """A GGUF file with the weights of a Llama, made at first use; without a vocabulary, for tokens go in and out."""
    path = _cached(f"{name}-bfloat16.gguf")
    if not path.is_file():
        made = path.with_suffix(".tmp")
        _write(model, made)
        made.rename(path)
    return path


def _cached(name: str) -> Path:
    made = cache_folder() / "bench" / name.replace("/", "_")
    made.parent.mkdir(parents=True, exist_ok=True)
    return made


def _write(model: PreTrainedModel, path: Path) -> None:
    import gguf

    config = model.config
    if config.model_type != "llama":
        raise ValueError(f"model is a {config.model_type}; a GGUF file can be written of a llama")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if "q_proj" in name:
            value = _interleaved(value, config.num_attention_heads)
        elif "k_proj" in name:
            value = _interleaved(value, config.num_key_value_heads)
        if value.dim() == 1:  # norms: llama.cpp keeps them in float32
            writer.add_tensor(_gguf_name(name), value.float().numpy())
        else:
            raw = value.bfloat16().contiguous().view(torch.uint8).numpy()
            writer.add_tensor(_gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp rotates neighbouring pairs of a head where transformers rotates its first half with its second."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.weight"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[part]}.weight"
