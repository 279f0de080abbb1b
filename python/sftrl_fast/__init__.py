"""Post-train a language model by SFT and by RL, and see which of the two generalises."""

from __future__ import annotations

from importlib.metadata import version

from sftrl_fast import tasks as _tasks
from sftrl_fast.tasks.general_points.verifier import Outcome, Verdicts, hands, solve, verify

__version__ = version("sftrl-fast")
__all__ = ["Outcome", "Verdicts", "__version__", "hands", "solve", "verify"]

_tasks.register()
