"""`moe-probe info`."""

from __future__ import annotations

from typing import Any

from moe_probe.cli.common import Ckpt, app, console
from moe_probe.cli.options import open_model, takes
from moe_probe.cli.tables import info_table


@app.command(epilog="Example: `moe-probe info ckpt/Mixtral-8x7B-v0.1`")
@takes("revision")
def info(ckpt: Ckpt, **options: Any) -> None:
    """Describe a checkpoint without reading its weights."""
    console.print(info_table(open_model(ckpt, options)))
