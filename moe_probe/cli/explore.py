"""`moe-probe explore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_probe import explorer
from moe_probe.cli.common import (
    BatchTokens,
    CkptOrTrace,
    Column,
    Device,
    Dtype,
    Execution,
    Labels,
    Layers,
    MaxLength,
    Progress,
    Revision,
    Texts,
    Tokenizer,
    app,
    console,
    open_model,
    parse_layers,
)
from moe_probe.dynamic import is_trace
from moe_probe.results import load_result


@app.command(epilog="Example: `moe-probe explore ckpt/Mixtral-8x7B-v0.1 --texts wiki.txt -o mixtral.html`")
def explore(
    source: CkptOrTrace,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page.")] = Path("explorer.html"),
    texts: Texts = None,
    similar: Annotated[
        str,
        typer.Option(
            metavar="HOW", help="Most similar experts by neuron_mean, matrix or gate; none; or a result (.nc)."
        ),
    ] = "neuron_mean",
    max_bytes: Annotated[
        int, typer.Option(metavar="N", help="Of the page; numbers are rounded as finely as fits.")
    ] = explorer.MAX_BYTES,
    layers: Layers = None,
    labels: Labels = None,
    column: Column = None,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = 4096,
    execution: Execution = "auto",
    progress: Progress = True,
    revision: Revision = None,
    tokenizer: Tokenizer = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Write one page of HTML to look into the routing of every token; it needs no network."""
    page = explorer.explore(
        source if is_trace(source) else open_model(source, revision, tokenizer, device, dtype),
        texts,
        similar=load_result(similar) if similar.endswith(".nc") else None if similar == "none" else similar,
        max_bytes=max_bytes,
        layers=parse_layers(layers),
        labels=labels,
        column=column,
        max_length=max_length,
        batch_tokens=batch_tokens,
        execution=execution,
        progress=progress,
    )
    console.print(f"Wrote {page.save(out)} ({len(page.html) / 1e6:.1f} MB); open it in a browser")
