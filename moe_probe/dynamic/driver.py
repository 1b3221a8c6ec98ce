"""`run`: texts and analyses in, Datasets out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.dynamic.saved_states import Progressed
from moe_probe.errors import InputError
from moe_probe.forward.altered import altered
from moe_probe.forward.running import Pass, choose_execution
from moe_probe.model import MoEModel, Source, load
from moe_probe.parallel import map_items
from moe_probe.routing import BASELINE
from moe_probe.texts.corpus import Corpus, Texts, make_corpus


def run(
    model: Source,
    texts: Texts,
    analyses: Sequence[Analysis],
    *,
    baseline: Source | None = None,
    labels: Sequence[str] | str | None = None,
    column: str | None = None,
    layers: Sequence[int] | int | None = None,
    max_length: int | None = None,
    batch_tokens: int = 4096,
    execution: str = "auto",
    checkpoint_dir: str | Path | None = None,
    n_jobs: int = 1,
    progress: bool = True,
) -> dict[str, xr.Dataset]:
    """One forward pass over a corpus for all analyses.

    Documents are never mixed in attention, padding never reaches an analysis, and the results do not depend on batch
    size, order of documents, execution or `n_jobs`.

    Args:
        model: whatever `moe_probe.load` accepts.
        texts: strings, lists of token ids, a text, JSONL, CSV or Parquet file, or a `datasets` dataset.
        analyses: what to compute; only what they need is computed.
        baseline: a dense model with the same token ids, for analyses that compare with one.
        labels: a label per document (domain, task), or the column that holds it.
        column: the column that holds the text.
        layers: MoE layers; all by default. Layers after the last one are not run.
        max_length: tokens per document at most; the model's maximum by default.
        batch_tokens: places per batch, padding included.
        execution: `resident` (the module in memory), `layerwise` (every layer read from the published files once, for
            the whole corpus), or `auto`: resident where the model fits into free memory.
        checkpoint_dir: where merged states are kept; a pass that was interrupted goes on from there. A layerwise pass
            runs finished layers again without analysing them.
        n_jobs: the corpus is split over so many processes (through joblib: `joblib.parallel_config(backend=...)`
            spreads it over a Ray or Dask cluster).
        progress: show progress.

    Returns:
        A Dataset by the analysis's name.

    Raises:
        InputError: the texts, layers or analyses do not fit the model.
        FamilyError: the model is dense, or its MoE layers cannot be watched.
        WeightError: weights are missing, or values are not finite.

    Examples:
        >>> from moe_probe import dynamic
        >>> results = dynamic.run("ckpt/tiny-mixtral", ["A short text."], [dynamic.GateChoices()])
        >>> list(results)
        ['gate_choices']
    """
    model = load(model)
    corpus = make_corpus(model, texts, labels=labels, column=column, max_length=max_length)
    seen = observe(
        model,
        corpus,
        analyses,
        baseline=baseline,
        layers=layers,
        batch_tokens=batch_tokens,
        execution=execution,
        checkpoint_dir=checkpoint_dir,
        n_jobs=n_jobs,
        progress=progress,
    )
    return {analysis.name: analysis.result(model, corpus) for analysis in seen}


def observe(
    model: MoEModel,
    corpus: Corpus,
    analyses: Sequence[Analysis],
    *,
    baseline: Source | None = None,
    layers: Sequence[int] | int | None = None,
    batch_tokens: int = 4096,
    execution: str = "auto",
    checkpoint_dir: str | Path | None = None,
    n_jobs: int = 1,
    progress: bool = True,
) -> list[Analysis]:
    """Fresh analyses that have seen the corpus; arguments and errors are those of `run`."""
    dense = None if baseline is None else load(baseline)
    chosen = model.select_layers(layers)
    analyses = [analysis.fresh() for analysis in analyses]
    _check(analyses, dense)
    for analysis in analyses:
        analysis.prepare(model, corpus, chosen)
    work = partial(
        _run_passes,
        layers=chosen,
        baseline=dense,
        batch_tokens=batch_tokens,
        layerwise=choose_execution(model, execution),
        show=progress and n_jobs == 1,
        corpus=corpus,
        n_jobs=n_jobs,
    )
    seen = work(model=model, analyses=analyses, checkpoint_dir=checkpoint_dir)
    for at, analysis in enumerate(analyses):
        if analysis.changes:
            folder = None if checkpoint_dir is None else Path(checkpoint_dir) / f"{analysis.name}-changed"
            with altered(model, analysis.changes) as other:
                (seen[at].changed,) = work(model=other, analyses=[analysis], checkpoint_dir=folder)
    return seen


def _run_passes(*, corpus: Corpus, n_jobs: int, **options: object) -> list[Analysis]:
    """The analyses when they have seen the corpus, in one process or several."""
    work = partial(_run_part, **options)
    parts = corpus.split(n_jobs) if n_jobs > 1 else [corpus]
    numbered = list(enumerate(parts))
    first, *others = map_items(work, numbered, n_jobs, "parts") if len(parts) > 1 else [work(numbered[0])]
    for other in others:
        for analysis, more in zip(first, other, strict=True):
            analysis.merge(more)
    return first


def _check(analyses: Sequence[Analysis], baseline: MoEModel | None) -> None:
    names = [analysis.name for analysis in analyses]
    if not names:
        raise InputError("No analysis is given; give at least one, such as dynamic.GateChoices().")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice; run it once for each of its settings.")
    wanting = next((analysis.name for analysis in analyses if BASELINE in analysis.needs), None)
    if wanting is not None and baseline is None:
        raise InputError(f"{wanting} is to compare with a dense model; give it as baseline=.")


def _run_part(
    part: tuple[int, Corpus], *, analyses: Sequence[Analysis], checkpoint_dir: str | Path | None, **options: object
) -> list[Analysis]:
    number, corpus = part
    fresh = [analysis.fresh() for analysis in analyses]
    one = Pass(corpus=corpus, analyses=fresh, **options)
    if checkpoint_dir is not None:
        one.progressed = Progressed(Path(checkpoint_dir) / f"part-{number}", identity(one))
    one.run()
    return fresh


def identity(one: Pass) -> dict[str, object]:
    """What a pass is of: a saved state goes on only with the very same."""
    return {
        "model": one.model.fingerprint,
        "baseline": one.baseline and one.baseline.fingerprint,
        "documents": [(document.number, document.ids, document.label) for document in one.corpus.documents],
        "analyses": [(analysis.name, analysis.parameters()) for analysis in one.analyses],
        "layers": one.layers,
        "batch_tokens": one.batch_tokens,
        "layerwise": one.layerwise,
    }
