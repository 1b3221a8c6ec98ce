"""An analysis as a function: `expert_load(model, texts, threshold=0.1, layers=[0])`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.dynamic.asking import create
from moe_probe.dynamic.driver import run
from moe_probe.errors import NoSuchName
from moe_probe.model import Openable
from moe_probe.options import DEFAULTS, signature_of
from moe_probe.texts.reading import Texts
from moe_probe.traces.reading import Trace


@cache
def function_of(analysis: type[Analysis]) -> Callable[..., xr.Dataset]:
    """`run` with one analysis: takes the analysis's parameters and the options of `run`, with a true signature."""
    own = inspect.signature(analysis).parameters
    parameters = [
        inspect.Parameter("source", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="Openable | Trace"),
        inspect.Parameter("texts", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation="Texts | None"),
        *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, each in own.items() if name != "baseline"),
        *signature_of(DEFAULTS),
    ]
    takes = [each.name for each in parameters]

    def function(source: Openable | Trace, texts: Texts | None = None, **options: Any) -> xr.Dataset:
        for name in options:
            if name not in takes:
                raise NoSuchName.among(f"option of {analysis.name}", name, takes)
        chosen = {name: value for name, value in options.items() if name in own and name != "baseline"}
        if "baseline" in own:
            chosen["baseline"] = options.get("baseline") is not None
        rest = {name: value for name, value in options.items() if name not in own or name == "baseline"}
        return run(source, texts, create(analysis, chosen), **rest)[analysis.name]

    function.__name__ = function.__qualname__ = analysis.name
    function.__module__ = analysis.__module__
    function.__doc__ = f"{inspect.getdoc(analysis)}\n\nTakes the options of `run` too."
    function.__signature__ = inspect.Signature(parameters, return_annotation="xr.Dataset")  # pyright: ignore
    return function
