"""What the commands share: the app, options that several take, and how results are written.

Options bear the names and defaults of the Python arguments that they stand for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
import xarray as xr
from rich.console import Console

from moe_probe import dynamic, plotting
from moe_probe.cli.tables import summary
from moe_probe.errors import InputError
from moe_probe.figures import draw, result_stem
from moe_probe.model import MoEModel, load
from moe_probe.options import check_arguments
from moe_probe.results import save

app = typer.Typer(
    help="Look into pretrained Mixture-of-Experts language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
console = Console()
DTYPES = ("float32", "float16", "bfloat16")

Ckpt = Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint folder, or a hub id.")]
CkptOrTrace = Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint folder, a hub id, or a routing trace.")]
Options = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME.KEY=VALUE", help="An argument of an analysis, in JSON; may be repeated."),
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where results and figures go.")]
Layers = Annotated[str | None, typer.Option(metavar="LAYERS", help="MoE layers, such as 0,5,10-15. Default: all.")]
Texts = Annotated[str | None, typer.Option(metavar="FILE", help="Texts: .txt (one a line), .jsonl, .csv or .parquet.")]
Labels = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of document labels.")]
Column = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of the text.")]
MaxLength = Annotated[int | None, typer.Option(metavar="N", help="Tokens per document at most.")]
BatchTokens = Annotated[int, typer.Option(metavar="N", help="Places per batch.")]
Baseline = Annotated[str | None, typer.Option(metavar="CKPT", help="A dense model to compare with.")]
Execution = Annotated[
    str, typer.Option(metavar="HOW", help="resident, layerwise (one layer at a time, for large models), or auto.")
]
CheckpointDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Go on from here if interrupted.")]
NJobs = Annotated[int, typer.Option(metavar="N", help="Layers, parts of the texts, or figures at a time.")]
Progress = Annotated[bool, typer.Option(help="Show progress.")]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a hub id.")]
Tokenizer = Annotated[str | None, typer.Option(metavar="PATH", help="A tokenizer in place of the checkpoint's own.")]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="Where the model runs, such as cuda. Default: cpu.")]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="float32, float16 or bfloat16. Default: float32 on the CPU, else as stored."),
]


def open_model(
    source: str,
    revision: str | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> MoEModel:
    """`load` with options as they are written on the command line."""
    return load(source, revision=revision, tokenizer=tokenizer, device=device, dtype=parse_dtype(dtype))


def parse_dtype(name: str | None) -> torch.dtype | None:
    """`"bfloat16"` as torch's; None stays.

    Raises:
        InputError: there is no such dtype to compute in.
    """
    if name is not None and name not in DTYPES:
        raise InputError(f"There is no dtype {name!r}; there are {', '.join(DTYPES)}.")
    return name and getattr(torch, name)


def parse_layers(text: str | None) -> list[int] | None:
    """`"0,5,10-12"` as [0, 5, 10, 11, 12]; None stays.

    Raises:
        InputError: the text is no such list.
    """
    if text is None:
        return None
    try:
        bounds = [[int(end) for end in part.split("-", 1)] for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} is no list of layers; write it like 0,5,10-12.") from None
    return [layer for first, *last in bounds for layer in range(first, (last or [first])[0] + 1)]


def parse_options(texts: Sequence[str] | None) -> dict[str, dict]:
    """`["expert_capacity.factors=[1, 2]"]` as {"expert_capacity": {"factors": [1, 2]}}.

    Raises:
        InputError: a text is not of that form.
    """
    found: dict[str, dict] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        analysis, dot, key = name.partition(".")
        if not (equals and dot and key):
            raise InputError(f"{text!r} is no option; write it like expert_capacity.factors=[1,1.25].")
        try:
            found.setdefault(analysis, {})[key] = json.loads(value)
        except ValueError:
            found.setdefault(analysis, {})[key] = value
    return found


def make_analyses(names: Sequence[str] | None, options: Mapping[str, Mapping]) -> list[dynamic.Analysis]:
    """Dynamic analyses by name, with the options that each takes.

    Raises:
        InputError: there is no such analysis, or it takes no such option.
    """
    known = dynamic.analyses()
    unknown = [name for name in (*(names or ()), *options) if name not in known]
    if unknown:
        raise InputError(f"There is no dynamic analysis {unknown[0]!r}; there are {', '.join(known)}.")
    for name, given in options.items():
        check_arguments(name, known[name], given)
    return [known[name](**options.get(name, {})) for name in names or ()]


def write(results: Iterable[xr.Dataset], out: Path, n_jobs: int = 1) -> None:
    """Save results and draw their figures; print short tables, and what was written."""
    count = figures = 0
    for dataset in results:
        save(dataset, out / f"{result_stem(dataset)}.nc")
        count += 1
        if dataset.attrs["analysis"] in plotting.names():
            figures += len(draw(dataset, out, n_jobs))
        if (table := summary(dataset)) is not None:
            console.print(table)
    console.print(f"Wrote {count} results (.nc) and {figures} figures (.pdf) to {out}")
