"""All dynamic analyses, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from moe_probe.registry import Registry

if TYPE_CHECKING:
    from moe_probe.dynamic.analysis import Analysis


def analysis_of(module: ModuleType, name: str) -> type[Analysis]:
    """The analysis that a module defines: the one of the given name."""
    from moe_probe.dynamic.analysis import Analysis

    classes = (each for each in vars(module).values() if inspect.isclass(each) and issubclass(each, Analysis))
    return next(each for each in classes if vars(each).get("name") == name)


ANALYSES: Registry[type[Analysis]] = Registry("moe_probe.dynamic.analyses", "dynamic", "analysis", analysis_of)


@cache
def class_names() -> Mapping[str, str]:
    """Names of the analyses by the names of their classes."""
    return {ANALYSES[name].__name__: name for name in ANALYSES}


def names() -> Mapping[str, type[Analysis]]:
    """Every dynamic analysis by its name, including those of other packages (entry points `moe_probe.dynamic`).

    Examples:
        >>> "expert_load" in names()
        True
    """
    return ANALYSES
