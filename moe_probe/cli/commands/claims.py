"""`moe-probe claims`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moe_probe.cli.common import Ckpt, Out, RequiredTexts, console
from moe_probe.cli.options import FILE_OPTIONS, MODEL_OPTIONS, drawing_of, of_run, open_model, takes
from moe_probe.options import REPORT_OPTIONS
from moe_probe.shown import printable


def epilog() -> str:
    """The claims, and an example."""
    from moe_probe.claims import CLAIMS

    return (
        f"Claims: {', '.join(CLAIMS)}\n\n"
        "Example: `moe-probe claims ckpt/Mixtral-8x7B-v0.1 --texts wiki.jsonl --labels domain -o claims`"
    )


@takes(*REPORT_OPTIONS, *MODEL_OPTIONS, *FILE_OPTIONS)
def command(
    ckpt: Ckpt,
    out: Out,
    texts: RequiredTexts,
    claim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A claim, of those below; may be repeated. Default: all."),
    ] = None,
    **options: Any,
) -> None:
    """Test papers' observations about Mixture-of-Experts models: effect sizes, intervals, q-values and verdicts."""
    from moe_probe import claims

    verdicts = claims.test(open_model(ckpt, options), texts, claim or "all", **of_run(options, REPORT_OPTIONS))
    for name, verdict, why in zip(
        verdicts.claim.values, verdicts.claim_verdict.values, verdicts.claim_why.values, strict=True
    ):
        console.print(printable(f"{name}: {verdict} ({why})"))
    page = claims.page(verdicts, out, **drawing_of(options))
    console.print(f"Wrote {page}, claims.nc, tables (CSV) and figures")
