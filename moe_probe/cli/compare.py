"""`moe-probe compare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
import xarray as xr

from moe_probe import dynamic, static
from moe_probe.cli.common import (
    BatchTokens,
    Column,
    Device,
    Dtype,
    Execution,
    Layers,
    MaxLength,
    NJobs,
    Options,
    Out,
    Progress,
    Tokenizer,
    app,
    console,
    open_model,
    parse_layers,
    parse_options,
    write,
)
from moe_probe.errors import InputError
from moe_probe.options import check_arguments

COMPARISONS = {
    "expert_activation": dynamic.expert_activation,
    "router_saturation": dynamic.router_saturation,
    "routing_drift": dynamic.routing_drift,
    "weight_drift": static.weight_drift,
    "patch_divergence": dynamic.PatchDivergence,
}
UNASKED = [name for name in COMPARISONS if name != "patch_divergence"]  # which needs to know the grid
GIVEN = ("checkpoints", "before", "after", "texts", "options", "layers", "n_jobs")  # by the command's other options


@app.command(
    epilog=f"Comparisons: {', '.join(COMPARISONS)}\n\n"
    "Example: `moe-probe compare ckpt/base ckpt/instruct --label base --label instruct --texts wiki.txt -o out`",
)
def compare(
    sources: Annotated[list[str], typer.Argument(metavar="CKPT...", help="Checkpoints or traces, in their order.")],
    out: Out,
    texts: Annotated[str | None, typer.Option(metavar="FILE", help="Texts, as for dynamic; none for traces.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What each is called; repeated. Default: its name.")
    ] = None,
    analysis: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A comparison, of those below; repeated. Default: all that can be made."),
    ] = None,
    option: Options = None,
    layers: Layers = None,
    column: Column = None,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = 4096,
    execution: Execution = "auto",
    n_jobs: NJobs = 1,
    progress: Progress = True,
    tokenizer: Tokenizer = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Compare checkpoints: how they use their experts, and how routing and weights moved from one to the next."""
    if label is not None and len(set(label)) != len(sources):
        raise InputError(f"There are {len(sources)} checkpoints; give each a label of its own.")
    models = [
        source if dynamic.is_trace(source) else open_model(source, None, tokenizer, device, dtype) for source in sources
    ]
    opened = dynamic.open_sources(models if label is None else dict(zip(label, models, strict=True)))
    options = parse_options(option)
    for name in (*(analysis or ()), *options):
        if name not in COMPARISONS:
            raise InputError(f"There is no comparison {name!r}; there are {', '.join(COMPARISONS)}.")
        check_arguments(name, COMPARISONS[name], options.get(name, ()), besides=GIVEN)
    run_options = {
        "layers": parse_layers(layers),
        "column": column,
        "max_length": max_length,
        "batch_tokens": batch_tokens,
        "execution": execution,
        "n_jobs": n_jobs,
        "progress": progress,
    }

    def results() -> Iterator[xr.Dataset]:
        for name in analysis or UNASKED:
            try:
                yield comparison(name, opened, texts, options.get(name, {}), run_options)
            except InputError as error:
                if analysis is not None:
                    raise
                console.print(f"No {name}: {error}", markup=False, highlight=False)

    write(results(), out, n_jobs)


def comparison(name: str, sources: Mapping[str, Any], texts: str | None, own: Mapping, rest: Mapping) -> xr.Dataset:
    """One comparison of models or traces by label.

    Raises:
        InputError: it cannot be made of these.
    """
    if name in ("expert_activation", "router_saturation"):
        return getattr(dynamic, name)(sources, texts, **own, **rest)
    if name == "patch_divergence":
        return dynamic.patch_divergence_over_steps(sources, texts, dynamic.PatchDivergence(**own), **rest)
    if len(sources) != 2:
        raise InputError(f"{name} compares two checkpoints, not {len(sources)}.")
    before, after = ({label: source} for label, source in sources.items())
    if name == "routing_drift":
        return dynamic.routing_drift(before, after, texts, **own, **rest)
    models = list(sources.values())
    if any(isinstance(model, dynamic.Trace) for model in models):
        raise InputError("weight_drift reads weights, which a trace does not hold.")
    return static.weight_drift(*models, layers=rest["layers"], n_jobs=rest["n_jobs"], **own)
