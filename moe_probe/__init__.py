"""Interpretability toolkit for pretrained Mixture-of-Experts language models."""

from importlib import import_module
from types import ModuleType

from moe_probe import dynamic, moved, static
from moe_probe.model import MoEModel, load

__version__ = "0.1.0"
__all__ = ["MoEModel", "comparisons", "dynamic", "explorer", "figures", "intervene", "load", "plotting", "static"]

ON_FIRST_USE = (
    "comparisons",
    "explorer",
    "figures",
    "intervene",
    "plotting",
)  # scripts that only compute do without matplotlib and Bokeh

moved.install()


def __getattr__(name: str) -> ModuleType:
    if name in ON_FIRST_USE:
        return import_module(f"moe_probe.{name}")
    raise AttributeError(f"module 'moe_probe' has no attribute {name!r}")
