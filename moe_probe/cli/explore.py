"""`moe-probe explore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_probe import explorer
from moe_probe.cli.common import (
    BatchTokens,
    Column,
    Labels,
    Layers,
    Layerwise,
    MaxLength,
    Texts,
    app,
    console,
    parse_layers,
)
from moe_probe.results import load_result


@app.command(epilog="Example: `moe-probe explore ckpt/Mixtral-8x7B-v0.1 --texts wiki.txt -o mixtral.html`")
def explore(
    source: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint folder, a hub id, or a routing trace.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page.")] = Path("explorer.html"),
    texts: Texts = None,
    similar: Annotated[
        str, typer.Option(help="Most similar experts by neuron_mean, matrix or gate; none; or a result (.nc).")
    ] = "neuron_mean",
    max_bytes: Annotated[int, typer.Option(help="Of the page; numbers are rounded as finely as fits.")] = 30_000_000,
    layers: Layers = None,
    labels: Labels = None,
    column: Column = None,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = 4096,
    layerwise: Layerwise = False,
) -> None:
    """Write one page of HTML to look into the routing of every token; it needs no network."""
    page = explorer.explore(
        source,
        texts,
        similar=load_result(similar) if similar.endswith(".nc") else None if similar == "none" else similar,
        max_bytes=max_bytes,
        layers=parse_layers(layers),
        labels=labels,
        column=column,
        max_length=max_length,
        batch_tokens=batch_tokens,
        execution="layerwise" if layerwise else "auto",
    )
    console.print(f"Wrote {page.save(output)} ({len(page.html) / 1e6:.1f} MB); open it in a browser")
