"""Interpretability toolkit for pretrained Mixture-of-Experts language models."""

from importlib import import_module
from types import ModuleType

from moe_probe import dynamic, static
from moe_probe.model import MoEModel, load

__version__ = "0.1.0"
__all__ = ["MoEModel", "dynamic", "load", "plotting", "static"]


def __getattr__(name: str) -> ModuleType:
    """`plotting` is imported on first use: scripts that only compute do without matplotlib."""
    if name == "plotting":
        return import_module("moe_probe.plotting")
    raise AttributeError(f"module 'moe_probe' has no attribute {name!r}")
