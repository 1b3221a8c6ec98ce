"""`moe-probe generate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moe_probe.cli.common import Ckpt, Options, Out, Table, write
from moe_probe.cli.options import (
    FIGURE_OPTIONS,
    MODEL_OPTIONS,
    check_names,
    drawing_of,
    of_run,
    open_model,
    parse_options,
    takes,
)
from moe_probe.options import WRITING_OPTIONS


def epilog() -> str:
    """An example."""
    return "Example: `moe-probe generate ckpt/Mixtral-8x7B-v0.1 --texts prompts.txt --analysis gate_choices -o out`"


@takes(*WRITING_OPTIONS, *MODEL_OPTIONS, *FIGURE_OPTIONS)
def command(
    ckpt: Ckpt,
    out: Out,
    texts: Annotated[
        str, typer.Option(metavar="FILE", help="Prompts: .txt (one per line), .jsonl, .json, .csv, .tsv or .parquet.")
    ],
    analysis: Annotated[list[str], typer.Option(metavar="NAME", help="A dynamic analysis; may be repeated.")],
    option: Options = None,
    table: Table = None,
    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", help="Most generated tokens per prompt.")] = None,
    **options: Any,
) -> None:
    """Analyze routing during greedy generation, with prompt and generated tokens labeled."""
    from moe_probe import dynamic
    from moe_probe.cli.commands.dynamic import with_defaults
    from moe_probe.dynamic.asking import make_analyses

    given = parse_options(option)
    check_names(given, dynamic.names(), "analysis")
    analyses = make_analyses(analysis, with_defaults(given, {"baseline": None}, out))
    asked = of_run(options, WRITING_OPTIONS)
    results = dynamic.generate(open_model(ckpt, options), texts, analyses, max_new_tokens=max_new_tokens, **asked)
    write(results.values(), out, drawing_of(options), table=table)
