"""Makes analyses from instances, classes or names."""

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
    """Returns instances of the requested analyses.

    Args:
        asked: instances, classes or names, one or several.
        options: arguments for those requested by name or class, by the analysis's name.

    Raises:
        NoSuchName: there is no such analysis, or it takes no such option.
        WrongType: a request is of another type.
    """
    several = [asked] if isinstance(asked, str | Analysis) or inspect.isclass(asked) else asked
    if isinstance(several, Mapping) or not hasattr(several, "__iter__"):
        raise WrongType(f"analyses is a {type(asked).__name__}; pass analyses, their classes or their names.")
    return [make_analysis(one, options or {}) for one in several]


def make_analysis(one: One, options: Mapping[str, Mapping[str, Any]]) -> Analysis:
    """Returns an instance of an analysis, from an instance, its class or its name."""
    if isinstance(one, Analysis):
        return one
    chosen = ANALYSES[one] if isinstance(one, str) else one
    if not (inspect.isclass(chosen) and issubclass(chosen, Analysis)):
        raise WrongType(f"{one!r} is not an analysis; pass one of {', '.join(ANALYSES)}.")
    return construct(chosen.name, chosen, options.get(chosen.name, {}))
