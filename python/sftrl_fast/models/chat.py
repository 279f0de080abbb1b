"""A chat template as three lists of tokens: the prompt, an answer, and what comes between two answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sftrl_fast.core import Image, UserError
from sftrl_fast.models.vision import Vision

_ANSWER = "\u27e6answer\u27e7"
_QUESTION = "\u27e6question\u27e7"
"""Stand-ins whose place in the rendered template is looked up; no template trims or changes them."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used."""

    chat_template: Any
    eos_token: Any
    eos_token_id: Any

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...

    def apply_chat_template(
        self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool
    ) -> Any: ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> Any: ...


class Chat:
    """Renders dialogues for one model, token in, token out: a sampled answer is never encoded again.

    A dialogue is ``prompt_ids(question) + answer + reply_ids(message) + answer + ...``. Places in the
    template are found by character offsets in the rendered text.

    ``vision`` is needed for messages with pictures: the template puts one image token where a picture goes, and
    ``vision`` as many as the model has room for it. Where a text spells the image token, it is taken apart, so that no
    user and no model can show a picture that is not there.

    Raises :class:`UserError` if the tokenizer has no chat template, or none of its tokens ends a turn.
    """

    stop_ids: frozenset[int]
    """Tokens that end an answer: the template's end of turn and the tokenizer's end of sequence."""

    def __init__(self, tokenizer: Tokenizer, vision: Vision | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "tokenizer has no chat template; needed: an instruction-tuned model's folder, or one set"
            )
        self._tokenizer, self._vision = tokenizer, vision
        self._end_text, self._end_id = self._end_of_turn()
        ids = {self._end_id, tokenizer.eos_token_id}
        self.stop_ids = frozenset(token for token in ids if token is not None)

    def prompt_ids(self, user_text: str, image: Image | None = None) -> list[int]:
        """The dialogue's first question, up to where the model starts to answer.

        Raises :class:`UserError` for a picture that the model cannot see.
        """
        return self._shown(self._render([self._user(user_text, image)], generate=True), image)

    def answer_ids(self, text: str) -> list[int]:
        """``text`` as the model should emit it, the token that ends the turn included."""
        return [*self._encode(self._plain(text)), self._end_id]

    def reply_ids(self, user_text: str, *, stopped: bool, image: Image | None = None) -> list[int]:
        """The tokens between an answer and the next one, around the user's ``user_text``.

        ``stopped`` tells that the answer ended itself with a stop token; if the length limit cut it, the
        token that ends the turn comes first here.
        """
        dialogue = [self._user(_QUESTION), _assistant(_ANSWER), self._user(user_text, image)]
        rest = self._after_answer(self._render(dialogue, generate=True)).removeprefix(self._end_text)
        return ([] if stopped else [self._end_id]) + self._shown(rest, image)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _end_of_turn(self) -> tuple[str, int]:
        """The special token that the template puts right after an answer, else the end of the sequence."""
        rest = self._after_answer(self._render([self._user(_QUESTION), _assistant(_ANSWER)], generate=False))
        for token in self._encode(rest)[:1]:
            text = str(self._tokenizer.decode([token], skip_special_tokens=False))
            special = not self._tokenizer.decode([token], skip_special_tokens=True)
            if special and text and rest.startswith(text):
                return text, token
        if self._tokenizer.eos_token_id is None:
            raise UserError(
                "tokenizer ends a turn with no special token and has no eos_token; needed: one of them"
            )
        return str(self._tokenizer.eos_token), int(self._tokenizer.eos_token_id)

    def _user(self, text: str, image: Image | None = None) -> dict[str, Any]:
        if image is None:
            return {"role": "user", "content": self._plain(text)}
        if self._vision is None:
            raise UserError(
                "the task shows pictures, which this model cannot see; needed: a vision-language model"
            )
        parts = [{"type": "image"}, {"type": "text", "text": self._plain(text)}]
        return {"role": "user", "content": parts}

    def _plain(self, text: str) -> str:
        if self._vision is None:
            return text
        token = self._vision.image_token
        return text.replace(token, f"{token[0]} {token[1:]}")

    def _shown(self, rendered: str, image: Image | None) -> list[int]:
        ids = self._encode(rendered)
        return ids if image is None or self._vision is None else self._vision.expand(ids, image)

    def _render(self, dialogue: list[dict[str, Any]], *, generate: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=generate)
        )

    def _after_answer(self, rendered: str) -> str:
        _, found, rest = rendered.partition(_ANSWER)
        if not found:
            raise UserError("tokenizer's chat template drops or rewrites the assistant's earlier answers")
        return rest

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
