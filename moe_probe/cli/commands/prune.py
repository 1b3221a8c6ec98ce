"""`moe-probe prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moe_probe.cli.common import Ckpt, console
from moe_probe.cli.options import open_model, takes
from moe_probe.options import SHARD_BYTES

EXAMPLE = "Example: `moe-probe prune ckpt/tiny-mixtral --plan plan.json -o smaller`. `pruning.plan(...)` makes plans."


def epilog() -> str:
    """An example."""
    return EXAMPLE


@takes("revision", "config")
def command(
    ckpt: Ckpt,
    destination: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A folder that does not exist yet.")],
    plan: Annotated[Path, typer.Option(metavar="FILE", help="A plan (JSON) of the experts to keep.")],
    shard_bytes: Annotated[
        int, typer.Option(metavar="N", help="Largest size of a file in bytes; a single tensor may be larger.")
    ] = SHARD_BYTES,
    **options: Any,
) -> None:
    """Write a checkpoint without the experts that a plan removes, in its published layout."""
    from moe_probe import pruning

    folder = pruning.prune(open_model(ckpt, options), plan, destination, shard_bytes=shard_bytes)
    console.print(f"Wrote {folder}")
