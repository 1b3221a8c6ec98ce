"""`moe-probe info`."""

from __future__ import annotations

from typing import Any

from moe_probe.cli.common import Ckpt, console
from moe_probe.cli.options import open_model, takes


def epilog() -> str:
    """An example."""
    return "Example: `moe-probe info ckpt/Mixtral-8x7B-v0.1`"


@takes("revision")
def command(ckpt: Ckpt, **options: Any) -> None:
    """Describe a checkpoint without reading its weights."""
    from moe_probe.cli.tables import info_table

    console.print(info_table(open_model(ckpt, options)))
