"""`moe-probe info`."""

from __future__ import annotations

from moe_probe.cli.common import Ckpt, Revision, app, console, open_model
from moe_probe.cli.tables import info_table


@app.command(epilog="Example: `moe-probe info ckpt/Mixtral-8x7B-v0.1`")
def info(ckpt: Ckpt, revision: Revision = None) -> None:
    """Say what a checkpoint is made of, without reading its weights."""
    console.print(info_table(open_model(ckpt, revision)))
