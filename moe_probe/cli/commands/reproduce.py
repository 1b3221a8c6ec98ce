"""`moe-probe reproduce`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moe_probe.cli.common import NAMED, Options, Out, Texts, console
from moe_probe.cli.options import FIGURE_OPTIONS, MODEL_OPTIONS, drawing_of, of_run, open_model, parse_options, takes
from moe_probe.options import REPRODUCE_OPTIONS


def epilog() -> str:
    """The papers, and an example."""
    from moe_probe.figures.papers import PAPERS

    papers = ", ".join(f"{PAPERS.stated(name, 'name')} (arXiv {PAPERS.stated(name, 'arxiv')})" for name in PAPERS)
    return (
        f"Papers: {papers}\n\n"
        "Example: `moe-probe reproduce look-into-moes --model ckpt/Mixtral-8x7B-v0.1 --baseline ckpt/Mistral-7B-v0.1 "
        "--texts wiki.txt -o out`"
    )


@takes(*REPRODUCE_OPTIONS, *(name for name in MODEL_OPTIONS if name != "revision"), *FIGURE_OPTIONS)
def command(
    paper: Annotated[str, typer.Argument(metavar="PAPER", help="A paper, of those below.")],
    model: Annotated[
        list[str], typer.Option(metavar="CKPT", help=f"A checkpoint folder or hub id; {NAMED}; may be repeated.")
    ],
    out: Out,
    texts: Texts = None,
    option: Options = None,
    png: Annotated[bool, typer.Option("--png", help="Also write PNG files, besides those of --format.")] = False,
    **options: Any,
) -> None:
    """Draw a paper's figures for any models, from results that are computed once and saved in DIR."""
    from rich.table import Table
    from rich.text import Text

    from moe_probe import figures
    from moe_probe.shown import printable

    made = figures.reproduce(
        paper,
        [open_model(source, options) for source in model],
        out,
        texts,
        options=parse_options(option),
        png=png,
        **drawing_of(options),
        **of_run(options, REPRODUCE_OPTIONS),
    )
    if made.missing:
        table = Table("figure", "model", "why there is none", title="Not made", title_justify="left")
        for entry in made.missing:
            figure = ": ".join(filter(None, (entry["figure"], entry["shows"])))
            table.add_row(*(Text(printable(text)) for text in (figure, entry["model"], entry["reason"])))
        console.print(table)
    console.print(f"Wrote {len(made.figures)} figures of {paper}; contact sheet: {made.contact_sheet}")
