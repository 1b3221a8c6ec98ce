"""`moe-probe effect`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moe_probe.cli.common import Ckpt, Out, RequiredTexts, Table, write
from moe_probe.cli.options import FIGURE_OPTIONS, MODEL_OPTIONS, drawing_of, interventions_of, of_run, open_model, takes
from moe_probe.errors import NotFitting
from moe_probe.options import EFFECT_OPTIONS

EXAMPLE = (
    "Example: `moe-probe effect ckpt/Mixtral-8x7B-v0.1 --texts wiki.txt --under mask.layer=3,experts=1+2 --direct -o "
    "out`. Interventions act together; a name before one, as in `--under without:zero.layer=3,experts=1`, makes edits "
    "of several names, which are measured beside each other."
)


def epilog() -> str:
    """An example."""
    return EXAMPLE


@takes(*EFFECT_OPTIONS, *MODEL_OPTIONS, *FIGURE_OPTIONS)
def command(
    ckpt: Ckpt,
    out: Out,
    texts: RequiredTexts,
    direct: Annotated[bool, typer.Option(help="Also measure direct effects, without rerouting.")] = False,
    control: Annotated[
        bool, typer.Option(help="Also measure each edit on other experts that are chosen about as often.")
    ] = True,
    bootstrap: Annotated[int, typer.Option(metavar="N", help="Resamples for the intervals; 0 for none.")] = 1000,
    table: Table = None,
    **options: Any,
) -> None:
    """Measure effects of interventions on the model's output; write a netCDF result and PDF figures to DIR."""
    from moe_probe import intervene

    edits = edits_of(options.pop("under"))
    if not edits:
        raise NotFitting(
            "effect measures interventions, but there is none; pass one, such as --under mask.layer=3,experts=1+2."
        )
    model, asked = open_model(ckpt, options), of_run(options, EFFECT_OPTIONS)
    measured = intervene.effect(model, texts, edits, direct=direct, control=control, bootstrap=bootstrap, **asked)
    write([measured], out, drawing_of(options), table=table)


def edits_of(texts: list[str] | None) -> dict[str, list[Any]]:
    """Interventions by the name of their edit; those without a name get one from their arguments."""
    named: dict[str, list[str]] = {}
    for text in texts or ():
        name, colon, spelled = text.partition(":")
        alone = colon and name.isidentifier()
        named.setdefault(name if alone else "", []).append(spelled if alone else text)
    edits = {name: interventions_of(spelled) for name, spelled in named.items()}
    return {name or ", ".join(map(repr, edit)): edit for name, edit in edits.items()}
