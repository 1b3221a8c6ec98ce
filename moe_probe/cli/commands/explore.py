"""`moe-probe explore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moe_probe.cli.common import CkptOrTrace, Texts, console
from moe_probe.cli.options import MODEL_OPTIONS, of_run, open_source, takes
from moe_probe.options import EXPLORE_OPTIONS, PAGE_BYTES


def epilog() -> str:
    """An example."""
    return "Example: `moe-probe explore ckpt/Mixtral-8x7B-v0.1 --texts wiki.txt -o mixtral.html`"


@takes(*EXPLORE_OPTIONS, *MODEL_OPTIONS)
def command(
    source: CkptOrTrace,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page.")] = Path("explorer.html"),
    texts: Texts = None,
    similar: Annotated[
        str,
        typer.Option(
            metavar="HOW", help="How to rank similar experts: neuron_mean, matrix, gate, none, or a saved result (.nc)."
        ),
    ] = "neuron_mean",
    max_bytes: Annotated[
        int, typer.Option(metavar="N", help="Size limit of the page; numbers are rounded to fit.")
    ] = PAGE_BYTES,
    **options: Any,
) -> None:
    """Write one page of HTML to look into the routing of every token; it needs no network."""
    from moe_probe import explorer
    from moe_probe.results import load_result

    near: Any = load_result(similar) if similar.endswith(".nc") else None if similar == "none" else similar
    page = explorer.explore(
        open_source(source, options),
        texts,
        similar=near,
        max_bytes=max_bytes,
        **of_run(options, EXPLORE_OPTIONS),
    )
    console.print(f"Wrote {page.save(out)} ({len(page.html) / 1e6:.1f} MB); open it in a browser")
