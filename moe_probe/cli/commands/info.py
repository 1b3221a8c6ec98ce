"""`moe-probe info`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from moe_probe.cli.common import Ckpt, console
from moe_probe.cli.options import open_model, parse_fields, split_name, takes


def epilog() -> str:
    """An example."""
    return "Example: `moe-probe info ckpt/Mixtral-8x7B-v0.1`"


@takes("revision", "config")
def command(
    ckpt: Ckpt,
    as_json: Annotated[bool, typer.Option("--json", help="Print the description as JSON, for other programs.")] = False,
    **options: Any,
) -> None:
    """Describe a checkpoint without reading its weights."""
    from moe_probe.cli.tables import info_table
    from moe_probe.facts import numbers
    from moe_probe.families.headers import outline

    name, place = split_name(ckpt)
    told = None if options["revision"] else outline(place, parse_fields(options["config"]))
    model = told or open_model(ckpt, options)
    model.name = name or model.name
    if as_json:
        typer.echo(json.dumps(numbers(model), indent=1))
    else:
        console.print(info_table(model))
