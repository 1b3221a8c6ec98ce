"""`moe-probe explore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moe_probe.cli.common import NAMED, Texts, console
from moe_probe.cli.options import MODEL_OPTIONS, of_run, open_source, takes
from moe_probe.options import DIGITS, EXPLORE_OPTIONS, PAGE_BYTES


def epilog() -> str:
    """Examples."""
    return (
        "Examples: `moe-probe explore ckpt/Mixtral-8x7B-v0.1 --texts wiki.txt -o mixtral.html`; "
        "`moe-probe explore base=ckpt/base tuned=ckpt/tuned --texts wiki.txt`"
    )


@takes(*EXPLORE_OPTIONS, *MODEL_OPTIONS)
def command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="CKPT...",
            help=f"One or two checkpoint folders, hub ids or routing traces; {NAMED}.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file of the page.")] = Path(
        "explorer.html"
    ),
    texts: Texts = None,
    similar: Annotated[
        str,
        typer.Option(
            metavar="HOW", help="How to rank similar experts: neuron_mean, matrix, gate, none, or a saved result (.nc)."
        ),
    ] = "neuron_mean",
    vocabulary: Annotated[
        bool, typer.Option("--vocabulary", help="Compute the tokens that each expert promotes.")
    ] = False,
    digits: Annotated[
        int, typer.Option(metavar="N", help="Significant digits of logits and weights, 1 to 6.")
    ] = DIGITS,
    runners_up: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of experts listed besides the chosen ones. Default: 1, and all in layers of up to 16.",
        ),
    ] = None,
    max_bytes: Annotated[
        int, typer.Option(metavar="N", help="Size limit of the page in bytes; numbers are rounded to fit.")
    ] = PAGE_BYTES,
    **options: Any,
) -> None:
    """Write one page of HTML that shows the routing of every token and needs no network."""
    from moe_probe import explorer
    from moe_probe.results import load_result

    near: Any = load_result(similar) if similar.endswith(".nc") else None if similar == "none" else similar
    page = explorer.explore(
        [open_source(source, options) for source in sources],
        texts,
        similar=near,
        vocabulary=vocabulary,
        digits=digits,
        runners_up=runners_up,
        max_bytes=max_bytes,
        **of_run(options, EXPLORE_OPTIONS),
    )
    path = page.save(out)
    console.print(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser")
