"""Against transformers' Mllama image processor and Pillow, at every instruction-set level."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from sftrl_fast import _C
from sftrl_fast.core import UserError
from sftrl_fast.ops.dispatch import availability
from sftrl_fast.ops.image_tiles import Grid, fit_grid, image_tiles

IMPLS = [row.impl for row in availability("image_tiles", torch.empty(0, dtype=torch.uint8)) if row.available]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ROUNDING = 1e-6
"""Of float32: a thousandth of a grey level."""
GREY_LEVEL = 1 / 255 / min(STD) + ROUNDING
"""Where both ways are scaled, newer Pillows begin with the way that leaves less to do; ours with the lines."""


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = np.random.default_rng(seed)
    if seed % 3 == 2:  # extremes, where sums overflow a byte first
        return torch.from_numpy(generator.choice(np.array([0, 255], np.uint8), (height, width, 3)))
    return torch.from_numpy(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def ours(image: Tensor, tile: int, slots: int, impl: str, dtype: torch.dtype = torch.float32) -> Tensor:
    grid = fit_grid(image.shape[0], image.shape[1], tile, slots)
    return image_tiles(image, grid, tile=tile, slots=slots, mean=MEAN, std=STD, dtype=dtype, impl=impl)


def theirs(image: Tensor, tile: int, slots: int) -> tuple[Tensor, int]:
    processor = MllamaImageProcessorPil(
        size={"height": tile, "width": tile},
        max_image_tiles=slots,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    found = processor(Image.fromarray(image.numpy()), return_tensors="pt")
    return found["pixel_values"][0, 0], found["num_tiles"][0][0]


def check(image: Tensor, tile: int, slots: int, impl: str) -> None:
    expected, tiles = theirs(image, tile, slots)
    grid = fit_grid(image.shape[0], image.shape[1], tile, slots)
    assert grid.rows * grid.columns == tiles
    got = ours(image, tile, slots, impl)
    assert got.shape == expected.shape
    one_way = (
        grid.height == image.shape[0] or grid.width == image.shape[1] or image.shape[0] == image.shape[1]
    )
    assert float((got - expected).abs().max()) < (ROUNDING if one_way else GREY_LEVEL)


@pytest.mark.parametrize("impl", IMPLS)
@given(
    height=st.integers(1, 150), width=st.integers(1, 150), tile=st.integers(1, 60), slots=st.integers(1, 6),
    seed=st.integers(0, 99),
)  # fmt: skip
@example(height=1, width=1, tile=1, slots=1, seed=0)
@example(height=1, width=1, tile=56, slots=4, seed=2)
@example(height=150, width=1, tile=28, slots=4, seed=1)
@settings(max_examples=40, deadline=None)
def test_tiles_are_the_image_processors(
    impl: str, height: int, width: int, tile: int, slots: int, seed: int
) -> None:
    check(picture(height, width, seed), tile, slots, impl)


@pytest.mark.parametrize(("height", "width", "tile"), [(1200, 1200, 560), (700, 2405, 448), (560, 560, 560)])
@pytest.mark.parametrize("impl", IMPLS)
def test_sizes_of_real_models(impl: str, height: int, width: int, tile: int) -> None:
    check(picture(height, width), tile, 4, impl)


@pytest.mark.usefixtures("level")
def test_every_level_is_right() -> None:
    for height, width, tile in ((97, 131, 50), (17, 16, 48), (5, 4000, 31), (2000, 33, 16), (64, 64, 32)):
        for seed in range(3):
            check(picture(height, width, seed), tile, 4, "cpp")


@given(
    height=st.integers(1, 90), width=st.integers(1, 90), out=st.integers(1, 90), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_each_way_is_pillows_to_the_bit(height: int, width: int, out: int, seed: int) -> None:
    image = picture(height, width, seed)
    pillow = Image.fromarray(image.numpy())
    for grid in (Grid(1, 1, height, out), Grid(1, 1, out, width)):
        resized = pillow.resize((grid.width, grid.height), Image.Resampling.BILINEAR)
        for impl in IMPLS:
            got = image_tiles(image, grid, tile=90, slots=1, mean=(0, 0, 0), std=(1, 1, 1), impl=impl)
            levels = (got[0] * 255).permute(1, 2, 0)[: grid.height, : grid.width]
            assert np.array_equal(levels.round().numpy(), np.asarray(resized))


def test_implementations_agree_on_bf16() -> None:
    image = picture(90, 77)
    for impl in IMPLS:
        got = ours(image, 40, 4, impl, torch.bfloat16)
        assert got.dtype == torch.bfloat16
        exact = ours(image, 40, 4, impl)
        assert torch.equal(got, exact.to(torch.bfloat16))


def test_a_reduction_beyond_the_kernels_window() -> None:
    """Output places that draw on more of a line than the kernel keeps at once."""
    image = picture(3, 20_000)
    assert float((ours(image, 8, 1, "cpp") - ours(image, 8, 1, "torch")).abs().max()) < ROUNDING


def test_outputs_are_written_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def soiled(*shape: int, dtype: torch.dtype) -> Tensor:
        return empty(*shape, dtype=dtype).fill_(float("nan") if dtype.is_floating_point else 77)

    expected = [ours(picture(h, w), 24, 4, "torch") for h, w in ((40, 100), (9, 9), (100, 30))]
    monkeypatch.setattr(torch, "empty", soiled)
    for (h, w), wanted in zip(((40, 100), (9, 9), (100, 30)), expected, strict=True):
        assert float((ours(picture(h, w), 24, 4, "cpp") - wanted).abs().max()) < ROUNDING


def test_threads_change_nothing() -> None:
    image, before = picture(333, 201), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ours(image, 96, 4, "cpp"))
    finally:
        torch.set_num_threads(before)
    assert _C.max_threads() >= 1
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_strided_pictures_are_read_rightly() -> None:
    image = picture(120, 90)[::2, 10:70].flip(1)
    for impl in IMPLS:
        assert torch.equal(ours(image, 40, 4, impl), ours(image.clone(), 40, 4, impl))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(4, 4, dtype=torch.uint8)}, "image is torch.uint8"),
        ({"image": torch.zeros(4, 4, 4, dtype=torch.uint8)}, "image is torch.uint8"),
        ({"image": torch.zeros(4, 4, 3)}, "image is torch.float32"),
        ({"image": torch.zeros(0, 4, 3, dtype=torch.uint8)}, "image is 0 x 4"),
        ({"grid": Grid(1, 1, 9, 8)}, "grid is Grid"),
        ({"grid": Grid(0, 1, 8, 8)}, "grid is Grid"),
        ({"grid": Grid(2, 1, 8, 8)}, "slots is 1"),
        ({"tile": 70_000}, "grid is Grid"),
        ({"mean": (0.5,)}, "mean is"),
        ({"std": (0.5, 0.0, 0.5)}, "std"),
        ({"dtype": torch.float64}, "dtype is torch.float64"),
    ],
)
def test_bad_input_names_the_argument(change: dict, message: str) -> None:
    arguments = {
        "image": picture(4, 4), "grid": Grid(1, 1, 8, 8), "tile": 8, "slots": 1, "mean": MEAN, "std": STD,
    } | change  # fmt: skip
    image, grid = arguments.pop("image"), arguments.pop("grid")
    with pytest.raises(UserError, match=message):
        image_tiles(image, grid, **arguments)
