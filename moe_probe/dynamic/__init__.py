"""Analyses of a model at work: one forward pass over a corpus feeds every analysis asked for.

Every analysis is a class (for `run`, which takes several) and a function of the same name in lower case with
underscores (for one): `dynamic.run(model, texts, [dynamic.OutputNorms()])`, `dynamic.output_norms(model, texts)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import xarray as xr

from moe_probe.comparisons.expert_activation import (
    expert_activation,
    patch_divergence_over_steps,
    router_saturation,
    routing_drift,
)
from moe_probe.comparisons.side_by_side import labelled as open_sources
from moe_probe.dynamic.analyses import analyses
from moe_probe.dynamic.analysis import Analysis
from moe_probe.dynamic.driver import run
from moe_probe.forward.writing import generate
from moe_probe.texts.corpus import make_corpus
from moe_probe.texts.words import word_list
from moe_probe.traces.reading import Trace, from_trace, is_trace, read_trace


def _function(analysis: type[Analysis]) -> Callable[..., xr.Dataset]:
    """`run` with one analysis: its arguments and those of `run` are told apart by name."""
    own = {name for name in inspect.signature(analysis.__init__).parameters if name != "self"}

    def function(model: Any, texts: Any, **arguments: Any) -> xr.Dataset:
        chosen = {name: value for name, value in arguments.items() if name in own and name != "baseline"}
        rest = {name: value for name, value in arguments.items() if name not in own or name == "baseline"}
        if "baseline" in own:
            chosen["baseline"] = arguments.get("baseline") is not None
        return run(model, texts, [analysis(**chosen)], **rest)[analysis.name]

    function.__name__ = function.__qualname__ = analysis.name
    function.__doc__ = f"{analysis.__doc__}\n    Takes the arguments of `run` too."
    return function


_CLASSES = {analysis.__name__: analysis for analysis in analyses().values()}
_FUNCTIONS = {name: _function(analysis) for name, analysis in analyses().items()}
globals().update(_CLASSES | _FUNCTIONS)

__all__ = [
    "Analysis",
    "Trace",
    "analyses",
    "expert_activation",
    "from_trace",
    "generate",
    "is_trace",
    "make_corpus",
    "open_sources",
    "patch_divergence_over_steps",
    "read_trace",
    "router_saturation",
    "routing_drift",
    "run",
    "word_list",
    *_CLASSES,
    *_FUNCTIONS,
]
