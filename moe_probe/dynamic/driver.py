"""The one driver: it passes a source's batches to analyses, and returns their results as Datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from joblib import effective_n_jobs

from moe_probe.dynamic.analysis import Analysis
from moe_probe.dynamic.saved_states import SavedStates
from moe_probe.errors import InputError, NotFinite, NotFitting
from moe_probe.files import owned_folder
from moe_probe.parallel import map_items
from moe_probe.progress import reporting
from moe_probe.results import Results
from moe_probe.routing import CHUNKED, PER_EXPERT, LayerBatch, LogitBatch, Need, Source
from moe_probe.texts.corpus import Tokens

CHUNK_BYTES = 1 << 27  # of all experts' outputs held at once
MASKABLE = ("router_logits", "selection")  # where -inf says that an expert is masked


def results(source: Source, analyses: Sequence[Analysis], options: Mapping[str, Any]) -> dict[str, xr.Dataset]:
    """Runs fresh copies of the analyses over a source, and returns their results."""
    with holding(analyses, options):
        seen = observe(source, analyses, options)
        return Results({analysis.name: analysis.result(source) for analysis in seen})


def observe(source: Source, analyses: Sequence[Analysis], options: Mapping[str, Any]) -> list[Analysis]:
    """Runs fresh copies of the analyses over a source, and returns these copies.

    Args:
        source: where batches come from.
        analyses: at least one; they stay as they are.
        options: `checkpoint_dir`, `n_jobs` and `progress` (see `moe_probe.options.ObserveOptions`).

    Raises:
        InputError: there is no analysis, one is given twice, or one does not fit the source.
        NotFinite: a value is NaN or infinite.
    """
    fresh = [analysis.fresh() for analysis in analyses]
    check(source, fresh)
    with holding(fresh, options):
        return _observe_parts(source, fresh, options)


@contextmanager
def holding(analyses: Sequence[Analysis], options: Mapping[str, Any]) -> Iterator[None]:
    """A context that locks the folders to which the analyses and the saved progress are written."""
    saved = options.get("checkpoint_dir")
    folders = [*([] if saved is None else [saved]), *(folder for each in analyses for folder in each.folders())]
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(owned_folder(folder))
        yield


def _observe_parts(source: Source, fresh: Sequence[Analysis], options: Mapping[str, Any]) -> list[Analysis]:
    n_jobs = effective_n_jobs(options.get("n_jobs", 1))
    parts = source.split(n_jobs) if n_jobs > 1 else [source]
    progress = options.get("progress", True)
    work = partial(
        _observe_part,
        analyses=fresh,
        checkpoint_dir=options.get("checkpoint_dir"),
        progress=progress and len(parts) == 1,
    )
    numbered = list(enumerate(parts))
    done = [work(numbered[0])] if len(parts) == 1 else map_items(work, numbered, n_jobs, "parts", progress)
    if len(parts) > 1:
        source.absorb([part for part, _ in done])
    (_, first), *others = done
    for _, other in others:
        for analysis, further in zip(first, other, strict=True):
            analysis.merge(further)
    return first


def check(source: Source, analyses: Sequence[Analysis]) -> None:
    """Raises an error, before any work, if an analysis cannot run on the source.

    Raises:
        InputError: there is no analysis, one is given twice, or one does not fit the source.
    """
    if not analyses:
        raise NotFitting("No analysis is given; pass at least one, such as dynamic.GateChoices().")
    names = [analysis.name for analysis in analyses]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise NotFitting(f"{twice} is given twice; run it once for each of its settings.")
    for analysis in analyses:
        lacking = analysis.needed() - source.holds
        if lacking == {Need.BASELINE}:
            raise NotFitting(f"{analysis.name} needs a dense model to compare with; pass baseline=.")
        if lacking:
            raise NotFitting(
                f"{analysis.name} needs {', '.join(sorted(lacking))}, which {source.kind} does not hold; {source.name} "
                f"holds {', '.join(sorted(source.holds))} here. Use dynamic.run with the model and texts."
            )
        analysis.check(source)


def applicable(source: Source, analyses: Sequence[Analysis]) -> list[Analysis]:
    """The analyses that can run on the source and its corpus."""
    fitting = []
    for analysis in analyses:
        with suppress(InputError):
            check(source, [analysis])
            fitting.append(analysis)
    return fitting


def _observe_part(
    part: tuple[int, Source], *, analyses: Sequence[Analysis], checkpoint_dir: str | Path | None, progress: bool
) -> tuple[Source, list[Analysis]]:
    number, source = part
    fresh = [analysis.fresh() for analysis in analyses]
    needs = frozenset[Need]().union(*(analysis.needed() for analysis in fresh))
    saved = None
    if checkpoint_dir is not None:
        saved = SavedStates(Path(checkpoint_dir) / f"part-{number}", identity(source, fresh))
    done = saved.load(source, fresh) if saved else 0
    with (
        torch.no_grad(),
        reporting("layers x batches", source.num_batches, progress) as advance,
        closing(source.steps(needs, done)) as steps,
    ):
        for step in steps:
            for batch in step:
                hand_on(batch, fresh, needs)
                advance()
            done += 1
            if saved:
                saved.save_if_due(source, fresh, done)
    if saved:
        saved.save(source, fresh, done)
    return source, fresh


def identity(source: Source, analyses: Sequence[Analysis]) -> dict[str, Any]:
    """A description of a pass; a saved state resumes only a pass with exactly the same one."""
    return {
        "source": source.identity(),
        "documents": [(document.number, document.ids, document.label) for document in source.corpus.documents],
        "analyses": [(analysis.name, analysis.parameters()) for analysis in analyses],
    }


def hand_on(batch: LayerBatch | LogitBatch, analyses: Sequence[Analysis], needs: frozenset[Need]) -> None:
    """Passes a batch to the analyses: whole, or in chunks to those that need the outputs of all experts."""
    if isinstance(batch, LogitBatch):
        require_finite("logits", batch.logits, batch.tokens)
        for analysis in analyses:
            if Need.LOGITS in analysis.needed():
                analysis.update_logits(batch)
        return
    check_values(batch)
    whole = [analysis for analysis in analyses if not analysis.needed() & CHUNKED]
    chunked = [analysis for analysis in analyses if analysis.needed() & CHUNKED]
    if whole:
        complete = batch.completed(needs & {Need.SELECTED})
        for analysis in whole:
            analysis.see(complete)
    for part in chunks(batch, needs) if chunked else ():
        for analysis in chunked:
            analysis.see(part)


def chunks(batch: LayerBatch, needs: frozenset[Need]) -> Iterator[LayerBatch]:
    """Splits a batch into chunks of tokens, so that the outputs of all experts for a chunk fit into CHUNK_BYTES."""
    layer = batch.layer
    width = max(layer.hidden_size, layer.intermediate_size * layer.subtokens * (Need.ACTIVATIONS in needs))
    step = max(1, CHUNK_BYTES // (4 * layer.num_experts * width))
    for start in range(0, len(batch.tokens), step):
        part = batch.part(slice(start, start + step)).completed(needs - {Need.SELECTED})
        check_values(part, ("outputs", "activations"))
        yield part


def check_values(batch: LayerBatch, names: Sequence[str] | None = None) -> None:
    """Raises an error if a batch has NaN or infinity; -inf among logits marks a masked expert and is allowed."""
    layer, held = batch.layer, batch.tensors()
    for name in sorted(held, key=lambda each: each != "router_logits"):
        if name == "top_k_index" or (names is not None and name not in names):
            continue
        values = unmasked(held[name]) if name in MASKABLE else held[name]
        per_row = values.transpose(0, 1) if name in PER_EXPERT else values
        require_finite(name.replace("_", " "), per_row, batch.tokens, f"Layer {layer.index}: ")


def unmasked(values: torch.Tensor) -> torch.Tensor:
    """Values (n, E) with 0 for masked experts, and nan in rows in which all experts are masked."""
    any_left = (values > -torch.inf).any(-1, keepdim=True)
    return values.masked_fill(values == -torch.inf, 0).where(any_left | values.isnan().any(-1, keepdim=True), torch.nan)


def require_finite(name: str, values: torch.Tensor, tokens: Tokens, where: str = "") -> None:
    """Raises `NotFinite` if a value is NaN or infinite; the message names the document and position."""
    if not values.is_floating_point() or bool(values.sum(dtype=torch.float32).isfinite()):
        return
    finite = torch.isfinite(values).flatten(1).all(dim=1)
    if not bool(finite.all()):
        token = int(np.flatnonzero(~finite.cpu().numpy())[0]) * len(tokens) // len(values)
        dtype = str(values.dtype).removeprefix("torch.")
        raise NotFinite(
            f"{where}the {name} are not finite in document {tokens.document[token]}, position "
            f"{tokens.position[token]}; the weights are damaged or overflow in {dtype}."
        )
