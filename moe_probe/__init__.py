"""Interpretability toolkit for pretrained Mixture-of-Experts language models."""

from moe_probe import plotting, static
from moe_probe.model import MoEModel, load

__version__ = "0.1.0"
__all__ = ["MoEModel", "load", "plotting", "static"]
