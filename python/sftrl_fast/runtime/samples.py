"""A few dialogues of an evaluation for people to read, with the pictures that the model saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image as Pillow

from sftrl_fast.core import Episode
from sftrl_fast.runtime.files import write_text


def write_samples(
    folder: Path, name: str, episodes: Sequence[Episode], decode: Callable[[Sequence[int]], str]
) -> None:
    """``<name>.md`` in ``folder``, and a PNG file for each picture beside it; earlier ones are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = []
    for episode in episodes:
        blocks.append(f"## Item {episode.index}: {'success' if episode.success else 'no success'}")
        for place, turn in enumerate(episode.turns):
            if turn.image is not None:
                picture = f"{name}-{episode.index}-{place}.png"
                Pillow.fromarray(turn.image).save(folder / picture)
                blocks.append(f"![what the model saw]({picture})")
            read = {True: ", read rightly", False: ", misread", None: ""}[turn.verdict.recognised]
            blocks.append(_quoted(decode(turn.prompt_ids)))
            blocks.append(_quoted(turn.text) + f"\n\nreward {turn.verdict.reward:g}{read}")
    write_text(folder / f"{name}.md", "\n\n".join(blocks) + "\n")


def _quoted(text: str) -> str:
    """Four blanks ahead of each line: Markdown for text that is shown as it is."""
    return "\n".join("    " + line for line in text.splitlines() or [""])
