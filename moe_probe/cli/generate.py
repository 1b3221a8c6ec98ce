"""`moe-probe generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from moe_probe import dynamic
from moe_probe.cli.common import (
    Ckpt,
    Device,
    Dtype,
    Layers,
    Options,
    Out,
    Revision,
    Tokenizer,
    app,
    make_analyses,
    open_model,
    parse_layers,
    parse_options,
    write,
)


@app.command(
    epilog="Example: `moe-probe generate ckpt/Mixtral-8x7B-v0.1 --texts prompts.txt --analysis gate_choices -o out`",
)
def generate(
    ckpt: Ckpt,
    out: Out,
    texts: Annotated[str, typer.Option(metavar="FILE", help="What is to be continued, as for dynamic.")],
    analysis: Annotated[list[str], typer.Option(metavar="NAME", help="An analysis, as for dynamic; may be repeated.")],
    option: Options = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to write per text.")] = 32,
    layers: Layers = None,
    revision: Revision = None,
    tokenizer: Tokenizer = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Look on while the model writes, greedily; results tell prompt and generated tokens apart."""
    results = dynamic.generate(
        open_model(ckpt, revision, tokenizer, device, dtype),
        texts,
        make_analyses(analysis, parse_options(option)),
        max_new_tokens=max_new_tokens,
        layers=parse_layers(layers),
    )
    write(results.values(), out)
