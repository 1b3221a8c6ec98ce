"""`moe-probe info`."""

from __future__ import annotations

from moe_probe.cli.common import Ckpt, app, console
from moe_probe.model import load
from moe_probe.tables import info_table


@app.command(epilog="Example: `moe-probe info ckpt/Mixtral-8x7B-v0.1`")
def info(ckpt: Ckpt) -> None:
    """Say what a checkpoint is made of, without reading its weights."""
    console.print(info_table(load(ckpt)))
