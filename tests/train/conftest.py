from __future__ import annotations

import pytest

from sftrl_fast.models.load import LanguageModel, load


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    return load("tiny", device="cpu")
