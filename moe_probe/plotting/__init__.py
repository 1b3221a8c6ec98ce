"""Draws results as figures. A plot needs only a Dataset; its file has the name of the analysis that it draws.

Other packages add plots through the entry point group `moe_probe.plotting`: an entry point's name is the analysis's,
its value a module with `plot(ds, **options)` and `figures(ds)`. The module may also have `summary(ds)`, a short table;
`details(ds)`, the figures of single layers; `DIMS`, the dimensions that the figures need; and `OVER_LAYERS`, the
variables that do not belong to a single layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Literal, get_args

import xarray as xr

from moe_probe.errors import NoSuchName, NotFitting, WrongType
from moe_probe.plotting._choices import require, with_layer_dimension
from moe_probe.plotting._page import Look, Page
from moe_probe.plotting._style import COLUMN, PAGE, Figure, style
from moe_probe.registry import Registry
from moe_probe.signatures import check_choice, check_types

__all__ = ["COLUMN", "PAGE", "Figure", "Look", "Page", "compare", "figures", "names", "plot", "style", "summary"]

Which = Literal["none", "main", "all"]
PLOTS: Registry[ModuleType] = Registry("moe_probe.plotting", "plotting", "plot for the analysis")


def plot(ds: xr.Dataset, **options: Any) -> Any:
    """Draws a result with the plot of its analysis, `ds.attrs["analysis"]`.

    Args:
        ds: result of any analysis, or one layer of it, `result.sel(layer=3)`.
        options: options of that analysis's plot, such as `layer=` and `scale=`, and of all plots: `ax=` or `axes=` to
            draw on, `figsize=` in inches, `labels=` to rename models and labels, `title=` (none by default).

    Returns:
        The figure, or the axes if `ax` or `axes` are given.

    Raises:
        NoSuchName: there is no plot for the result, or no such option, layer or name in it.
        NotFitting: the result lacks what its figure shows, or the number of axes is not that of the panels.

    Examples:
        >>> from moe_probe import static, plotting
        >>> ds = static.similarity("ckpt/tiny-mixtral")
        >>> figure = plotting.plot(ds, layer=0, labels={"tiny-mixtral": "Mixtral"}, title=True)
    """
    module, ds = _drawable(ds)
    check_options(f"plot of {ds.attrs['analysis']}", module.plot, options)
    with _complete(ds):
        return module.plot(ds, **options)


def figures(ds: xr.Dataset, which: Which = "main") -> Iterator[tuple[str, Figure]]:
    """Yields the figures of a result, as (file stem, figure).

    Args:
        ds: result of any analysis.
        which: `main`: all layers on one or two pages, in one color scale; `all`: also single layers; `none`: no figure.

    Raises:
        NoSuchName: there is no plot for the result, or no such choice of figures.
        NotFitting: the result lacks what its figures show.
    """
    check_choice("choice of figures", which, get_args(Which))
    module, ds = _drawable(ds)
    with _complete(ds):
        if which != "none":
            yield from module.figures(ds)
        if which == "all" and hasattr(module, "details"):
            yield from module.details(ds)


def compare(results: Mapping[str, xr.Dataset], *, labels: Mapping[str, str] | None = None, **options: Any) -> Figure:
    """Draws results of several models, one above the other in one figure, in one scale.

    Args:
        results: by the heading of each; all of one analysis.
        labels: new names for models and labels: `{"mixtral": "Mixtral 8x7B"}`.
        options: options of that analysis's plot, such as `layer=`, and `figsize=` in inches.

    Returns:
        A figure in which maps of one quantity have the same color limits, and lines the same y axis.

    Raises:
        NotFitting: there are no results, or they are of several analyses.
        NoSuchName: there is no plot for the results, or no such option.

    Examples:
        >>> from moe_probe import plotting, static
        >>> checkpoints = {"Mixtral": "ckpt/tiny-mixtral", "DeepSeek": "ckpt/tiny-deepseek-moe"}
        >>> results = {name: static.gate_similarity(path) for name, path in checkpoints.items()}
        >>> figure = plotting.compare(results)
    """
    from moe_probe.plotting._compare import side_by_side

    if not isinstance(results, Mapping) or not results:
        raise NotFitting("results is empty or not a mapping; pass {'name': result, ...}, all of one analysis.")
    drawable = {name: _drawable(ds) for name, ds in results.items()}
    analyses = list(dict.fromkeys(str(ds.attrs["analysis"]) for ds in results.values()))
    if len(analyses) > 1:
        raise NotFitting(f"The results are of {', '.join(analyses)}; pass results of one analysis.")
    module = next(module for module, _ in drawable.values())
    check_options(f"plot of {analyses[0]}", module.plot, options)
    with _complete(next(iter(results.values()))):
        return side_by_side({name: ds for name, (_, ds) in drawable.items()}, module, {"labels": labels, **options})


def check_options(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises an error if a plot does not take an option, or takes another type.

    Raises:
        NoSuchName: there is no such option.
        WrongType: an option is of another type.
    """
    parameters = inspect.signature(function).parameters
    takes = [each for each, said in list(parameters.items())[1:] if said.kind is not said.VAR_KEYWORD]
    of_plot = {each: value for each, value in options.items() if each in takes}
    takes += list(Look.__annotations__) if len(takes) < len(parameters) - 1 else []
    for each in options:
        if each not in takes:
            raise NoSuchName.among(f"option of the {name}", each, takes)
    check_types(function, of_plot)


def summary(ds: xr.Dataset) -> tuple[str, xr.DataArray] | None:
    """Title and values, (layer, column), of a short table of a result; None if its plot has no table."""
    if not isinstance(ds, xr.Dataset) or ds.attrs.get("analysis") not in PLOTS:
        return None
    module, ds = _drawable(ds)
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


def _drawable(ds: xr.Dataset) -> tuple[ModuleType, xr.Dataset]:
    """The module that draws a result, and the result with `layer` as a dimension, which may have one layer."""
    if not isinstance(ds, xr.Dataset):
        raise WrongType(f"A plot takes the Dataset of an analysis, not {type(ds).__name__}; pass the whole result.")
    module = PLOTS[str(ds.attrs.get("analysis"))]
    if "layer" in ds.coords and not ds.layer.ndim:
        ds = with_layer_dimension(ds, getattr(module, "OVER_LAYERS", ()))
    require(ds, getattr(module, "DIMS", ()))
    return module, ds


@contextmanager
def _complete(ds: xr.Dataset) -> Iterator[None]:
    """A context that turns a missing variable, coordinate or attribute into an error of one sentence."""
    try:
        yield
    except (KeyError, AttributeError) as error:
        missing = str(error.args[0] if error.args else error).splitlines()[0]
        raise NotFitting(
            f"This result of {ds.attrs['analysis']} lacks what its figure shows ({missing}); it holds "
            f"{', '.join(map(str, ds.data_vars)) or 'nothing'}; pass the whole result, as the analysis returned it."
        ) from error
