"""Interpretability toolkit for pretrained Mixture-of-Experts language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moe_probe import moved

if TYPE_CHECKING:
    from moe_probe import comparisons, dynamic, explorer, figures, intervene, plotting, static
    from moe_probe.model import MoEModel, load

__version__ = "0.2.0"
__all__ = ["MoEModel", "comparisons", "dynamic", "explorer", "figures", "intervene", "load", "plotting", "static"]

OF_MODEL = ("MoEModel", "load")

moved.install()


def __getattr__(name: str) -> Any:
    """Parts are imported on first use: `import moe_probe` alone takes no time, and loads no torch."""
    if name in OF_MODEL:
        return getattr(import_module("moe_probe.model"), name)
    try:
        if not name.startswith("_"):
            return import_module(f"moe_probe.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"moe_probe.{name}":
            raise
    raise AttributeError(f"module 'moe_probe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
