"""Results to figures. A plot sees a Dataset and nothing else; its file bears the name of the analysis that it draws.

Another package adds the plot of its analysis through the entry point group `moe_probe.plotting`: the entry point's name
is the analysis's, its value a module with `plot(ds, **options)` and `figures(ds)`, and perhaps `summary(ds)` and the
dimensions `DIMS` that the figures need.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import xarray as xr

from moe_probe.errors import NoSuchName, NotFitting, WrongType
from moe_probe.plotting._choices import require
from moe_probe.plotting._style import COLUMN, PAGE, Figure, style
from moe_probe.registry import Registry
from moe_probe.signatures import check_types

__all__ = ["COLUMN", "PAGE", "Figure", "figures", "names", "plot", "style", "summary"]

PLOTS: Registry[ModuleType] = Registry("moe_probe.plotting", "plotting", "plot for the analysis")


def plot(ds: xr.Dataset, **options: Any) -> Figure:
    """The figure of a result, picked by `ds.attrs["analysis"]`.

    Args:
        ds: result of any analysis.
        options: passed on to that analysis's plot, such as `layer=` and `scale=`.

    Raises:
        NoSuchName: there is no plot for the result, or no such option, layer or name in it.
        NotFitting: the result lacks what its figure shows.

    Examples:
        >>> from moe_probe import static, plotting
        >>> ds = static.similarity("ckpt/tiny-mixtral")
        >>> figure = plotting.plot(ds, layer=0)
    """
    module = _module(ds)
    takes = list(inspect.signature(module.plot).parameters)[1:]
    for name in options:
        if name not in takes:
            raise NoSuchName.among(f"option of the plot of {ds.attrs['analysis']}", name, takes)
    check_types(module.plot, options)
    with _complete(ds):
        return module.plot(ds, **options)


def figures(ds: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    """All figures of a result, as (file stem, figure).

    Raises:
        NoSuchName: there is no plot for the result.
        NotFitting: the result lacks what its figures show.
    """
    module = _module(ds)
    with _complete(ds):
        yield from module.figures(ds)


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray] | None:
    """Title and values, (layer, column), of a short table of a result; None where its plot has none."""
    if not isinstance(ds, xr.Dataset) or ds.attrs.get("analysis") not in PLOTS:
        return None
    module = _module(ds)
    if not hasattr(module, "summary"):
        return None
    with _complete(ds):
        return module.summary(ds)


def names() -> list[str]:
    """The analyses that have a plot."""
    return list(PLOTS)


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in PLOTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return PLOTS[name]


def __dir__() -> list[str]:
    return [*__all__, *PLOTS]


def _module(ds: xr.Dataset) -> ModuleType:
    if not isinstance(ds, xr.Dataset):
        raise WrongType(f"A plot takes the Dataset of an analysis, not {type(ds).__name__}; pass the whole result.")
    module = PLOTS[str(ds.attrs.get("analysis"))]
    require(ds, getattr(module, "DIMS", ()))
    return module


@contextmanager
def _complete(ds: xr.Dataset) -> Iterator[None]:
    """Say in one sentence that a result lacks a variable, coordinate or attribute."""
    try:
        yield
    except (KeyError, AttributeError) as error:
        missing = str(error.args[0] if error.args else error).splitlines()[0]
        raise NotFitting(
            f"This result of {ds.attrs['analysis']} lacks what its figure shows ({missing}); it holds "
            f"{', '.join(map(str, ds.data_vars)) or 'nothing'}; pass the whole result, as the analysis returned it."
        ) from error
