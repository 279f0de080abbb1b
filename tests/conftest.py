"""Set before anything is imported or collected."""

import os

from hypothesis import settings

# On few cores many small tests would fight over torch's threads, which are counted when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

# Triton reads this as it is imported, and transformers' models import it: without a GPU kernels are interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# How long an example takes is the machine's affair; a test says what is right, not how fast.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
