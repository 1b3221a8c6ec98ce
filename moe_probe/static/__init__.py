"""Analyses of weights: they read the published files once and run no model.

Each file of `analyses/` defines one analysis, a function with the file's name. Other packages add analyses through the
entry point group `moe_probe.static`: an entry point's name is the analysis's, its value the function, or the module
that defines it.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, get_args, get_type_hints

from moe_probe.deferred import Deferred
from moe_probe.registry import Registry

if TYPE_CHECKING:
    import xarray as xr

StaticAnalysis: TypeAlias = "Callable[..., xr.Dataset]"
ANALYSES: Registry[StaticAnalysis] = Registry("moe_probe.static.analyses", "static", "static analysis", getattr)
_NAMES = Deferred(__name__, __file__)


def names() -> Mapping[str, StaticAnalysis]:
    """All static analyses by name; each is also `static.<name>`.

    Examples:
        >>> from moe_probe import static
        >>> sorted(static.names())[:2]
        ['gate_regression', 'gate_similarity']
    """
    return ANALYSES


def levels(name: str) -> tuple[str, ...]:
    """The levels that an analysis takes, from the `Literal` type of its argument `level`; () if it has no levels."""
    return get_args(get_type_hints(ANALYSES[name]).get("level"))


def unasked(name: str) -> tuple[str | None, ...]:
    """The levels at which the command line runs an analysis if the user names none; None for one without levels.

    The analysis's module defines them as `UNASKED`; by default, an analysis of one model runs at its first level.
    """
    function = ANALYSES[name]
    stated = getattr(sys.modules[function.__module__], "UNASKED", None)
    if stated is not None:
        return stated
    return (levels(name) or (None,))[:1] if models(name) == 1 else ()


def models(name: str) -> int:
    """Number of models that an analysis compares: that of its arguments without a default."""
    source = ANALYSES.source(name)
    if source is None:
        parameters = inspect.signature(ANALYSES[name]).parameters.values()
        return sum(parameter.default is inspect.Parameter.empty for parameter in parameters)
    takes = next(node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == name).args
    return len(takes.args) - len(takes.defaults) + takes.kw_defaults.count(None)


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in ANALYSES:
        return _NAMES.attribute(name)
    return ANALYSES[name]


def __dir__() -> list[str]:
    return ["levels", "models", "names", "unasked", *ANALYSES]
