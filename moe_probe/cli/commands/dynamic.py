"""`moe-probe dynamic`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe.cli.common import CkptOrTrace, Options, Out, Table, Texts, write
from moe_probe.cli.options import (
    FIGURE_OPTIONS,
    MODEL_OPTIONS,
    check_names,
    drawing_of,
    of_run,
    open_source,
    parse_options,
    takes,
)
from moe_probe.options import DEFAULTS, completed

if TYPE_CHECKING:
    from moe_probe.dynamic import Analysis
    from moe_probe.routing import Source


def epilog() -> str:
    """The analyses, and two examples."""
    from moe_probe.dynamic.registered import ANALYSES

    starred = (name + "*" * ANALYSES.stated(name, "unasked", False) for name in ANALYSES)
    return (
        f"Analyses: {', '.join(starred)}\n\n"
        "Examples: `moe-probe dynamic ckpt/Mixtral-8x7B-v0.1 --texts wiki.txt -o out`, then without the model "
        "`moe-probe dynamic out/trace --analysis expert_load -o out`"
    )


@takes(*DEFAULTS, *MODEL_OPTIONS, *FIGURE_OPTIONS)
def command(
    source: CkptOrTrace,
    out: Out,
    texts: Texts = None,
    analysis: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An analysis, of those below; may be repeated. Default: those with a star."),
    ] = None,
    option: Options = None,
    table: Table = None,
    **options: Any,
) -> None:
    """Run the model over texts once for all analyses; write netCDF results and PDF figures to DIR."""
    from moe_probe import dynamic
    from moe_probe.dynamic import sources
    from moe_probe.dynamic.driver import results

    asked = completed(of_run(options))
    given = parse_options(option)
    check_names(given, dynamic.names(), "analysis")
    seen = sources.open_source(open_source(source, options), texts, asked)
    analyses = chosen(seen, analysis, with_defaults(given, asked, out))
    write(results(seen, analyses, asked).values(), out, drawing_of(options), asked["n_jobs"], table)


def chosen(source: Source, names: list[str] | None, options: Mapping[str, Mapping[str, Any]]) -> list[Analysis]:
    """The requested analyses; by default those with a star that can run on the source."""
    from moe_probe import dynamic
    from moe_probe.dynamic.asking import make_analyses
    from moe_probe.dynamic.driver import applicable

    if names:
        return make_analyses(names, options)
    unasked = [name for name, each in dynamic.names().items() if each.unasked]
    return applicable(source, make_analyses(unasked, options))


def with_defaults(
    given: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any], out: Path
) -> dict[str, dict[str, Any]]:
    """Arguments of every analysis, which use the baseline if there is one, and write files below `out`."""
    from moe_probe import dynamic

    arguments = {}
    for name, analysis in dynamic.names().items():
        takes_fields = {field.name for field in fields(analysis)}
        defaults: dict[str, Any] = {"baseline": options["baseline"] is not None, "path": str(out / "trace")}
        arguments[name] = {k: v for k, v in defaults.items() if k in takes_fields} | dict(given.get(name, {}))
    return arguments
