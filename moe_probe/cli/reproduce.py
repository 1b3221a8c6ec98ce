"""`moe-probe reproduce`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from moe_probe import figures
from moe_probe.cli.common import (
    Baseline,
    BatchTokens,
    Column,
    Labels,
    Layers,
    Layerwise,
    MaxLength,
    Options,
    Out,
    Texts,
    app,
    console,
    parse_layers,
    parse_options,
)
from moe_probe.figures.reproduce import named


@app.command(
    epilog=f"Papers: {', '.join(f'{name} (arXiv {paper.arxiv})' for name, paper in figures.papers().items())}\n\n"
    "Example: `moe-probe reproduce look-into-moes --model ckpt/Mixtral-8x7B-v0.1 --baseline ckpt/Mistral-7B-v0.1 "
    "--texts wiki.txt -o out`",
)
def reproduce(
    paper: Annotated[str, typer.Argument(metavar="PAPER", help=f"One of {', '.join(figures.papers())}.")],
    model: Annotated[list[str], typer.Option(metavar="CKPT", help="A checkpoint folder or hub id; may be repeated.")],
    output: Out,
    texts: Texts = None,
    baseline: Baseline = None,
    png: Annotated[bool, typer.Option("--png", help="PNG files too.")] = False,
    layers: Layers = None,
    labels: Labels = None,
    column: Column = None,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = 4096,
    layerwise: Layerwise = False,
    jobs: Annotated[int, typer.Option(help="Layers, or parts of the texts, at a time.")] = 1,
    option: Options = None,
) -> None:
    """Draw a paper's figures for any models, from results that are computed once and kept in DIR."""
    made = figures.reproduce(
        paper,
        named(model),
        output,
        texts,
        baseline=baseline,
        options=parse_options(option),
        png=png,
        layers=parse_layers(layers),
        labels=labels,
        column=column,
        max_length=max_length,
        batch_tokens=batch_tokens,
        execution="layerwise" if layerwise else "auto",
        n_jobs=jobs,
    )
    if made.missing:
        table = Table("figure", "model", "why there is none", title="Not made", title_justify="left")
        for entry in made.missing:
            table.add_row(": ".join(filter(None, (entry["figure"], entry["shows"]))), entry["model"], entry["reason"])
        console.print(table)
    console.print(f"Wrote {len(made.figures)} figures of {paper}; all at a glance: {made.contact_sheet}")
