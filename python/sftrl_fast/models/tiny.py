"""The ``tiny`` model: a Llama of about a million parameters and its tokenizer, both made by ``sftrl-fast pretrain``.

The tokenizer is byte-level BPE, so any text can be written, but it splits only at the corpus's pieces: the words
that change from one dialogue to the next, such as numbers and names. Everything between those is one piece, and
the pieces of a task's fixed wording become one token each.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sftrl_fast.core import Dialogue

ASSETS = Path(__file__).parent / "assets" / "tiny"
IMAGE_ASSETS = ASSETS.with_name("tiny-image")
"""The same model with sight: ``sftrl-fast pretrain --corpus cards``, see ``train/pretrain_pictures.py``."""
WALKING_ASSETS = ASSETS.with_name("tiny-nav")
"""The same architecture made for routes in words; ``configs/nav-text.toml`` holds the command."""
VIEWING_ASSETS = ASSETS.with_name("tiny-nav-image")
"""``tiny-nav`` with sight: ``configs/nav-image.toml`` holds the command."""
SHIPPED = (ASSETS.name, IMAGE_ASSETS.name, WALKING_ASSETS.name, VIEWING_ASSETS.name)

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Room for every fixed piece of wording and what BPE builds on the way to it.
VOCABULARY = 1024


def build_tokenizer(dialogues: Iterable[Dialogue], pieces: str) -> PreTrainedTokenizerFast:
    """A tokenizer trained on the wording of ``dialogues``, which splits at what the expression ``pieces`` matches;
    every number 0..99 is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [message.text for dialogue in dialogues for message in dialogue]
    numbers = [" ".join(map(str, range(100)))] * len(texts)
    tokenizer.train_from_iterator(texts + numbers, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_model(vocabulary: int, context: int, spread: float = 0.02) -> LlamaForCausalLM:
    """The architecture, ``context`` positions long, on random weights of standard deviation ``spread`` (drawn from
    torch's global generator)."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=context,
            initializer_range=spread,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
