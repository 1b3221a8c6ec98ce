"""`moe-probe convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from moe_probe.cli.common import app, console
from moe_probe.convert import convert
from moe_probe.errors import InputError


@app.command("convert", epilog="Example: `moe-probe convert ckpt/grok-1 ckpt/grok-1-int8 --keep-int8`")
def convert_command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint folder in any format, or a hub id.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A folder that does not exist yet.")],
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16. Default: as stored.")] = None,
    keep_int8: Annotated[bool, typer.Option(help="Leave Grok-1's int8 matrices as they are.")] = False,
) -> None:
    """Write a checkpoint as a safetensors folder that opens fast, shard by shard."""
    if dtype not in (None, "float32", "float16", "bfloat16"):
        raise InputError(f"There is no dtype {dtype!r}; there are float32, float16 and bfloat16.")
    folder = convert(source, destination, dtype=dtype and getattr(torch, dtype), keep_int8=keep_int8)
    console.print(f"Wrote {folder}")
