"""Interpretability toolkit for pretrained Mixture-of-Experts language models."""

from typing import TYPE_CHECKING

from moe_probe import moved
from moe_probe.deferred import Deferred

if TYPE_CHECKING:
    from moe_probe import comparisons, dynamic, explorer, figures, intervene, plotting, static
    from moe_probe.model import MoEModel, load

__version__ = "0.2.0"
__all__ = ["MoEModel", "comparisons", "dynamic", "explorer", "figures", "intervene", "load", "plotting", "static"]

moved.install()
__getattr__ = Deferred(__name__, __file__).attribute  # `import moe_probe` alone takes no time, and loads no torch


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
