"""`moe-probe compare`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe.cli.common import NAMED, Options, Out, Table, console, write
from moe_probe.cli.options import FIGURE_OPTIONS, MODEL_OPTIONS, drawing_of, of_run, open_source, parse_options, takes
from moe_probe.errors import InputError, NotComparable
from moe_probe.options import COMPARE_OPTIONS, DEFAULTS, check_arguments, completed
from moe_probe.shown import printable

if TYPE_CHECKING:
    import xarray as xr

    from moe_probe.comparisons.side_by_side import Opened

SOURCES = ("checkpoints", "before", "after", "model", "steps", "texts", "options", *DEFAULTS)  # not told as --option


def epilog() -> str:
    """The comparisons, and an example."""
    from moe_probe import comparisons

    return (
        f"Comparisons: {', '.join(comparisons.names())}\n\n"
        "Example: `moe-probe compare ckpt/base ckpt/instruct --label base --label instruct --texts wiki.txt -o out`"
    )


@takes(*COMPARE_OPTIONS, *(name for name in MODEL_OPTIONS if name != "revision"), *FIGURE_OPTIONS)
def command(
    sources: Annotated[list[str], typer.Argument(metavar="CKPT...", help=f"Checkpoints or traces, in order; {NAMED}.")],
    out: Out,
    texts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Texts: .txt (one per line), .jsonl, .json, .csv, .tsv or .parquet; not for traces."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A label for each checkpoint; may be repeated. Default: its name."),
    ] = None,
    analysis: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A comparison, of those below; may be repeated. Default: all that apply."),
    ] = None,
    option: Options = None,
    table: Table = None,
    **options: Any,
) -> None:
    """Compare checkpoints: their use of experts, and changes of routing and weights from one to the next."""
    from moe_probe import comparisons
    from moe_probe.comparisons.side_by_side import open_sources

    if label is not None and len(set(label)) != len(sources):
        raise InputError(
            f"There are {len(sources)} checkpoints and {len(set(label))} labels; pass one --label for each."
        )
    given = parse_options(option)
    known = comparisons.names()
    for name in (*(analysis or ()), *given):
        check_arguments(name, known[name], given.get(name, ()), besides=SOURCES)
    models = [open_source(source, options) for source in sources]
    opened = open_sources(models if label is None else dict(zip(label, models, strict=True)), least=1)
    asked = completed(of_run(options, COMPARE_OPTIONS), COMPARE_OPTIONS, "compare")

    def results() -> Iterator[xr.Dataset]:
        for name in analysis or unasked(len(opened)):
            try:
                yield comparison(name, opened, texts, given.get(name, {}), asked)
            except InputError as error:
                if analysis is not None:
                    raise
                console.print(f"Skipping {name}: {printable(error)}", markup=False, highlight=False)

    write(results(), out, drawing_of(options), asked["n_jobs"], table)


def unasked(sources: int) -> list[str]:
    """Comparisons that run on these sources if the user names none."""
    from moe_probe import comparisons

    names = []
    for name, function in comparisons.names().items():
        module = import_module(f"{comparisons.__name__}.analyses.{name}") if in_package(function) else function
        least, most = getattr(module, "SOURCES", (2, None))
        if getattr(module, "UNASKED", False) and least <= sources and (most is None or sources <= most):
            names.append(name)
    return names


def in_package(function: Any) -> bool:
    """Whether a comparison is one of the package's files."""
    return function.__module__.startswith("moe_probe.")


def comparison(
    name: str, sources: Opened, texts: str | None, arguments: Mapping[str, Any], run_options: Mapping[str, Any]
) -> xr.Dataset:
    """Makes one comparison of models or traces, by label.

    Raises:
        InputError: the comparison does not apply to them.
    """
    from moe_probe import comparisons

    function = comparisons.names()[name]
    takes_names = inspect.signature(function).parameters
    positional = [each for each in takes_names if takes_names[each].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    of_run_too = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes_names.values())
    asked = {key: value for key, value in run_options.items() if of_run_too or key in takes_names}
    if "before" in takes_names:
        if len(sources) != 2:
            raise NotComparable(f"{name} compares two checkpoints, but there are {len(sources)}; pass two.")
        sides = [{label: source} for label, source in sources.items()]
        passed = sides if of_run_too else list(sources.values())
    else:
        passed = [sources]
    if "texts" in positional:
        passed = [*passed, texts]
    return function(*passed, **arguments, **asked)
