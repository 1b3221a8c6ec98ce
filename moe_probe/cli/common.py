"""What the commands share: the app, arguments that several take, and how results are written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
import xarray as xr
from rich.console import Console

from moe_probe import plotting
from moe_probe.errors import InputError
from moe_probe.figures import draw, result_stem
from moe_probe.results import save
from moe_probe.tables import summary

app = typer.Typer(
    help="Look into pretrained Mixture-of-Experts language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
console = Console()
Ckpt = Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint folder, or a hub id.")]
Options = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME.KEY=VALUE", help="An argument of an analysis, in JSON; may be repeated."),
]
Out = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where results and figures go.")]
Layers = Annotated[str | None, typer.Option(help="MoE layers, such as 0,5,10-15. Default: all.")]
Texts = Annotated[str | None, typer.Option(metavar="FILE", help="Texts: .txt (one a line), .jsonl, .csv or .parquet.")]
Labels = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of document labels.")]
Column = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of the text.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens per document at most.")]
BatchTokens = Annotated[int, typer.Option(help="Places per batch.")]
Baseline = Annotated[str | None, typer.Option(metavar="CKPT", help="A dense model to compare with.")]
Layerwise = Annotated[bool, typer.Option("--layerwise", help="Read one layer at a time, for large models.")]


def parse_layers(text: str | None) -> list[int] | None:
    """`"0,5,10-12"` as [0, 5, 10, 11, 12]; None stays.

    Raises:
        InputError: the text is no such list.
    """
    if text is None:
        return None
    try:
        bounds = [[int(end) for end in part.split("-", 1)] for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} is no list of layers; write it like 0,5,10-12.") from None
    return [layer for first, *last in bounds for layer in range(first, (last or [first])[0] + 1)]


def parse_options(texts: Sequence[str] | None) -> dict[str, dict]:
    """`["expert_capacity.factors=[1, 2]"]` as {"expert_capacity": {"factors": [1, 2]}}.

    Raises:
        InputError: a text is not of that form.
    """
    found: dict[str, dict] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        analysis, dot, key = name.partition(".")
        if not (equals and dot and key):
            raise InputError(f"{text!r} is no option; write it like expert_capacity.factors=[1,1.25].")
        try:
            found.setdefault(analysis, {})[key] = json.loads(value)
        except ValueError:
            found.setdefault(analysis, {})[key] = value
    return found


def write(results: Iterable[xr.Dataset], output: Path) -> None:
    """Save results and draw their figures; print short tables, and what was written."""
    count = figures = 0
    for dataset in results:
        save(dataset, output / f"{result_stem(dataset)}.nc")
        count += 1
        if dataset.attrs["analysis"] in plotting.names():
            figures += sum(1 for _ in draw(dataset, output))
        if (table := summary(dataset)) is not None:
            console.print(table)
    console.print(f"Wrote {count} results (.nc) and {figures} figures (.pdf) to {output}")
