"""The command line: one file a verb, each from settings to one call."""

from __future__ import annotations

from sftrl_fast.cli.command import main

__all__ = ["main"]
