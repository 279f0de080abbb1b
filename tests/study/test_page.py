from __future__ import annotations

import io

import pytest
from rich.console import Console

from sftrl_fast.study.compare import build_results
from sftrl_fast.study.page import markdown, table

COMPUTE = {
    "warmup": {
        "samples": 3840,
        "tokens": 230400,
        "flops": 1.1e12,
        "flops_executed": 1.3e12,
        "seconds": 12.25,
    },
    "rl": {"samples": 25600, "tokens": 3077600, "flops": 2.1e13, "flops_executed": 1.8e13, "seconds": 300.0},
}


def vectors() -> dict[str, dict[str, list[bool]]]:
    """On ``id``: base 20 %, warm-up 10 %, SFT 50 %, RL 40 % of 10 items; on ``rule_ood`` SFT solves none."""
    solved = {"base": 2, "warmup": 1, "sft": 5, "rl": 4}
    return {
        arm: {
            "id": [i < n for i in range(10)],
            "rule_ood": [i < (0 if arm == "sft" else n) for i in range(10)],
        }
        for arm, n in solved.items()
    }


def printed(results: dict[str, object], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table(results))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_markdown_shows_rates_differences_and_compute() -> None:
    text = markdown(build_results({0: vectors(), 1: vectors()}, compute=COMPUTE))
    lines = text.splitlines()
    assert "|  | id | rule_ood |" in lines
    assert any(line.startswith("| SFT | 50.0 % [") for line in lines)
    assert "| *seed 1* | *40.0 % (4/10)* | *40.0 % (4/10)* |" in lines
    assert "| RL - warm-up | +30.0 [+30.0,+30.0] p - | +30.0 [+30.0,+30.0] p - |" in lines
    assert any(line.startswith("| *over questions* |") for line in lines)
    assert "| *seed 0* | *+30.0 (+3 -0) p=.250* | *+30.0 (+3 -0) p=.250* |" in lines
    assert "| RL | 25,600 | 3,077,600 | 2.1e+13 | 1.8e+13 | 300.0 |" in lines
    assert text.endswith("\n")


def test_what_a_task_counts_beside_success_has_a_table_of_its_own() -> None:
    beside = {"first_try": {"base": {"id": 0.8125}, "rl": {"id": 0.9, "rule_ood": 0.25}}}
    text = markdown(build_results({0: vectors()}, rates=beside))
    table_of_it = text.split("\n\n")[2:4]
    assert table_of_it[0] == "**First tries: decisions answered rightly at the first attempt**"
    assert table_of_it[1].splitlines()[2:] == ["| base | 81.2 % | - |", "| RL | 90.0 % | 25.0 % |"]
    assert "First tries" not in markdown(build_results({0: vectors()}))


def test_every_table_row_has_as_many_cells_as_its_header() -> None:
    text = markdown(build_results({0: vectors(), 1: vectors()}, compute=COMPUTE))
    for block in text.split("\n\n"):
        widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_table_loses_no_number_in_a_narrow_window(width: int) -> None:
    text = printed(build_results({0: vectors()}, compute=COMPUTE), width)
    assert "…" not in text
    for expected in ("warm-up", "50.0 %", "+30.0", "(+3 -0)", "p=.250", "3,077,600", "questions"):
        assert expected in text


def test_one_seed_is_said_to_be_one_seed() -> None:
    results = build_results({0: vectors()})
    assert "1 seed." in markdown(results)
    assert "over seeds" not in markdown(results)
    assert "over seeds (Student's t)" in markdown(build_results({0: vectors(), 1: vectors()}))


def test_tables_of_missing_parts_are_left_out() -> None:
    text = markdown(build_results({0: {"base": vectors()["base"]}}))
    assert "Paired difference" not in text
    assert "Compute" not in text
    assert "McNemar" not in text
