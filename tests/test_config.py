from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sftrl_fast.config import Config, PretrainConfig, Section, load_config, presets, resolve, subsection
from sftrl_fast.core import UserError


def fault(overrides: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        load_config(overrides=overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def toml(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def sections(kind: type[Section]) -> list[type[Section]]:
    inner = [found for name in kind.model_fields if (found := subsection(kind, name)) is not None]
    return [kind, *(deep for section in inner for deep in sections(section))]


def test_without_anything_the_defaults_hold() -> None:
    assert load_config() == Config()


@pytest.mark.parametrize("name", presets())
def test_every_shipped_preset_is_valid(name: str) -> None:
    assert isinstance(load_config(preset=name), Config)


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = toml(tmp_path, "seeds = [7]\n[rl]\nlr = 0.5\nupdates = 3\n")
    config = load_config(file=file, overrides={"rl.updates": 9})
    assert (config.seeds, config.rl.lr, config.rl.updates) == ((7,), 0.5, 9)
    assert config.rl.group == Config().rl.group


def test_a_part_of_a_section_keeps_the_rest_of_that_sections_own_default() -> None:
    config = resolve(PretrainConfig, [{"optimizer": {"lr": 0.5}}], {"optimizer.weight_decay": 0.25})
    default = PretrainConfig().optimizer
    assert config.optimizer == default.model_copy(update={"lr": 0.5, "weight_decay": 0.25})


def test_a_table_in_a_file_replaces_an_open_table_and_a_dotted_key_adds_to_it(tmp_path: Path) -> None:
    file = toml(tmp_path, '[task.eval]\nmine = "some/env-v1"\n')
    assert load_config(file=file).task.eval == {"mine": "some/env-v1"}
    more = load_config(file=file, overrides={"task.eval.extra": "other/env-v1"})
    assert more.task.eval == {"mine": "some/env-v1", "extra": "other/env-v1"}
    onto_default = load_config(overrides={"task.eval.extra": "other/env-v1"}).task.eval
    assert onto_default == {**Config().task.eval, "extra": "other/env-v1"}


def test_options_of_the_task_keep_their_types() -> None:
    options = {"rewards": "reference", "target": 36, "cards_shown": True, "share": 0.5}
    config = load_config(overrides={f"task.options.{name}": value for name, value in options.items()})
    assert config.task.env_kwargs == {"verify_iter": 5, **options}
    assert type(config.task.options["cards_shown"]) is bool


def test_strings_are_read_as_the_type_of_their_key() -> None:
    config = load_config(overrides={"rl.lr": "1e-5", "rl.updates": "12", "sft.resample": "true"})
    assert (config.rl.lr, config.rl.updates, config.sft.resample) == (1e-5, 12, True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"rl.lrr": 1}, ["rl.lrr is not a key", "lr", "updates"]),
        ({"nothing": 1}, ["nothing is not a key", "seeds", "rollout"]),
        ({"rl.lr": "fast"}, ["rl.lr='fast'", "number"]),
        ({"rl.lr": -1}, ["rl.lr=-1", "greater than 0"]),
        ({"rl.lr": float("nan")}, ["rl.lr=nan", "finite"]),
        ({"rl.lr": float("inf")}, ["rl.lr=inf", "finite"]),
        ({"rl.updates": 1.5}, ["rl.updates=1.5", "integer"]),
        ({"rl": 3}, ["rl=3"]),
        ({"rl.lr.deep": 3}, ["rl.lr={'deep': 3}"]),
        ({"model.dtype": "float8"}, ["model.dtype='float8'", "'float32' or 'bfloat16'"]),
        ({"seeds": [1, 1]}, ["seeds=[1, 1]", "each seed once"]),
        ({"seeds": []}, ["seeds=[]", "at least 1"]),
        ({"task.options.x": [1]}, ["task.options.x=[1]", "a string, a number or a boolean"]),
        ({"task.eval.x": 3}, ["task.eval.x=3", "string"]),
        ({"rl.lr": -1, "sft.lr": -1}, ["rl.lr=-1", "sft.lr=-1"]),
        ({"seeds": [0, -1]}, ["seeds=[0, -1]", "from 0"]),
        ({"seeds": [2**64]}, ["seeds=", "2^63 - 1"]),
        ({"rl.betas": [1.5, 0.9]}, ["rl.betas=[1.5, 0.9]", "below 1"]),
        ({"task.options.verify_iter": 3}, ["task.options=", "task.verify_iter"]),
        ({"rl.prompts": 2, "rl.group": 2, "rl.minibatches": 5}, ["rl.minibatches=5", "prompts x group = 4"]),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_what_would_be_right(
    overrides: dict[str, Any], words: list[str]
) -> None:
    message = fault(overrides)
    assert [word for word in words if word not in message] == [], message


def test_a_run_has_something_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.eval=\{\}: .* at least 1"):
        load_config(file=toml(tmp_path, "[task]\neval = {}\n"))


def test_a_fault_is_named_once() -> None:
    assert fault({"task.options.x": [1]}).count("task.options.x") == 1


def test_a_value_of_any_length_gives_a_short_line() -> None:
    assert len(fault({"rl.lr": "x" * 10_000})) < 200


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"settings\.toml' is not valid TOML"):
        load_config(file=toml(tmp_path, "rl = \n"))
    with pytest.raises(UserError, match=r"none\.toml' cannot be read"):
        load_config(file=tmp_path / "none.toml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_config(file=tmp_path)


def test_an_unknown_preset_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="preset='huge' is unknown; choose one of"):
        load_config(preset="huge")


@pytest.mark.parametrize("section", [*sections(Config), *sections(PretrainConfig)])
def test_every_key_says_what_it_is(section: type[Section]) -> None:
    silent = [
        name
        for name, field in section.model_fields.items()
        if subsection(section, name) is None and not field.description
    ]
    assert silent == []


def test_settings_cannot_be_changed_once_made() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().rl.lr = 1.0  # type: ignore[misc]
