from __future__ import annotations

from typing import Any

import pytest

from sftrl_fast.cli.settings import HELP_WIDTH, describe, parse_overrides
from sftrl_fast.config import Config, PretrainConfig, Section, load_config, subsection
from sftrl_fast.core import UserError


def keys(kind: type[Section], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name in kind.model_fields:
        inner = subsection(kind, name)
        found += keys(inner, f"{prefix}{name}.") if inner else [prefix + name]
    return found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--rl.lr 1e-4", {"rl.lr": 1e-4}),
        ("--rl.lr=1e-4 --rl.updates 7", {"rl.lr": 1e-4, "rl.updates": 7}),
        ("--seeds 0,1,2", {"seeds": [0, 1, 2]}),
        ("--seeds 3", {"seeds": [3]}),
        ("--seeds [3,4]", {"seeds": [3, 4]}),
        ("--rl.betas 0.9,0.95", {"rl.betas": [0.9, 0.95]}),
        ("--sft.resample true", {"sft.resample": True}),
        ("--model.name 2024", {"model.name": "2024"}),
        ("--model.name true", {"model.name": "true"}),
        ("--model.name a=b", {"model.name": "a=b"}),
        ("--model.name 'x'", {"model.name": "x"}),
        ("--model.name=", {"model.name": ""}),
        ("--task.options.rewards reference", {"task.options.rewards": "reference"}),
        ("--task.options.target 36", {"task.options.target": 36}),
        ("--task.eval.extra 7", {"task.eval.extra": "7"}),
        ("--model.threads -1", {"model.threads": -1}),
        ("--rl.lr ten", {"rl.lr": "ten"}),
    ],
)
def test_words_become_keys_and_values(words: str, expected: dict[str, Any]) -> None:
    assert parse_overrides(Config, words.split()) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rl.lr", "--rl.lr needs a value"),
        ("--rl.lrr 1", r"unknown setting --rl.lrr; known are --rl.lr, "),
        ("--ouput x", r"unknown setting --ouput; known are --seeds, "),
        ("tiny", "unexpected argument 'tiny'"),
        ("-- x", "unexpected argument '--'"),
        ("--rl.lr 1 --rl.lr 2", "--rl.lr is given twice"),
    ],
)
def test_what_is_no_setting_is_named(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_overrides(Config, words.split())


def test_overrides_give_the_settings_they_say() -> None:
    words = "--seeds 0,1,2 --task.eval.extra some/env-v1 --rl.betas 0.8,0.9 --model.dtype bfloat16"
    config = load_config(overrides=parse_overrides(Config, words.split()))
    assert config.seeds == (0, 1, 2)
    assert config.task.eval == {**Config().task.eval, "extra": "some/env-v1"}
    assert config.rl.betas == (0.8, 0.9)
    assert config.model.dtype == "bfloat16"


@pytest.mark.parametrize("kind", [Config, PretrainConfig])
def test_help_lists_every_key_once_within_the_width(kind: type[Section]) -> None:
    text = describe(kind)
    shown = [line.split()[0].removeprefix("--") for line in text.splitlines() if line.startswith("  --")]
    assert sorted(shown) == sorted(keys(kind))
    assert max(map(len, text.splitlines())) <= HELP_WIDTH


def test_help_gives_type_range_default_and_meaning() -> None:
    lines = describe(Config).splitlines()
    place = lines.index("  --rl.gamma  [float >= 0 and <= 1, default unset]")
    assert lines[place + 1].strip() == Config().rl.__class__.model_fields["gamma"].description
    assert "  --model.dtype  [float32 | bfloat16, default float32]" in lines
    assert "  --seeds  [int,..., default 0]" in lines


def test_help_of_pretrain_shows_its_own_optimizer_defaults() -> None:
    default = PretrainConfig().optimizer.lr
    assert f"--optimizer.lr  [float > 0, default {default:g}]" in describe(PretrainConfig)
