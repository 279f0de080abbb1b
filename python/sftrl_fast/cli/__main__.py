"""``python -m sftrl_fast.cli``, for where the ``sftrl-fast`` command is not on the path."""

from __future__ import annotations

import sys

from sftrl_fast.cli import main

sys.exit(main())
