"""`moe-probe dynamic`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from moe_probe import dynamic
from moe_probe.cli.common import (
    Baseline,
    BatchTokens,
    CheckpointDir,
    CkptOrTrace,
    Column,
    Device,
    Dtype,
    Execution,
    Labels,
    Layers,
    MaxLength,
    NJobs,
    Options,
    Out,
    Progress,
    Revision,
    Texts,
    Tokenizer,
    app,
    make_analyses,
    open_model,
    parse_layers,
    parse_options,
    write,
)
from moe_probe.errors import InputError

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
WITH_BASELINE = ("output_similarity", "intermediate_states")


@app.command(
    "dynamic",
    epilog=f"Analyses: {', '.join(name + '*' * (name in CORPUS_ANALYSES) for name in dynamic.analyses())}\n\n"
    "Examples: `moe-probe dynamic ckpt/Mixtral-8x7B-v0.1 --texts wiki.txt -o out`, then without the model "
    "`moe-probe dynamic out/trace --analysis expert_load -o out`",
)
def dynamic_command(
    source: CkptOrTrace,
    out: Out,
    texts: Texts = None,
    analysis: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An analysis, of those below; may be repeated. Default: those with a star."),
    ] = None,
    metric: Annotated[str, typer.Option(metavar="NAME", help="Of output_similarity: cosine or angular.")] = "cosine",
    per_token: Annotated[bool, typer.Option("--per-token", help="output_similarity token by token.")] = False,
    baseline: Baseline = None,
    shared: Annotated[bool, typer.Option("--shared", help="output_similarity with the shared block.")] = False,
    option: Options = None,
    layers: Layers = None,
    labels: Labels = None,
    column: Column = None,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = 4096,
    execution: Execution = "auto",
    checkpoint_dir: CheckpointDir = None,
    n_jobs: NJobs = 1,
    progress: Progress = True,
    revision: Revision = None,
    tokenizer: Tokenizer = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Run the model over texts, once for all analyses: netCDF results and PDF figures in DIR."""
    options = parse_options(option)
    of_outputs = {"metric": metric, "per_token": per_token, "shared": shared}
    options["output_similarity"] = of_outputs | options.get("output_similarity", {})
    options.setdefault("routing_trace", {}).setdefault("path", out / "trace")
    for name in WITH_BASELINE:
        options.setdefault(name, {})["baseline"] = baseline is not None
    if dynamic.is_trace(source):
        trace = dynamic.read_trace(source)
        chosen = make_analyses(analysis, options) or fitting(
            TRACE_ANALYSES, options, trace, trace.corpus, trace.moe_layers
        )
        write(dynamic.from_trace(trace, chosen).values(), out, n_jobs)
        return
    if texts is None:
        raise InputError(f"{source} is no routing trace, so it needs texts to run on: --texts FILE.")
    model = open_model(source, revision, tokenizer, device, dtype)
    of_layers = model.select_layers(parse_layers(layers))
    corpus = dynamic.make_corpus(model, texts, labels=labels, column=column, max_length=max_length)
    results = dynamic.run(
        model,
        corpus,
        make_analyses(analysis, options) or fitting(CORPUS_ANALYSES, options, model, corpus, of_layers),
        baseline=baseline and open_model(baseline, device=device, dtype=dtype),
        layers=of_layers,
        batch_tokens=batch_tokens,
        execution=execution,
        checkpoint_dir=checkpoint_dir,
        n_jobs=n_jobs,
        progress=progress,
    )
    write(results.values(), out, n_jobs)


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
