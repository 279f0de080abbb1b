"""What a tiny model is pre-trained on."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest

from sftrl_fast.core import Dialogue
from sftrl_fast.models import tiny
from sftrl_fast.models.chat import Chat
from sftrl_fast.tasks import corpora
from sftrl_fast.tasks.navigation.corpus import SEEN_POINTS, STAGES, WORDING
from sftrl_fast.tasks.navigation.looks import LOOKS
from sftrl_fast.tasks.navigation.sets import SETS, made_routes
from sftrl_fast.train.pack import dialogue_row


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    return list(islice(corpora.stream("navigation", np.random.default_rng(1)), 200))


def test_dialogues_take_turns_and_show_both_languages(dialogues: list[Dialogue]) -> None:
    for dialogue in dialogues:
        assert [message.role for message in dialogue] == ["user", "assistant"] * (len(dialogue) // 2)
        assert all(message.trained for message in dialogue if message.role == "user")
    starts = [dialogue[0].text for dialogue in dialogues]
    assert 50 < sum("one of north, " in start for start in starts) < 150
    wrong = [m for dialogue in dialogues for m in dialogue if not m.trained]
    assert wrong
    assert all(
        "failed this trial" in d[i + 1].text for d in dialogues for i, m in enumerate(d) if not m.trained
    )


def test_after_the_wording_come_drills_then_beginnings_of_walks_then_whole_ones() -> None:
    stream = corpora.stream("navigation", np.random.default_rng(2))
    first = list(islice(stream, STAGES[3][0] + 200))
    drills = first[WORDING : STAGES[2][0]]
    assert all(len(dialogue) == 2 for dialogue in drills)
    for dialogue in drills[:500]:
        question, answer = (message.text for message in dialogue)
        if question != answer:
            *lines, asked = question.split("\n")
            assert lines[int(asked.removesuffix(". ")) - 1] == f"{asked}{answer}"
    asked = [len(dialogue) for dialogue in first[STAGES[2][0] : STAGES[3][0]]]
    assert 0.2 < sum(length == 2 for length in asked) / len(asked) < 0.45
    answered = [sum(m.trained for m in d[1::2]) for d in first[STAGES[2][0] : STAGES[3][0]]]
    assert max(answered) == 4
    assert max(sum(m.trained for m in d[1::2]) for d in first[STAGES[3][0] :]) > 10


def test_no_place_of_an_evaluated_route_is_walked(dialogues: list[Dialogue]) -> None:
    asked = {dialogue[0].text for dialogue in dialogues}
    from sftrl_fast.tasks.navigation import prompt
    from sftrl_fast.tasks.navigation.rail import build_rail
    from sftrl_fast.tasks.navigation.rules import LANGUAGES

    for name in SETS:
        for route in made_routes(name)[:100]:
            for language in LANGUAGES.values():
                assert prompt.question(build_rail(route, language.name), language, "text") not in asked


def test_fixed_wording_is_few_tokens_and_a_walk_fits_the_context(dialogues: list[Dialogue]) -> None:
    corpus = corpora.get("navigation")
    tokenizer = tiny.build_tokenizer(dialogues, corpus.pieces)
    chat = Chat(tokenizer)
    rows = [dialogue_row(chat, dialogue) for dialogue in dialogues]
    assert max(len(row.ids) for row in rows) < corpus.context / 2
    answer = chat.answer_ids(json.dumps({"action": "turn_direction(slightly left)"}))
    assert len(answer) < 20
    # A name is the same tokens in an observation and at the start of an answer's observation.
    inside = tokenizer("O_2: Blue Fox Cafe is on your left", add_special_tokens=False)["input_ids"]
    quoted = tokenizer('"Blue Fox Cafe is on your left', add_special_tokens=False)["input_ids"]
    assert inside[-5:] == quoted[-5:]


def test_walks_by_street_views_show_a_picture_at_each_point_and_tell_no_landmark() -> None:
    stream = corpora.stream("walks", np.random.default_rng(3))
    found = list(islice(stream, 30))
    for dialogue in found:
        asked, answers = dialogue[::2], dialogue[1::2]
        assert all(message.image is not None for message in asked)
        assert all(message.image is None for message in answers)
        assert sum(message.trained for message in answers) <= SEEN_POINTS
        assert json.loads(answers[-1].text)["action"] == "stop()"
        assert not any(" is on your " in message.text.split("O_")[-1] for message in asked)
    assert any(" is on your " in message.text for dialogue in found for message in dialogue[1::2])


def test_labels_of_street_views_say_where_streets_and_signs_are() -> None:
    found = list(islice(corpora.READING["walks"](np.random.default_rng(4)), 400))
    labels = np.stack([label for _, label in found])
    assert labels.shape == (400, 2, 2)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert ((labels >= 2).sum((1, 2)) <= 1).all(), "one landmark a point"
    assert 0.1 < (labels >= 2).any((1, 2)).mean() < 0.6
    # A sign is a board in a colour that its city has for nothing else.
    for image, label in found:
        assert all(_board(view) for view in _views(image, label >= 2))
        assert not any(_board(view) for view in _views(image, label < 2))


def _views(image: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
    half = len(image) // 2
    parts = image.reshape(2, half, 2, half, 3).swapaxes(1, 2)
    return [parts[row, column] for row, column in np.argwhere(wanted)]


def _board(view: np.ndarray) -> bool:
    return max(int((view == look.sign).all(-1).sum()) for look in LOOKS.values()) > 20
