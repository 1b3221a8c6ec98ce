"""`moe-probe ablate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moe_probe.cli.common import Ckpt, Out, RequiredTexts, Table, write
from moe_probe.cli.options import FIGURE_OPTIONS, MODEL_OPTIONS, drawing_of, of_run, open_model, parse_layers, takes
from moe_probe.options import ABLATE_OPTIONS, ATTRIBUTION_OPTIONS

EXAMPLE = "Example: `moe-probe ablate ckpt/Mixtral-8x7B-v0.1 --texts wiki.jsonl --labels domain --direct -o out`"


def epilog() -> str:
    """An example."""
    return EXAMPLE


@takes(*ABLATE_OPTIONS, *MODEL_OPTIONS, *FIGURE_OPTIONS)
def command(
    ckpt: Ckpt,
    out: Out,
    texts: RequiredTexts,
    how: Annotated[
        str, typer.Option(metavar="HOW", help="zero (weight 0), mask (as if deleted) or mean (its mean output).")
    ] = "zero",
    experts: Annotated[
        str | None, typer.Option(metavar="EXPERTS", help="Experts, such as 0,5,10-15. Default: all.")
    ] = None,
    direct: Annotated[bool, typer.Option(help="Also measure direct effects, without rerouting.")] = False,
    attribution: Annotated[bool, typer.Option(help="Also estimate the changes from one backward pass.")] = False,
    bootstrap: Annotated[int, typer.Option(metavar="N", help="Resamples for the intervals; 0 for none.")] = 1000,
    table: Table = None,
    **options: Any,
) -> None:
    """Measure the loss without each expert: netCDF results and PDF figures in DIR."""
    from moe_probe import intervene

    model, asked = open_model(ckpt, options), of_run(options, ABLATE_OPTIONS)
    chosen: Any = {"how": how, "experts": parse_layers(experts), "direct": direct}
    results = [intervene.ablate(model, texts, **chosen, bootstrap=bootstrap, **asked)]
    if attribution:
        options_too = {name: value for name, value in asked.items() if name in ATTRIBUTION_OPTIONS}
        estimate = intervene.attribution(model, texts, bootstrap=bootstrap, **options_too)
        results += [estimate, intervene.agreement(results[0], estimate)]
    write(results, out, drawing_of(options), table=table)
