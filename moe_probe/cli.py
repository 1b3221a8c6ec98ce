"""`moe-probe`: the analyses from the command line."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import xarray as xr
from rich.console import Console

from moe_probe import dynamic, plotting, static
from moe_probe.convert import convert
from moe_probe.errors import InputError, MoEProbeError
from moe_probe.model import load
from moe_probe.results import load_result, save
from moe_probe.tables import info_table, summary

app = typer.Typer(
    help="Look into pretrained Mixture-of-Experts language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
console = Console()
LEVELS = {
    "similarity": ("matrix", "neuron_mean", "neuron_aligned"),
    "gate_similarity": (None,),
    "gate_regression": ("neuron_mean", "matrix", "neuron_aligned"),
    "pca": ("matrix", "neuron"),
    "router_spectrum": (None,),
}
# what runs when nothing is asked for: everything that takes minutes, not hours
DEFAULTS = (
    ("similarity", "matrix"),
    ("similarity", "neuron_mean"),
    ("gate_similarity", None),
    ("gate_regression", "neuron_mean"),
    ("pca", "matrix"),
    ("router_spectrum", None),
)
# what `dynamic` computes when nothing is asked for, of a trace and of a model: that for which both have what it takes
TRACE_ANALYSES = (
    "expert_load",
    "router_scores",
    "coactivation",
    "token_specialization",
    "expert_capacity",
    "subtoken_divergence",
    "ffn_experts_per_token",
    "complexity",
    "task_load",
)
CORPUS_ANALYSES = ("output_similarity", "norm_score_ranks", *TRACE_ANALYSES)
COMPARISONS = ("expert_activation", "router_saturation", "routing_drift", "weight_drift")
WITH_BASELINE = ("output_similarity", "intermediate_states")
Ckpt = Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint folder, or a hub id.")]
Options = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME.KEY=VALUE", help="An argument of an analysis, in JSON; may be repeated."),
]
Out = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where results and figures go.")]


@app.command(epilog="Example: `moe-probe info ckpt/Mixtral-8x7B-v0.1`")
def info(ckpt: Ckpt) -> None:
    """Say what a checkpoint is made of, without reading its weights."""
    console.print(info_table(load(ckpt)))


@app.command(
    "static",
    epilog="Example: `moe-probe static ckpt/Mixtral-8x7B-v0.1 --baseline ckpt/Mistral-7B-v0.1 --jobs 4 -o out`",
)
def static_command(
    ckpt: Ckpt,
    output: Out,
    analysis: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(LEVELS)}; may be repeated. Default: all.")
    ] = None,
    level: Annotated[str | None, typer.Option(help="matrix, neuron_mean, neuron_aligned or neuron.")] = None,
    metric: Annotated[str, typer.Option(help="Of similarity: cosine, cka or l2.")] = "cosine",
    layers: Annotated[str | None, typer.Option(help="MoE layers, such as 0,5,10-15. Default: all.")] = None,
    baseline: Annotated[str | None, typer.Option(metavar="CKPT", help="A dense model to compare with.")] = None,
    shared: Annotated[bool, typer.Option(help="Include the shared block where the level allows it.")] = False,
    jobs: Annotated[int, typer.Option(help="Layers computed at a time.")] = 1,
) -> None:
    """Analyse the weights: netCDF results and PDF figures in DIR, a short table on screen."""
    model = load(ckpt)
    dense = None if baseline is None else load(baseline)
    chosen = model.select_layers(None if layers is None else parse_layers(layers))

    def results() -> Iterator[xr.Dataset]:
        for name, at_level in choose(analysis, level):
            arguments: dict = {"layers": chosen}
            if at_level is not None:
                arguments |= {"level": at_level, "n_jobs": jobs}
            if name in ("similarity", "pca"):
                arguments["baseline"] = dense
            if name == "similarity":
                arguments["metric"] = metric
                arguments["shared"] = shared and at_level == "neuron_mean"
            yield getattr(static, name)(model, **arguments)

    write(results(), output)


@app.command(epilog="Example: `moe-probe figures out`")
def figures(results: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with results (.nc).")]) -> None:
    """Draw the figures of saved results again."""
    found = sorted(results.glob("*.nc"))
    if not found:
        raise InputError(f"{results} holds no results (*.nc); make some with `moe-probe static` or `dynamic`.")
    drawable = (dataset for dataset in map(load_result, found) if dataset.attrs["analysis"] in plotting.names())
    counts = [sum(1 for _ in draw(dataset, results)) for dataset in drawable]
    console.print(f"Drew {sum(counts)} figures of {len(counts)} results in {results}")


@app.command(
    "dynamic",
    epilog=f"Analyses: {', '.join(name + '*' * (name in CORPUS_ANALYSES) for name in dynamic.analyses())}\n\n"
    "Examples: `moe-probe dynamic ckpt/Mixtral-8x7B-v0.1 --texts wiki.txt -o out`, then without the model "
    "`moe-probe dynamic out/trace --analysis expert_load -o out`",
)
def dynamic_command(
    source: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint folder, a hub id, or a routing trace.")],
    output: Out,
    texts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Texts: .txt (one a line), .jsonl, .csv or .parquet.")
    ] = None,
    analysis: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An analysis, of those below; may be repeated. Default: those with a star."),
    ] = None,
    metric: Annotated[str, typer.Option(help="Of output_similarity: cosine or angular.")] = "cosine",
    per_token: Annotated[bool, typer.Option("--per-token", help="output_similarity token by token.")] = False,
    baseline: Annotated[str | None, typer.Option(metavar="CKPT", help="A dense model to compare with.")] = None,
    shared: Annotated[bool, typer.Option("--shared", help="output_similarity with the shared block.")] = False,
    layers: Annotated[str | None, typer.Option(help="MoE layers, such as 0,5,10-15. Default: all.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of document labels.")] = None,
    column: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of the text.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens per document at most.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Places per batch.")] = 4096,
    layerwise: Annotated[bool, typer.Option("--layerwise", help="Read one layer at a time, for large models.")] = False,
    checkpoint_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on from here if interrupted.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes that share the corpus.")] = 1,
    option: Options = None,
) -> None:
    """Run the model over texts, once for all analyses: netCDF results and PDF figures in DIR."""
    options = parse_options(option)
    options.setdefault("output_similarity", {}).update(metric=metric, per_token=per_token, shared=shared)
    options.setdefault("routing_trace", {}).setdefault("path", output / "trace")
    for name in WITH_BASELINE:
        options.setdefault(name, {})["baseline"] = baseline is not None
    if dynamic.is_trace(source):
        trace = dynamic.read_trace(source)
        chosen = make_analyses(analysis, options) or fitting(
            TRACE_ANALYSES, options, trace, trace.corpus, trace.moe_layers
        )
        write(dynamic.from_trace(trace, chosen).values(), output)
        return
    if texts is None:
        raise InputError(f"{source} is no routing trace, so it needs texts to run on: --texts FILE.")
    model = load(source)
    of_layers = model.select_layers(None if layers is None else parse_layers(layers))
    corpus = dynamic.make_corpus(model, texts, labels=labels, column=column, max_length=max_length)
    results = dynamic.run(
        model,
        corpus,
        make_analyses(analysis, options) or fitting(CORPUS_ANALYSES, options, model, corpus, of_layers),
        baseline=baseline,
        layers=of_layers,
        batch_tokens=batch_tokens,
        execution="layerwise" if layerwise else "auto",
        checkpoint_dir=checkpoint_dir,
        n_jobs=jobs,
    )
    write(results.values(), output)


@app.command(
    epilog=f"Comparisons: {', '.join(COMPARISONS)}, patch_divergence\n\n"
    "Example: `moe-probe compare ckpt/base ckpt/instruct --label base --label instruct --texts wiki.txt -o out`",
)
def compare(
    sources: Annotated[list[str], typer.Argument(metavar="CKPT...", help="Checkpoints or traces, in their order.")],
    output: Out,
    texts: Annotated[str | None, typer.Option(metavar="FILE", help="Texts, as for dynamic; none for traces.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="What each is called; repeated. Default: its name.")] = None,
    analysis: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A comparison, of those below; repeated. Default: all that can be made."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="MoE layers, such as 0,5,10-15. Default: all.")] = None,
    column: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of the text.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens per document at most.")] = None,
    layerwise: Annotated[bool, typer.Option("--layerwise", help="Read one layer at a time, for large models.")] = False,
    option: Options = None,
) -> None:
    """Compare checkpoints: how they use their experts, and how routing and weights moved from one to the next."""
    if label is not None and len(set(label)) != len(sources):
        raise InputError(f"There are {len(sources)} checkpoints; give each a label of its own.")
    opened = dynamic.open_sources(sources if label is None else dict(zip(label, sources, strict=True)))
    options, run_options = parse_options(option), {"column": column, "max_length": max_length}
    run_options["execution"] = "layerwise" if layerwise else "auto"
    run_options["layers"] = None if layers is None else parse_layers(layers)

    def results() -> Iterator[xr.Dataset]:
        for name in analysis or COMPARISONS:
            try:
                yield comparison(name, opened, texts, options.get(name, {}), run_options)
            except InputError as error:
                if analysis is not None:
                    raise
                console.print(f"No {name}: {error}", markup=False, highlight=False)

    write(results(), output)


def comparison(name: str, sources: Mapping[str, Any], texts: str | None, own: Mapping, rest: Mapping) -> xr.Dataset:
    """One comparison of models or traces by label.

    Raises:
        InputError: there is no such comparison, or it cannot be made.
    """
    if name in ("expert_activation", "router_saturation"):
        return getattr(dynamic, name)(sources, texts, **own, **rest)
    if name == "patch_divergence":
        return dynamic.patch_divergence_over_steps(sources, texts, dynamic.PatchDivergence(**own), **rest)
    if name not in COMPARISONS:
        raise InputError(f"There is no comparison {name!r}; there are {', '.join(COMPARISONS)} and patch_divergence.")
    if len(sources) != 2:
        raise InputError(f"{name} compares two checkpoints, not {len(sources)}.")
    before, after = ({label: source} for label, source in sources.items())
    if name == "routing_drift":
        return dynamic.routing_drift(before, after, texts, **own, **rest)
    models = list(sources.values())
    if any(isinstance(model, dynamic.Trace) for model in models):
        raise InputError("weight_drift reads weights, which a trace does not hold.")
    return static.weight_drift(*models, layers=rest["layers"], **own)


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


def make_analyses(names: Sequence[str] | None, options: Mapping[str, dict]) -> list[dynamic.Analysis]:
    """Analyses by name, with the options that each takes.

    Raises:
        InputError: there is no such analysis, or it takes no such option.
    """
    known = dynamic.analyses()
    unknown = [name for name in (*(names or ()), *options) if name not in known]
    if unknown:
        raise InputError(f"There is no dynamic analysis {unknown[0]!r}; there are {', '.join(known)}.")
    for name, given in options.items():
        takes = list(inspect.signature(known[name]).parameters)
        wrong = [key for key in given if key not in takes]
        if wrong:
            raise InputError(f"{name} takes no {wrong[0]!r}; it takes {', '.join(takes) or 'no options'}.")
    return [known[name](**options.get(name, {})) for name in names or ()]


def fitting(
    names: Sequence[str], options: Mapping[str, dict], model: Any, corpus: Any, layers: Sequence[int]
) -> list[dynamic.Analysis]:
    """Those of the analyses that the model and its corpus have what it takes for."""
    found = []
    for analysis in make_analyses(names, options):
        with suppress(InputError):
            analysis.prepare(model, corpus, list(layers))
            found.append(analysis)
    return found


def write(results: Iterable[xr.Dataset], output: Path) -> None:
    """Save results and draw their figures; print short tables, and what was written."""
    count = figures = 0
    for dataset in results:
        save(dataset, output / f"{result_stem(dataset)}.nc")
        count += 1
        if dataset.attrs["analysis"] in plotting.names():
            figures += sum(1 for _ in draw(dataset, output))
        if (table := summary(dataset)) is not None:
            console.print(table)
    console.print(f"Wrote {count} results (.nc) and {figures} figures (.pdf) to {output}")


@app.command("convert", epilog="Example: `moe-probe convert ckpt/grok-1 ckpt/grok-1-int8 --keep-int8`")
def convert_command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint folder in any format, or a hub id.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A folder that does not exist yet.")],
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16. Default: as stored.")] = None,
    keep_int8: Annotated[bool, typer.Option(help="Leave Grok-1's int8 matrices as they are.")] = False,
) -> None:
    """Write a checkpoint as a safetensors folder that opens fast, shard by shard."""
    if dtype not in (None, "float32", "float16", "bfloat16"):
        raise InputError(f"There is no dtype {dtype!r}; there are float32, float16 and bfloat16.")
    folder = convert(source, destination, dtype=dtype and getattr(torch, dtype), keep_int8=keep_int8)
    console.print(f"Wrote {folder}")


@app.command()
def demo(output: Out = Path("out/demo")) -> None:
    """Run static and dynamic analyses of the embedded tiny checkpoints, and compare them; a folder of results each."""
    root = Path(str(files("moe_probe"))).parent / "ckpt"
    texts, folders = str(root / "texts.jsonl"), sorted(root.glob("tiny-*"))
    mixtures = [folder for folder in folders if load(folder).moe_layers]
    for folder in mixtures:
        model = load(folder)
        console.print(info_table(model))
        baseline = str(root / "tiny-mistral") if model.family == "mixtral" else None
        static_command(str(folder), output / folder.name, baseline=baseline)
        dynamic_command(str(folder), output / folder.name, texts, labels="domain", baseline=baseline)
    residual = ["gating_residual"]
    dynamic_command(str(root / "tiny-moe-plus-plus"), output / "tiny-moe-plus-plus", texts, analysis=residual)
    compare([str(folder) for folder in mixtures], output / "compared", texts, analysis=["expert_activation"])


def choose(analysis: list[str] | None, level: str | None) -> list[tuple[str, str | None]]:
    """The analyses to run, each with its level.

    Raises:
        InputError: an analysis is not known, or has no such level.
    """
    unknown = [name for name in analysis or () if name not in LEVELS]
    if unknown:
        raise InputError(f"There is no static analysis {unknown[0]!r}; there are {', '.join(LEVELS)}.")
    wanted = [item for item in DEFAULTS if analysis is None or item[0] in analysis]
    if level is None:
        return wanted
    names = analysis or [name for name, levels in LEVELS.items() if level in levels]
    if not names or any(level not in LEVELS[name] for name in names):
        levels = {name: [known for known in LEVELS[name] if known] for name in names or LEVELS}
        known = "; ".join(f"{name} has {', '.join(has) or 'no levels'}" for name, has in levels.items())
        raise InputError(f"There is no level {level!r}: {known}.")
    return [(name, level) for name in names]


def parse_layers(text: str) -> list[int]:
    """`"0,5,10-12"` as [0, 5, 10, 11, 12].

    Raises:
        InputError: the text is no such list.
    """
    try:
        bounds = [[int(end) for end in part.split("-", 1)] for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} is no list of layers; write it like 0,5,10-12.") from None
    return [layer for first, *last in bounds for layer in range(first, (last or [first])[0] + 1)]


def result_stem(dataset: xr.Dataset) -> str:
    """File name of a result: analysis, level, and metric where it is not the usual one."""
    parts = [dataset.attrs["analysis"], dataset.attrs.get("level")]
    if dataset.attrs.get("metric", "cosine") != "cosine":
        parts.append(dataset.attrs["metric"])
    return "_".join(part for part in parts if part)


def draw(dataset: xr.Dataset, folder: Path) -> Iterator[Path]:
    """Write every figure of a result as PDF; each appears under its name when it is complete."""
    for stem, figure in plotting.figures(dataset):
        path = folder / "figures" / f"{stem}.pdf"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            figure.savefig(partial, format="pdf")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        yield path


def main() -> None:
    """Entry point: one sentence and exit code 2 for bad input, 1 for a full or closed disk, 130 after Ctrl-C."""
    try:
        app()
    except MoEProbeError as error:
        Console(stderr=True).print(f"moe-probe: {error}", style="red", highlight=False, markup=False)
        sys.exit(2)
    except OSError as error:
        Console(stderr=True).print(f"moe-probe: {error}", style="red", highlight=False, markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
