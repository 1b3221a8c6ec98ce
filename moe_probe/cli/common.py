"""Shared parts of the commands: common arguments, and the writing of results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from moe_probe.errors import NoSuchName
from moe_probe.shown import PlainConsole

if TYPE_CHECKING:
    import xarray as xr

console = PlainConsole()
NAMED = "NAME=CKPT gives it a name in tables and figures"

Ckpt = Annotated[str, typer.Argument(metavar="CKPT", help=f"A checkpoint folder, or a hub id; {NAMED}.")]
CkptOrTrace = Annotated[
    str, typer.Argument(metavar="CKPT", help=f"A checkpoint folder, a hub id, or a routing trace; {NAMED}.")
]
Options = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME.KEY=VALUE", help="An argument of an analysis, in JSON; may be repeated."),
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Output folder of results and figures.")]
FileOfTexts = typer.Option(metavar="FILE", help="Texts: .txt (one per line), .jsonl, .json, .csv, .tsv or .parquet.")
Texts = Annotated[str | None, FileOfTexts]
RequiredTexts = Annotated[str, FileOfTexts]
Table = Annotated[
    str | None, typer.Option(metavar="FORMAT", help="Also write tables of the results: csv, json or latex.")
]


def write(
    results: Iterable[xr.Dataset], out: Path, drawing: Mapping[str, Any], n_jobs: int = 1, table: str | None = None
) -> None:
    """Saves results and their tables, draws their figures, prints short tables, and reports what was written.

    Args:
        results: results of analyses.
        out: the output folder.
        drawing: arguments of `figures.draw`.
        n_jobs: number of figures drawn at a time.
        table: format of the tables; None for no tables.
    """
    from moe_probe import plotting
    from moe_probe.cli.tables import summary
    from moe_probe.figures import draw, result_stem
    from moe_probe.results import save
    from moe_probe.tabular import SUFFIXES, Format, write_tables

    if table is not None and table not in SUFFIXES:
        raise NoSuchName.among("format of tables", table, SUFFIXES)
    saved = []
    for dataset in results:
        save(dataset, out / f"{result_stem(dataset)}.nc")
        saved.append(dataset)
        if table is not None:
            write_tables(dataset, out / result_stem(dataset), cast(Format, table))
    figures = 0
    for dataset in saved:
        if dataset.attrs["analysis"] in plotting.names():
            figures += len(draw(dataset, out, n_jobs, **drawing))
        if (short := summary(dataset)) is not None:
            console.print(short)
    console.print(f"Wrote {len(saved)} results (.nc) and {figures} figures (.{drawing['format']}) to {out}")
