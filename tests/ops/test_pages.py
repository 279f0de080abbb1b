"""Memory for packed weights: pieces of chunks that overlap nowhere and go back when nobody needs them."""

from __future__ import annotations

import weakref

import pytest
import torch

from sftrl_fast.ops.cpp import pages


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_free", torch.empty(0, dtype=torch.uint8))


def test_pieces_are_aligned_writable_and_apart() -> None:
    sizes = (1, 31, 0, 1000, 64, 7)
    parts = [
        pages.empty(size, dtype) for size in sizes for dtype in (torch.bfloat16, torch.float32, torch.uint8)
    ]
    for number, part in enumerate(parts):
        assert part.is_contiguous()
        assert part.data_ptr() % pages.ALIGNMENT == 0
        part.fill_(number)
    for number, part in enumerate(parts):
        assert (part == number).all()


def test_small_pieces_share_a_chunk_and_one_larger_than_a_chunk_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pages, "CHUNK", 4096)
    small = [pages.empty(100, torch.float32) for _ in range(3)]
    assert len({part.untyped_storage().data_ptr() for part in small}) == 1
    large = pages.empty(5000, torch.float32)
    assert large.untyped_storage().nbytes() == 20032  # whole units of the alignment
    large.fill_(1.0)


def test_a_chunk_goes_back_with_its_last_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "CHUNK", 4096)
    freed: list[str] = []
    made = pages._chunk

    def chunk(size: int) -> torch.Tensor:
        memory = made(size)
        weakref.finalize(memory.untyped_storage(), freed.append, "chunk")
        return memory

    monkeypatch.setattr(pages, "_chunk", chunk)
    first, second = pages.empty(2048, torch.uint8), pages.empty(2048, torch.uint8)
    pages.empty(1, torch.uint8)  # a new chunk: the first is full
    assert not freed
    del first
    assert not freed
    del second
    assert freed == ["chunk"]
