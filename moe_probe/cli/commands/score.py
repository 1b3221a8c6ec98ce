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
    "`--evaluate`, every second document is held out; without texts, weights alone are scored."
)


def epilog() -> str:
    """An example."""
    return EXAMPLE


@takes(*OF_SCORE, *MODEL_OPTIONS, *FIGURE_OPTIONS)
def command(
    ckpt: Ckpt,
    out: Out,
    texts: Texts = None,
    evaluate: Annotated[str | None, typer.Option(metavar="FILE", help="Held-out texts to judge scores on.")] = None,
    names: Annotated[str, typer.Option(metavar="NAMES", help="Scores, such as reap,ean. Default: all.")] = "all",
    base: Annotated[str | None, typer.Option(metavar="CKPT", help="The checkpoint that gate_change is from.")] = None,
    fractions: Annotated[
        str, typer.Option(metavar="SHARES", help="Shares of the experts that are masked.")
    ] = "0.125,0.25,0.5",
    per: Annotated[str, typer.Option(metavar="WHAT", help="Shares of each layer, or of the whole model.")] = "layer",
    random: Annotated[int, typer.Option(metavar="N", help="Random orders to compare with.")] = 5,
    plan: Annotated[
        str | None, typer.Option(metavar="SCORE:SHARE", help="Write plan.json: which experts stay, such as reap:0.25.")
    ] = None,
    truth: Annotated[bool, typer.Option(help="Measure the loss without each expert, and the curves.")] = True,
    bootstrap: Annotated[int, typer.Option(metavar="N", help="Resamples for the intervals; 0 for none.")] = 1000,
    table: Table = None,
    **options: Any,
) -> None:
    """Score every expert, and measure what the scores are worth: netCDF results and one table."""
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
            raise NotFitting("--evaluate judges scores of --texts, which are not given; pass both, or --texts alone.")
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
    """The texts to score by, and those to judge on: None where nothing is measured on them."""
    from moe_probe import dynamic, pruning
    from moe_probe.pruning.costs import check_held_out

    corpus = dynamic.make_corpus(model, texts, **reading)
    if not truth:
        return corpus, None
    if evaluate is None:
        try:
            return pruning.halves(corpus)
        except NothingToRead:
            console.print(
                "The texts are one document, of which none can be held out: scores alone, without their worth."
            )
            return corpus, None
    held_out = dynamic.make_corpus(model, evaluate, **reading)
    check_held_out(corpus.digests, held_out)
    return corpus, held_out


def parse_plan(text: str) -> tuple[str, float]:
    """`"reap:0.25"` as ("reap", 0.25).

    Raises:
        InputError: the text is no such pair.
    """
    name, _, share = text.rpartition(":")
    try:
        return name, float(share)
    except ValueError:
        raise InputError(f"{text!r} is no score with a share; write it like reap:0.25.") from None


def check_plan(wanted: tuple[str, float], names: Sequence[str]) -> None:
    """Refuse a plan by a score that is not computed, or of a share that there is not, before anything runs."""
    from moe_probe.pruning.selecting import check_fraction

    if wanted[0] not in names:
        raise NoSuchName.among("score of these", wanted[0], names)
    check_fraction(wanted[1])


def write_plan(model: Any, scores: xr.Dataset, wanted: tuple[str, float] | None, per: Any, out: Path) -> None:
    """Write plan.json by the score and share that are asked for."""
    from moe_probe import pruning

    if wanted is not None:
        name, share = wanted
        path = pruning.plan(model, scores, share, name, per=per).save(out / "plan.json")
        console.print(f"Wrote {path}; moe-probe prune takes it")


def parse_shares(text: str) -> list[float]:
    """`"0.125,0.25"` as [0.125, 0.25].

    Raises:
        InputError: the text is no such list.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} is no list of shares; write it like 0.125,0.25,0.5.") from None
