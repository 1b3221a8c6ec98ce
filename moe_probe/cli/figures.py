"""`moe-probe figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_probe import plotting
from moe_probe.cli.common import NJobs, app, console
from moe_probe.errors import InputError
from moe_probe.figures import draw
from moe_probe.results import load_result


@app.command(epilog="Example: `moe-probe figures out`")
def figures(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with results (.nc).")], n_jobs: NJobs = 1
) -> None:
    """Draw the figures of saved results again."""
    found = sorted(results.glob("*.nc"))
    if not found:
        raise InputError(f"{results} holds no results (*.nc); make some with `moe-probe static` or `dynamic`.")
    drawable = (dataset for dataset in map(load_result, found) if dataset.attrs["analysis"] in plotting.names())
    counts = [len(draw(dataset, results, n_jobs)) for dataset in drawable]
    console.print(f"Drew {sum(counts)} figures of {len(counts)} results in {results}")
