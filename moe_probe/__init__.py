"""Interpretability toolkit for pretrained Mixture-of-Experts language models."""

from importlib import import_module
from types import ModuleType

from moe_probe import dynamic, static
from moe_probe.model import MoEModel, load

__version__ = "0.1.0"
__all__ = ["MoEModel", "dynamic", "explorer", "figures", "load", "plotting", "static"]
ON_FIRST_USE = ("explorer", "figures", "plotting")  # scripts that only compute do without matplotlib and Bokeh


def __getattr__(name: str) -> ModuleType:
    if name in ON_FIRST_USE:
        return import_module(f"moe_probe.{name}")
    raise AttributeError(f"module 'moe_probe' has no attribute {name!r}")
