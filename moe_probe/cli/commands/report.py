"""`moe-probe report`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moe_probe.cli.common import Ckpt, Out, Texts, console
from moe_probe.cli.options import FILE_OPTIONS, MODEL_OPTIONS, drawing_of, of_run, open_model, takes
from moe_probe.options import REPORT_OPTIONS


def epilog() -> str:
    """An example."""
    return "Example: `moe-probe report ckpt/my-tuned --base ckpt/Mixtral-8x7B-v0.1 --texts wiki.txt -o report`"


@takes(*REPORT_OPTIONS, *MODEL_OPTIONS, *FILE_OPTIONS)
def command(
    ckpt: Ckpt,
    out: Out,
    texts: Texts = None,
    base: Annotated[
        str | None, typer.Option(metavar="CKPT", help="The checkpoint that this one was made from.")
    ] = None,
    **options: Any,
) -> None:
    """Write one page about a checkpoint: structure, load, specialization of experts, and changes since its base."""
    from moe_probe.report import report

    how = {name: value for name, value in options.items() if name not in ("revision", "under")}
    before = None if base is None else open_model(base, how)
    page = report(open_model(ckpt, options), texts, base=before, **of_run(options, REPORT_OPTIONS))
    console.print(f"Wrote {page.save(out, **drawing_of(options))}, report.json, tables (CSV) and figures")
