"""`moe-probe static`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe.cli.common import Ckpt, Options, Out, Table, write
from moe_probe.cli.options import FIGURE_OPTIONS, check_names, drawing_of, of_run, open_model, parse_options, takes
from moe_probe.errors import NoSuchName
from moe_probe.options import STATIC_OPTIONS, check_arguments, completed

if TYPE_CHECKING:
    import xarray as xr

GIVEN = ("model", "level", *STATIC_OPTIONS)  # told by the command's other options


def epilog() -> str:
    """The analyses of one model, and an example."""
    return (
        f"Analyses: {', '.join(of_one())}\n\n"
        "Example: `moe-probe static ckpt/Mixtral-8x7B-v0.1 --baseline ckpt/Mistral-7B-v0.1 --n-jobs 4 -o out`"
    )


@takes(*STATIC_OPTIONS, "revision", "config", *FIGURE_OPTIONS)
def command(
    ckpt: Ckpt,
    out: Out,
    analysis: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An analysis, of those below; may be repeated. Default: all."),
    ] = None,
    level: Annotated[
        str | None, typer.Option(metavar="NAME", help="matrix, neuron_mean, neuron_aligned or neuron.")
    ] = None,
    option: Options = None,
    table: Table = None,
    **options: Any,
) -> None:
    """Analyze the weights; write netCDF results and PDF figures to DIR, and print a short table."""
    from moe_probe import static

    given = parse_options(option)
    check_names(given, of_one(), "static analysis")
    for name, arguments in given.items():
        check_arguments(name, static.names()[name], arguments, besides=GIVEN)
    asked = completed(of_run(options, STATIC_OPTIONS), STATIC_OPTIONS, "static")
    model = open_model(ckpt, options)
    asked["layers"] = model.select_layers(asked["layers"])

    def results() -> Iterator[xr.Dataset]:
        for name, at_level in requests(analysis, level):
            function = static.names()[name]
            arguments = {**asked, "level": at_level}
            known = inspect.signature(function).parameters
            common = {key: value for key, value in arguments.items() if key in known}
            yield function(model, **common, **given.get(name, {}))

    write(results(), out, drawing_of(options), asked["n_jobs"], table)


def of_one() -> list[str]:
    """The analyses of one model."""
    from moe_probe import static

    return [name for name in static.names() if static.models(name) == 1]


def requests(names: Sequence[str] | None, level: str | None) -> list[tuple[str, str | None]]:
    """The analyses to run, each with its level.

    Raises:
        NoSuchName: an analysis is not known, or has no such level.
    """
    from moe_probe import static

    known = of_one()
    for name in names or ():
        if name not in known:
            raise NoSuchName.among("static analysis", name, known)
    if level is None:
        return [(name, at) for name in names or known for at in static.unasked(name)]
    wanted = list(names or (name for name in known if level in static.levels(name)))
    if not wanted or any(level not in static.levels(name) for name in wanted):
        levels = "; ".join(f"{name} has {', '.join(static.levels(name)) or 'no levels'}" for name in names or known)
        raise NoSuchName(f"There is no level {level!r}: {levels}; pass one of these.")
    return [(name, level) for name in wanted]
