"""`moe-probe static`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
import xarray as xr

from moe_probe import static
from moe_probe.cli.common import Baseline, Ckpt, Layers, Out, app, parse_layers, write
from moe_probe.errors import InputError
from moe_probe.model import load

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


@app.command(
    "static",
    epilog="Example: `moe-probe static ckpt/Mixtral-8x7B-v0.1 --baseline ckpt/Mistral-7B-v0.1 --jobs 4 -o out`",
)
def static_command(
    ckpt: Ckpt,
    output: Out,
    analysis: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(LEVELS)}; may be repeated. Default: all.")
    ] = None,
    level: Annotated[str | None, typer.Option(help="matrix, neuron_mean, neuron_aligned or neuron.")] = None,
    metric: Annotated[str, typer.Option(help="Of similarity: cosine, cka or l2.")] = "cosine",
    layers: Layers = None,
    baseline: Baseline = None,
    shared: Annotated[bool, typer.Option(help="Include the shared block where the level allows it.")] = False,
    jobs: Annotated[int, typer.Option(help="Layers computed at a time.")] = 1,
) -> None:
    """Analyse the weights: netCDF results and PDF figures in DIR, a short table on screen."""
    model = load(ckpt)
    dense = None if baseline is None else load(baseline)
    chosen = model.select_layers(parse_layers(layers))

    def results() -> Iterator[xr.Dataset]:
        for name, at_level in choose(analysis, level):
            arguments: dict = {"layers": chosen}
            if at_level is not None:
                arguments |= {"level": at_level, "n_jobs": jobs}
            if name in ("similarity", "pca"):
                arguments["baseline"] = dense
            if name == "similarity":
                arguments["metric"] = metric
                arguments["shared"] = shared and at_level == "neuron_mean"
            yield getattr(static, name)(model, **arguments)

    write(results(), output)


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
