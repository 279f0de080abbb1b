from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from sftrl_fast.study.compare import build_results
from sftrl_fast.study.plots import TrainingPoint, mean_course, plot_rates, plot_training

SVG = "{http://www.w3.org/2000/svg}"


def results(seeds: int) -> dict[str, object]:
    vectors = {
        "base": [True, False, False, False],
        "warmup": [False, False, False, False],
        "sft": [True, True, False, False],
        "rl": [True, True, True, False],
    }
    by_arm = {arm: {"id": v, "rule_ood": v[::-1]} for arm, v in vectors.items()}
    return build_results(dict.fromkeys(range(seeds), by_arm))


def points(seeds: int = 2, last: int = 3) -> list[TrainingPoint]:
    return [
        {
            "arm": arm,
            "seed": seed,
            "step": 10 * k,
            "flops": 2e12 * k,
            "set": name,
            "rate": 0.1 + sign * 0.03 * k,
        }
        for arm, sign in (("sft", -1), ("rl", 1))
        for seed in range(seeds)
        for k in range(last)
        for name in ("id", "rule_ood")
    ]


def svg_texts(path: Path) -> str:
    """Matplotlib draws text as paths and leaves each string behind in a comment."""
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("seeds", [1, 3])
def test_rates_figure_names_its_axis_arms_and_sets(tmp_path: Path, seeds: int) -> None:
    png, svg = plot_rates(results(seeds), tmp_path / "rates")
    assert imread(png).shape[0] == round(3.2 * 150)
    text = svg_texts(svg)
    for expected in ("success (%)", "base", "warm-up", "SFT", "RL", "shifted rule"):
        assert f"<!-- {expected} -->" in text


def test_a_dot_stands_for_each_seed(tmp_path: Path) -> None:
    def dots(seeds: int) -> int:
        _, svg = plot_rates(results(seeds), tmp_path / f"rates-{seeds}")
        root = ElementTree.parse(svg).getroot()
        groups = [g for g in root.iter(f"{SVG}g") if g.get("id", "").startswith("PathCollection")]
        return sum(1 for g in groups for _ in g.iter(f"{SVG}use"))

    assert dots(1) == 0
    assert dots(3) == 3 * 4 * 2


def test_figures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name, draw in (
        ("rates", lambda stem: plot_rates(results(3), stem)),
        ("training", lambda stem: plot_training(points(), stem)),
    ):
        first, second = draw(tmp_path / f"{name}-a"), draw(tmp_path / f"{name}-b")
        assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
        assert [p.suffix for p in first] == [".png", ".svg"]


def test_stem_with_a_dot_keeps_its_name(tmp_path: Path) -> None:
    files = plot_rates(results(1), tmp_path / "tiny-0.8M")
    assert [p.name for p in files] == ["tiny-0.8M.png", "tiny-0.8M.svg"]


def test_training_figure_marks_the_warm_up_and_scales_compute(tmp_path: Path) -> None:
    _, svg = plot_training(points(), tmp_path / "training")
    text = svg_texts(svg)
    assert "<!-- warm-up checkpoint -->" in text
    assert "compute after warm-up ($10^{12}$ FLOPs)" in text
    assert "<!-- shifted rule (%) -->" in text


def test_training_figure_takes_a_single_evaluation(tmp_path: Path) -> None:
    png, _ = plot_training(points(seeds=1, last=1), tmp_path / "training")
    assert png.stat().st_size > 0


def test_seeds_are_averaged_only_where_all_were_evaluated() -> None:
    """Seed 0 has gone further, and its last step must not pass for a mean."""
    course = {
        0: [(0, 0.0, 10.0, 8.0), (5, 1e12, 20.0, 6.0), (10, 2e12, 30.0, 4.0)],
        1: [(0, 0.0, 12.0, 8.0), (5, 3e12, 30.0, 2.0)],
    }
    assert mean_course(course) == [(0, 0.0, 11.0, 8.0), (5, 2e12, 25.0, 4.0)]


def test_points_without_both_sets_are_refused(tmp_path: Path) -> None:
    only_id = [p for p in points() if p["set"] == "id"]
    with pytest.raises(ValueError, match="'rule_ood'"):
        plot_training(only_id, tmp_path / "training")
