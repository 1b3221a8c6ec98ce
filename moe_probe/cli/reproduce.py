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
    Device,
    Dtype,
    Execution,
    Labels,
    Layers,
    MaxLength,
    NJobs,
    Options,
    Out,
    Progress,
    Texts,
    Tokenizer,
    app,
    console,
    open_model,
    parse_layers,
    parse_options,
)


@app.command(
    epilog=f"Papers: {', '.join(f'{name} (arXiv {paper.arxiv})' for name, paper in figures.papers().items())}\n\n"
    "Example: `moe-probe reproduce look-into-moes --model ckpt/Mixtral-8x7B-v0.1 --baseline ckpt/Mistral-7B-v0.1 "
    "--texts wiki.txt -o out`",
)
def reproduce(
    paper: Annotated[str, typer.Argument(metavar="PAPER", help=f"One of {', '.join(figures.papers())}.")],
    model: Annotated[list[str], typer.Option(metavar="CKPT", help="A checkpoint folder or hub id; may be repeated.")],
    out: Out,
    texts: Texts = None,
    baseline: Baseline = None,
    option: Options = None,
    png: Annotated[bool, typer.Option("--png", help="PNG files too.")] = False,
    layers: Layers = None,
    labels: Labels = None,
    column: Column = None,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = 4096,
    execution: Execution = "auto",
    n_jobs: NJobs = 1,
    progress: Progress = True,
    tokenizer: Tokenizer = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw a paper's figures for any models, from results that are computed once and kept in DIR."""
    made = figures.reproduce(
        paper,
        [open_model(source, None, tokenizer, device, dtype) for source in model],
        out,
        texts,
        baseline=baseline and open_model(baseline, device=device, dtype=dtype),
        options=parse_options(option),
        png=png,
        layers=parse_layers(layers),
        labels=labels,
        column=column,
        max_length=max_length,
        batch_tokens=batch_tokens,
        execution=execution,
        n_jobs=n_jobs,
        progress=progress,
    )
    if made.missing:
        table = Table("figure", "model", "why there is none", title="Not made", title_justify="left")
        for entry in made.missing:
            table.add_row(": ".join(filter(None, (entry["figure"], entry["shows"]))), entry["model"], entry["reason"])
        console.print(table)
    console.print(f"Wrote {len(made.figures)} figures of {paper}; all at a glance: {made.contact_sheet}")
