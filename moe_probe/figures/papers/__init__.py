"""One file per paper; found by scanning this folder for `PAPER`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from moe_probe.errors import InputError
from moe_probe.figures.recipes import Paper


@cache
def papers() -> dict[str, Paper]:
    """The papers by name."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {module.PAPER.name: module.PAPER for module in modules}


def find_paper(name: str) -> Paper:
    """A paper by its name.

    Raises:
        InputError: there is no such paper.
    """
    if name not in papers():
        raise InputError(f"There is no paper {name!r}; there are {', '.join(papers())}.")
    return papers()[name]
