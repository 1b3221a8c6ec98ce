"""`moe-probe static`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Annotated

import typer
import xarray as xr

from moe_probe import static
from moe_probe.cli.common import (
    Baseline,
    Ckpt,
    Layers,
    NJobs,
    Options,
    Out,
    Revision,
    app,
    open_model,
    parse_layers,
    parse_options,
    write,
)
from moe_probe.errors import InputError
from moe_probe.options import check_arguments

LEVELS = {
    "similarity": ("matrix", "neuron_mean", "neuron_aligned"),
    "gate_similarity": (None,),
    "gate_regression": ("neuron_mean", "matrix", "neuron_aligned"),
    "pca": ("matrix", "neuron"),
    "router_spectrum": (None,),
}
# what runs when nothing is asked for: everything that takes minutes, not hours
DEFAULTS = (
    ("similarity", "matrix"),
    ("similarity", "neuron_mean"),
    ("gate_similarity", None),
    ("gate_regression", "neuron_mean"),
    ("pca", "matrix"),
    ("router_spectrum", None),
)
GIVEN = ("model", "level", "metric", "layers", "baseline", "shared", "n_jobs")  # by the command's other options


@app.command(
    "static",
    epilog="Example: `moe-probe static ckpt/Mixtral-8x7B-v0.1 --baseline ckpt/Mistral-7B-v0.1 --n-jobs 4 -o out`",
)
def static_command(
    ckpt: Ckpt,
    out: Out,
    analysis: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"One of {', '.join(LEVELS)}; may be repeated. Default: all."),
    ] = None,
    level: Annotated[
        str | None, typer.Option(metavar="NAME", help="matrix, neuron_mean, neuron_aligned or neuron.")
    ] = None,
    metric: Annotated[str, typer.Option(metavar="NAME", help="Of similarity: cosine, cka or l2.")] = "cosine",
    layers: Layers = None,
    baseline: Baseline = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Include the shared block where the level allows it.")
    ] = False,
    option: Options = None,
    n_jobs: NJobs = 1,
    revision: Revision = None,
) -> None:
    """Analyse the weights: netCDF results and PDF figures in DIR, a short table on screen."""
    options = parse_options(option)
    for name, given in options.items():
        if name not in LEVELS:
            raise InputError(f"There is no static analysis {name!r}; there are {', '.join(LEVELS)}.")
        check_arguments(name, getattr(static, name), given, besides=GIVEN)
    model = open_model(ckpt, revision)
    arguments = {
        "layers": model.select_layers(parse_layers(layers)),
        "baseline": baseline and open_model(baseline),
        "metric": metric,
        "n_jobs": n_jobs,
    }

    def results() -> Iterator[xr.Dataset]:
        for name, at_level in choose(analysis, level):
            function = getattr(static, name)
            asked = {**arguments, "level": at_level, "shared": shared and at_level == "neuron_mean"}
            takes = inspect.signature(function).parameters
            yield function(
                model, **{key: value for key, value in asked.items() if key in takes} | options.get(name, {})
            )

    write(results(), out, n_jobs)


def choose(analysis: list[str] | None, level: str | None) -> list[tuple[str, str | None]]:
    """The analyses to run, each with its level.

    Raises:
        InputError: an analysis is not known, or has no such level.
    """
    unknown = [name for name in analysis or () if name not in LEVELS]
    if unknown:
        raise InputError(f"There is no static analysis {unknown[0]!r}; there are {', '.join(LEVELS)}.")
    wanted = [item for item in DEFAULTS if analysis is None or item[0] in analysis]
    if level is None:
        return wanted
    names = analysis or [name for name, levels in LEVELS.items() if level in levels]
    if not names or any(level not in LEVELS[name] for name in names):
        levels = {name: [known for known in LEVELS[name] if known] for name in names or LEVELS}
        known = "; ".join(f"{name} has {', '.join(has) or 'no levels'}" for name, has in levels.items())
        raise InputError(f"There is no level {level!r}: {known}.")
    return [(name, level) for name in names]
