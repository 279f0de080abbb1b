"""The settings of a run: ``sections`` has every key, ``layers`` makes them of presets, files and overrides."""

from sftrl_fast.config.layers import load_config, preset_for, presets, resolve, subsection
from sftrl_fast.config.sections import (
    Config,
    LoraConfig,
    OptimizerConfig,
    PretrainConfig,
    RLConfig,
    Section,
    SFTConfig,
)

__all__ = [
    "Config",
    "LoraConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "RLConfig",
    "SFTConfig",
    "Section",
    "load_config",
    "preset_for",
    "presets",
    "resolve",
    "subsection",
]
