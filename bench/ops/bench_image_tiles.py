"""A picture for the vision tower: ours and transformers' Mllama image processor, at the real model's sizes."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rates import copy_bandwidth

from harness import Bench
from sftrl_fast.ops.image_tiles import fit_grid, image_tiles

CASES = {"cards": (1200, 1200, 560), "street views": (2405, 2405, 560), "small": (224, 224, 112)}
"""Height and width of the picture, side of a tile; four tiles at most."""


def main() -> None:
    bench = Bench("image_tiles", "Scale, cut and normalise one picture")
    bandwidth = copy_bandwidth(torch.device("cpu"))
    for name, (height, width, tile) in CASES.items():
        if bench.args.quick and name != "small":
            continue
        processor = MllamaImageProcessorPil(size={"height": tile, "width": tile}, max_image_tiles=4)
        image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
        pillow = Image.fromarray(image.numpy())
        grid = fit_grid(height, width, tile, 4)
        settings = {"tile": tile, "slots": 4, "mean": processor.image_mean, "std": processor.image_std}
        bench.compare(
            f"{name}, {height}x{width}",
            "time a picture",
            "ms",
            {
                "transformers": lambda p=processor, i=pillow: p(i, return_tensors="pt"),
                "torch": lambda i=image, g=grid, s=settings: image_tiles(i, g, impl="torch", **s),
                "cpp": lambda i=image, g=grid, s=settings: image_tiles(i, g, impl="cpp", **s),
            },
            ratio_to="transformers",
            scale="ms",
        )
        moved = image.numel() + 4 * 4 * 3 * tile * tile
        bench.value(
            f"{name}, {height}x{width}", "floor", "bytes over copy bandwidth", moved / bandwidth * 1e3, "ms"
        )
    bench.finish()


if __name__ == "__main__":
    main()
