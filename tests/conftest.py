"""Threads are pinned before torch starts: on few cores many small tests would fight over them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
