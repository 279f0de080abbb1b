"""Prompts, answers and replies against the template rendered whole."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sftrl_fast.core import UserError
from sftrl_fast.models.chat import Chat

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# No special token of its own after an answer: the end of the sequence ends a turn.
PLAIN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] | trim + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
QUESTION, ANSWER, REPLY = "Cards: 3, J?", ' {"formula": "3*8"}\n', "You failed because é."


def tokenizer(template: str | None, specials: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")) -> Any:
    """A byte-level BPE with a few merges, so that texts may be cut in more than one way."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("a", "n"),
        ("s", "s"),
        ("s", "t"),
        ("an", "t"),
        ("Ċ", "Ċ"),
        ("u", "s"),
        ("us", "e"),
        ("}", "Ċ"),
    ]
    vocab = {piece: i for i, piece in enumerate([*alphabet, *("".join(m) for m in merges)])}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": list(specials)})
    fast.chat_template = template
    return fast


def rendered(tok: Any, dialogue: list[tuple[str, str]], *, generate: bool) -> str:
    messages = [{"role": role, "content": text} for role, text in dialogue]
    return str(tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))


def test_prompt_is_the_rendered_question_with_the_generation_prompt() -> None:
    tok = tokenizer(CHATML)
    ids = Chat(tok).prompt_ids(QUESTION)
    assert tok.decode(ids) == rendered(tok, [("user", QUESTION)], generate=True)
    assert tok.decode(ids).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_answer_ends_with_the_end_of_turn_and_decodes_to_its_text() -> None:
    chat = Chat(tok := tokenizer(CHATML))
    ids = chat.answer_ids(ANSWER)
    end = tok.convert_tokens_to_ids("<|im_end|>")
    assert ids[-1] == end
    assert end not in ids[:-1]
    assert chat.decode(ids) == ANSWER
    assert chat.stop_ids == {end, tok.eos_token_id}


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("stopped", [True, False])
def test_pieces_of_a_dialogue_join_to_the_template_rendered_whole(turns: int, stopped: bool) -> None:
    chat = Chat(tok := tokenizer(CHATML))
    ids = chat.prompt_ids(QUESTION)
    dialogue = [("user", QUESTION)]
    for turn in range(turns):
        answer = chat.answer_ids(ANSWER)
        ids += answer if stopped else answer[:-1]
        ids += chat.reply_ids(f"{turn}: {REPLY}", stopped=stopped)
        dialogue += [("assistant", ANSWER), ("user", f"{turn}: {REPLY}")]
    assert tok.decode(ids) == rendered(tok, dialogue, generate=True)


def test_reply_does_not_repeat_a_default_system_prompt_or_an_end_of_turn() -> None:
    tok = tokenizer(CHATML)
    text = tok.decode(Chat(tok).reply_ids(REPLY, stopped=True))
    assert text == f"\n<|im_start|>user\n{REPLY}<|im_end|>\n<|im_start|>assistant\n"
    cut = tok.decode(Chat(tok).reply_ids(REPLY, stopped=False))
    assert cut == "<|im_end|>" + text


def test_template_without_an_end_of_turn_token_uses_the_end_of_sequence() -> None:
    chat = Chat(tok := tokenizer(PLAIN))
    assert chat.stop_ids == {tok.eos_token_id}
    assert chat.answer_ids("yes")[-1] == tok.eos_token_id
    assert tok.decode(chat.reply_ids(REPLY, stopped=True)) == f"\nuser: {REPLY}\nassistant: "
    assert tok.decode(chat.reply_ids(REPLY, stopped=False)) == f"<|endoftext|>\nuser: {REPLY}\nassistant: "


def test_decode_drops_special_tokens_and_survives_broken_utf8() -> None:
    chat = Chat(tok := tokenizer(CHATML))
    ids = tok("é", add_special_tokens=False)["input_ids"]
    assert len(ids) == 2
    assert chat.decode([*ids, *chat.stop_ids]) == "é"
    assert chat.decode(ids[:1]) == "\ufffd"
    assert chat.decode([]) == ""


def test_tokenizers_that_cannot_chat_raise() -> None:
    with pytest.raises(UserError, match="no chat template"):
        Chat(tokenizer(None))
    forgetful = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="earlier answers"):
        Chat(tokenizer(forgetful))
    endless = tokenizer(PLAIN)
    endless.eos_token = None
    with pytest.raises(UserError, match="no eos_token"):
        Chat(endless)
