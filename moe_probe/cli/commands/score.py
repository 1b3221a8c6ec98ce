"""`moe-probe score`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe.cli.common import Ckpt, Out, Table, Texts, console, write
from moe_probe.cli.options import FIGURE_OPTIONS, MODEL_OPTIONS, drawing_of, of_run, open_model, takes
from moe_probe.errors import InputError, NoSuchName, NotFitting, NothingToRead
from moe_probe.options import SCORE_OPTIONS, TEXT_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import xarray as xr

    from moe_probe.texts.corpus import Corpus

OF_SCORE = tuple(name for name in SCORE_OPTIONS if name != "checkpoint_dir")
EXAMPLE = (
    "Example: `moe-probe score ckpt/tiny-mixtral --texts ckpt/texts.jsonl --labels domain -o out`. Without "
    "`--evaluate`, every second document is held out; without texts, only weights are scored."
)


def epilog() -> str:
    """An example."""
    return EXAMPLE


@takes(*OF_SCORE, *MODEL_OPTIONS, *FIGURE_OPTIONS)
def command(
    ckpt: Ckpt,
    out: Out,
    texts: Texts = None,
    evaluate: Annotated[str | None, typer.Option(metavar="FILE", help="Held-out texts to evaluate scores on.")] = None,
    names: Annotated[str, typer.Option(metavar="NAMES", help="Scores, such as reap,ean. Default: all.")] = "all",
    base: Annotated[str | None, typer.Option(metavar="CKPT", help="The earlier checkpoint, for gate_change.")] = None,
    fractions: Annotated[
        str, typer.Option(metavar="SHARES", help="Shares of experts to mask, such as 0.125,0.25.")
    ] = "0.125,0.25,0.5",
    per: Annotated[
        str,
        typer.Option(metavar="WHAT", help="Whether shares are of each layer (layer) or of the whole model (model)."),
    ] = "layer",
    random: Annotated[int, typer.Option(metavar="N", help="Number of random orders to compare with.")] = 5,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE:SHARE",
            help="Write plan.json, which removes a share of experts by a score, such as reap:0.25.",
        ),
    ] = None,
    truth: Annotated[
        bool,
        typer.Option(
            help="Measure the loss without each expert, and curves of the loss over the share of masked experts."
        ),
    ] = True,
    bootstrap: Annotated[int, typer.Option(metavar="N", help="Resamples for the intervals; 0 for none.")] = 1000,
    table: Table = None,
    **options: Any,
) -> None:
    """Score every expert, and evaluate the scores on held-out texts; write netCDF results and print a table."""
    from moe_probe import intervene, pruning
    from moe_probe.cli.tables import worth_table
    from moe_probe.pruning.scoring import chosen_scores

    wanted = None if plan is None else parse_plan(plan)
    shares, model, asked = parse_shares(fractions), open_model(ckpt, options), of_run(options, OF_SCORE)
    reading = {name: asked.pop(name) for name in TEXT_OPTIONS}
    drawing = drawing_of(options)
    several = names if names == "all" else names.split(",")
    before: Any = None if base is None else open_model(base, {})
    if wanted is not None:
        check_plan(wanted, chosen_scores(several, texts is not None, base is not None))
    if texts is None:
        if evaluate is not None:
            raise NotFitting(
                "--evaluate evaluates scores of --texts, but there is no --texts; pass both, or only --texts."
            )
        scores = pruning.scores(model, None, several, base=before, **asked)
        write([scores], out, drawing, table=table)
        write_plan(model, scores, wanted, per, out)
        return
    calibration, held_out = two_corpora(model, texts, evaluate, reading, truth)
    scores = pruning.scores(model, calibration, several, base=before, **asked)
    write([scores], out, drawing, table=table)
    write_plan(model, scores, wanted, per, out)
    if held_out is None:
        return
    ablation = intervene.ablate(model, held_out, "mask", by_unit=True, bootstrap=bootstrap, **asked)
    agreement = pruning.agreement(scores, ablation, bootstrap=bootstrap)
    how: Any = {"per": per, "random": random, "bootstrap": bootstrap}
    of_curve = {name: value for name, value in asked.items() if name != "layers"}
    curve = pruning.curve(model, scores, held_out, shares, **how, **of_curve)
    write([ablation, agreement, curve], out, drawing, table=table)
    console.print(worth_table(agreement, curve))


def two_corpora(
    model: Any, texts: str, evaluate: str | None, reading: dict[str, Any], truth: bool
) -> tuple[Corpus, Corpus | None]:
    """The texts to compute scores from, and those to evaluate them on; None if nothing is measured on them."""
    from moe_probe import dynamic, pruning
    from moe_probe.pruning.costs import check_held_out

    corpus = dynamic.make_corpus(model, texts, **reading)
    if not truth:
        return corpus, None
    if evaluate is None:
        try:
            return pruning.halves(corpus)
        except NothingToRead:
            console.print("The texts are a single document, so none can be held out: scores are not evaluated.")
            return corpus, None
    held_out = dynamic.make_corpus(model, evaluate, **reading)
    check_held_out(corpus.digests, held_out)
    return corpus, held_out


def parse_plan(text: str) -> tuple[str, float]:
    """`"reap:0.25"` as ("reap", 0.25).

    Raises:
        InputError: the text is not such a pair.
    """
    name, _, share = text.rpartition(":")
    try:
        return name, float(share)
    except ValueError:
        raise InputError(f"{text!r} is not a score with a share; pass one like reap:0.25.") from None


def check_plan(wanted: tuple[str, float], names: Sequence[str]) -> None:
    """Raises an error, before anything runs, if a plan's score is not computed, or its share is out of range."""
    from moe_probe.pruning.selecting import check_fraction

    if wanted[0] not in names:
        raise NoSuchName.among("score of these", wanted[0], names)
    check_fraction(wanted[1])


def write_plan(model: Any, scores: xr.Dataset, wanted: tuple[str, float] | None, per: Any, out: Path) -> None:
    """Writes plan.json by the requested score and share."""
    from moe_probe import pruning

    if wanted is not None:
        name, share = wanted
        path = pruning.plan(model, scores, share, name, per=per).save(out / "plan.json")
        console.print(f"Wrote {path} for moe-probe prune")


def parse_shares(text: str) -> list[float]:
    """`"0.125,0.25"` as [0.125, 0.25].

    Raises:
        InputError: the text is not such a list.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} is not a list of shares; pass one like 0.125,0.25,0.5.") from None
