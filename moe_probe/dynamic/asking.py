"""Analyses as they are asked for: instances, classes or names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from moe_probe.dynamic.analysis import Analysis
from moe_probe.dynamic.registered import ANALYSES
from moe_probe.errors import WrongType
from moe_probe.options import construct

One = Analysis | type[Analysis] | str
Asked = One | Sequence[One]


def make_analyses(asked: Asked, options: Mapping[str, Mapping[str, Any]] | None = None) -> list[Analysis]:
    """Instances of what is asked for.

    Args:
        asked: instances, classes or names, one or several.
        options: arguments for those asked for by name or class, by the analysis's name.

    Raises:
        NoSuchName: there is no such analysis, or it takes no such option.
        WrongType: something else is asked for.
    """
    several = [asked] if isinstance(asked, str | Analysis) or inspect.isclass(asked) else asked
    if isinstance(several, Mapping) or not hasattr(several, "__iter__"):
        raise WrongType(f"analyses is a {type(asked).__name__}; pass analyses, their classes or their names.")
    return [make_analysis(one, options or {}) for one in several]


def make_analysis(one: One, options: Mapping[str, Mapping[str, Any]]) -> Analysis:
    """An instance of an analysis, its class or its name."""
    if isinstance(one, Analysis):
        return one
    chosen = ANALYSES[one] if isinstance(one, str) else one
    if not (inspect.isclass(chosen) and issubclass(chosen, Analysis)):
        raise WrongType(f"{one!r} is no analysis; pass one of {', '.join(ANALYSES)}.")
    return construct(chosen.name, chosen, options.get(chosen.name, {}))
