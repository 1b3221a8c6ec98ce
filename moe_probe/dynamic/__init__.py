"""Analyses of a running model: one forward pass over a corpus feeds every requested analysis.

Every analysis is a class, for `run`, which takes several, and a function of the same name in lower case with
underscores: `dynamic.run(model, texts, [dynamic.OutputNorms()])`, `dynamic.output_norms(model, texts)`.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from moe_probe.deferred import Deferred
from moe_probe.dynamic.registered import ANALYSES, class_names, names

if TYPE_CHECKING:
    from moe_probe.dynamic.analysis import Analysis
    from moe_probe.dynamic.functions import from_trace, generate, run
    from moe_probe.texts.tokenizing import make_corpus
    from moe_probe.texts.words import word_list
    from moe_probe.traces.reading import Trace, is_trace, read_trace

__all__ = [
    "Analysis",
    "Trace",
    "from_trace",
    "generate",
    "is_trace",
    "make_corpus",
    "names",
    "read_trace",
    "run",
    "word_list",
]
# where names have gone; they are found here for one more version
MOVED = {
    "analyses": ("moe_probe.dynamic", "names"),
    "open_sources": ("moe_probe.comparisons", "open_sources"),
    "expert_activation": ("moe_probe.comparisons", "expert_activation"),
    "gating_residual": ("moe_probe.comparisons", "gating_residual"),
    "patch_divergence_over_steps": ("moe_probe.comparisons", "patch_divergence_over_steps"),
    "router_saturation": ("moe_probe.comparisons", "router_saturation"),
    "routing_drift": ("moe_probe.comparisons", "routing_drift"),
}


_NAMES = Deferred(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name in _NAMES:
        return _NAMES.attribute(name)
    if name in ANALYSES:
        return import_module("moe_probe.dynamic.functions").function_of(ANALYSES[name])
    if name in MOVED:
        package, new = MOVED[name]
        warnings.warn(f"dynamic.{name} is now {package}.{new}.", DeprecationWarning, stacklevel=2)
        return getattr(import_module(package), new)
    return ANALYSES[class_names()[name]] if name in class_names() else _NAMES.attribute(name)


def __dir__() -> list[str]:
    return sorted([*__all__, *ANALYSES, *class_names()])
