"""`moe-probe convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moe_probe.cli.common import console
from moe_probe.cli.options import open_model, takes
from moe_probe.options import SHARD_BYTES


def epilog() -> str:
    """An example."""
    return "Example: `moe-probe convert ckpt/grok-1 ckpt/grok-1-int8 --keep-int8`"


@takes("revision", "config")
def command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint folder in any format, or a hub id.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A folder that does not exist yet.")],
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="float32, float16 or bfloat16. Default: as stored.")
    ] = None,
    keep_int8: Annotated[bool, typer.Option("--keep-int8", help="Leave Grok-1's int8 matrices as they are.")] = False,
    shard_bytes: Annotated[
        int, typer.Option(metavar="N", help="Largest size of a file in bytes; a single tensor may be larger.")
    ] = SHARD_BYTES,
    **options: Any,
) -> None:
    """Write a checkpoint as a safetensors folder that opens fast."""
    from moe_probe.convert import convert

    model = open_model(source, options)
    folder = convert(model, destination, dtype=dtype, keep_int8=keep_int8, shard_bytes=shard_bytes)
    console.print(f"Wrote {folder}")
