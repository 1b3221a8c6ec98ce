"""Results to figures. A plot sees a Dataset and nothing else; its file bears the name of the analysis that it draws."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import xarray as xr

from moe_probe.errors import InputError
from moe_probe.plotting.style import Figure

__all__ = ["figures", "names", "plot"]


def plot(ds: xr.Dataset, **options: Any) -> Figure:
    """The figure of a result, picked by `ds.attrs["analysis"]`.

    Args:
        ds: result of any analysis.
        options: passed on to that analysis's plot, such as `layer=` and `scale=`.

    Raises:
        InputError: no plot is known for the result.

    Examples:
        >>> from moe_probe import static, plotting
        >>> ds = static.similarity("ckpt/tiny-mixtral")
        >>> figure = plotting.plot(ds, layer=0)
    """
    return _module(ds).plot(ds, **options)


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """All figures of a result, as (file stem, figure).

    Raises:
        InputError: no plot is known for the result.
    """
    yield from _module(ds).figures(ds)


def names() -> list[str]:
    """The analyses that have a plot."""
    return list(_modules())


def _modules() -> dict[str, ModuleType]:
    modules = {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
    return {name: module for name, module in modules.items() if hasattr(module, "figures")}


def _module(ds: xr.Dataset) -> ModuleType:
    name, drawable = ds.attrs.get("analysis"), _modules()
    if name not in drawable:
        raise InputError(f"There is no plot for the analysis {name!r}; there are plots for {', '.join(drawable)}.")
    return drawable[name]
