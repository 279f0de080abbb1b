"""The sides of ``bench_rollout.py``. Those with an environment of their own run as workers; see ``serve.py``."""
