"""`moe-probe figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moe_probe.cli.common import console
from moe_probe.cli.options import FIGURE_OPTIONS, drawing_of, of_run, takes
from moe_probe.errors import NothingToRead
from moe_probe.options import completed


def epilog() -> str:
    """An example."""
    return "Example: `moe-probe figures out`"


@takes("n_jobs", *FIGURE_OPTIONS)
def command(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with results (.nc).")], **options: Any
) -> None:
    """Draw the figures of saved results."""
    from moe_probe import plotting
    from moe_probe.figures import draw
    from moe_probe.results import load_result

    n_jobs = completed(of_run(options, ["n_jobs"]), ["n_jobs"], "figures")["n_jobs"]
    files = sorted(results.glob("*.nc"))
    if not files:
        raise NothingToRead(f"{results} holds no results (*.nc); make some with `moe-probe static` or `dynamic`.")
    drawable = (dataset for dataset in map(load_result, files) if dataset.attrs["analysis"] in plotting.names())
    counts = [len(draw(dataset, results, n_jobs, **drawing_of(options))) for dataset in drawable]
    console.print(f"Drew {sum(counts)} figures of {len(counts)} results in {results}")
