"""One file per dynamic analysis; found by scanning this folder for subclasses of `Analysis`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from moe_probe.dynamic.analysis import Analysis


@cache
def analyses() -> dict[str, type[Analysis]]:
    """Every analysis by its name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, member in vars(module).items():
            if inspect.isclass(member) and issubclass(member, Analysis) and member.__module__ == module.__name__:
                if not name.startswith("_"):
                    found[member.name] = member
    return found
