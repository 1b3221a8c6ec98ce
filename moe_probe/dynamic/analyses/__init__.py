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
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    public = [
        member
        for module in modules
        for name, member in vars(module).items()
        if inspect.isclass(member) and member.__module__ == module.__name__ and not name.startswith("_")
    ]
    return {member.name: member for member in public if issubclass(member, Analysis)}
