"""Opens several sources under their labels and observes them on the same texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.dynamic.driver import observe
from moe_probe.dynamic.sources import open_source, opened_source
from moe_probe.errors import NotComparable, WrongType
from moe_probe.model import MoEModel, Openable
from moe_probe.options import completed
from moe_probe.results import provenance
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.signatures import checked
from moe_probe.statistics.bootstrap import ratio_interval, sums_over
from moe_probe.statistics.states import TokenTable
from moe_probe.texts.corpus import Corpus
from moe_probe.texts.reading import Texts, read_rows
from moe_probe.traces.reading import Trace

Sources = Mapping[str, Openable | Trace] | Sequence[Openable | Trace]
Opened = dict[str, MoEModel | Trace]


@dataclass
class Choices(Analysis):
    """The chosen experts of every token (tokens, subtokens, k), int16, and the margin of the choice.

    `first` (tokens, subtokens) is the one with the largest selection score; `margin` (tokens, subtokens), float32, is
    the smallest selection score of a chosen expert minus the largest of the others: infinite if all others are in
    excluded groups, nan if all experts are chosen.
    """

    name = "choices"
    title = "Choices"
    needs = frozenset({Need.CHOICES, Need.SCORES})

    index = TokenTable("rank", subtokens=True, dtype=np.int16)
    first = TokenTable(subtokens=True, dtype=np.int16)
    margin = TokenTable(subtokens=True, dtype=np.float32)

    def update(self, batch: LayerBatch) -> None:
        chosen = batch.selected.bool()
        inner = batch.selection.masked_fill(~chosen, np.inf).amin(1)
        outer = batch.selection.masked_fill(chosen, -np.inf).amax(1)
        self.index.add(batch, batch.top_k_index)
        self.first.add(batch, batch.first_choice)
        self.margin.add(batch, (inner - outer).where(~chosen.all(1), np.nan))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        return {"index": self.index.array, "first": self.first.array, "margin": self.margin.array}


@dataclass(frozen=True)
class Routing:
    """The routing of a corpus by one source.

    Attributes:
        label: of the checkpoint.
        source: the model on its corpus, or the trace.
        layers: MoE layers.
        index: chosen experts, (layers, tokens, subtokens, k), int16.
        first: the one with the largest selection score, (layers, tokens, subtokens), int16.
        margin: (layers, tokens, subtokens), float32.
    """

    label: str
    source: Source
    layers: tuple[int, ...]
    index: np.ndarray
    first: np.ndarray
    margin: np.ndarray

    @property
    def num_experts(self) -> int:
        """Number of experts of the first layer."""
        return self.source.first_layer.num_experts


@checked
def open_sources(sources: Sources, least: int = 2, most: int | None = None) -> Opened:
    """Opens checkpoints, models or traces, by label; without labels, by name.

    Args:
        sources: one source, a list, or a mapping from labels.
        least: smallest number of sources.
        most: largest number of sources; None for any number.

    Raises:
        NotComparable: there are fewer or more sources, or two have one name.
    """
    if isinstance(sources, str | bytes) or not isinstance(sources, Iterable):
        raise WrongType(f"The checkpoints are {sources!r}; pass a list of them, or {{label: checkpoint}}.")
    if isinstance(sources, Mapping):
        opened = {str(label): opened_source(source) for label, source in sources.items()}
    else:
        several = [opened_source(source) for source in sources]
        opened = {source.name: source for source in several}
        if len(opened) < len(several):
            raise NotComparable("Two checkpoints have one name; pass labels for them: {label: checkpoint}.")
    if len(opened) < least or (most is not None and len(opened) > most):
        takes = f"at least {least}" if most is None else f"exactly {least}" if most == least else f"{least} to {most}"
        raise NotComparable(f"The comparison takes {takes} checkpoints, but there are {len(opened)}; pass {takes}.")
    return opened


def observe_each(
    sources: Opened, texts: Texts | None, analyses: Sequence[Analysis], options: Mapping[str, Any]
) -> dict[str, tuple[Source, list[Analysis]]]:
    """Yields each source with analyses that observed it; texts that can be read only once are read once for all."""
    asked = completed(options)
    if texts is not None and not isinstance(texts, Corpus):
        reading = {name: asked[name] for name in ("column", "labels", "unit", "split")}
        texts, asked = read_rows(texts, **reading), asked | dict.fromkeys(reading)
    observed = {}
    for label, each in sources.items():
        source = open_source(each, None if isinstance(each, Trace) else texts, asked)
        observed[label] = source, observe(source, analyses, asked)
    return observed


def record_choices(sources: Sources, texts: Texts | None, options: Mapping[str, Any], **count: int) -> list[Routing]:
    """Records the routing of every checkpoint, on the same tokens and in the same layers.

    Raises:
        NotComparable: the checkpoints' tokenizers, layers, or families differ.
    """
    routings: list[Routing] = []
    for label, (source, seen) in observe_each(open_sources(sources, **count), texts, [Choices()], options).items():
        (choices,) = seen
        values = {name: array.values for name, array in choices.variables(source).items()}
        routings.append(Routing(label, source, tuple(choices.state_of("index").layers), **values))
        require_common_tokens(routings[0], routings[-1])
        require_common_experts(routings[0], routings[-1])
    return routings


def require_common_tokens(one: Routing, other: Routing) -> None:
    """Raises `NotComparable` if the two sources saw different tokens."""
    seen = [[(d.number, d.ids) for d in routing.source.corpus.documents] for routing in (one, other)]
    if seen[0] != seen[1]:
        raise NotComparable(
            f"{one.label} and {other.label} did not see the same tokens: their tokenizers (or traces) differ; pass "
            "checkpoints with one tokenizer, or traces of the same texts."
        )


def require_common_experts(one: Routing, other: Routing) -> None:
    """Raises `NotComparable` if an expert's number does not mean the same expert in both sources."""
    alike = one.layers == other.layers and one.index.shape[2:] == other.index.shape[2:]
    kinds = [[routing.source.layers[at].expert_kinds for at in routing.layers] for routing in (one, other)]
    if not alike or kinds[0] != kinds[1]:
        raise NotComparable(
            f"{one.label} and {other.label} differ in their MoE layers or in their experts; pass one model."
        )
    if one.source.family != other.source.family:
        raise NotComparable(
            f"{one.label} is a {one.source.family} model and {other.label} a {other.source.family} model: their "
            "experts do not correspond; compare checkpoints of one model, or use expert_activation."
        )


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of each row's k choices (..., k) that the other source makes too, (...,)."""
    return (one[..., :, None] == other[..., None, :]).any(-1).mean(-1)


def means(
    name: str, dims: tuple[str, ...], values: np.ndarray, routing: Routing, bootstrap: int
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Means over tokens of values (..., tokens), and their interval."""
    values_of = {name: (dims, values.mean(-1))}
    if bootstrap:
        unit = routing.source.corpus.tokens().unit
        total, count = sums_over(np.moveaxis(values, -1, 0), unit), sums_over(np.ones(len(unit)), unit)
        for end, value in zip(("low", "high"), ratio_interval(total, count, bootstrap, (0, 1)), strict=True):
            values_of[f"{name}_{end}"] = (dims, value)
    return values_of


def chosen_alike(one: np.ndarray, other: np.ndarray, experts: int) -> np.ndarray:
    """Expected share of one source's choices (layers, ..., k) that independent choices of the other share, (layers,).

    It is the sum over experts of the product of both shares of rows that choose the expert, divided by k.
    """
    layers, k = len(one), one.shape[-1]
    shares = [
        np.stack([np.bincount(layer.ravel(), minlength=experts) for layer in choices]) / (choices[0].size / k)
        for choices in (one, other)
    ]
    return (shares[0] * shares[1]).sum(1).reshape(layers) / k


def compared_attrs(
    analysis: str, sources: Mapping[str, Source | MoEModel | Trace], **parameters: Any
) -> dict[str, Any]:
    """Provenance of a comparison: that of the last source, with the fingerprints of all."""
    last = list(sources.values())[-1]
    fingerprints = {label: source.fingerprint for label, source in sources.items()}
    return provenance(analysis, last, checkpoints=fingerprints, **parameters)


def routing_attrs(analysis: str, routings: Sequence[Routing], **parameters: Any) -> dict[str, Any]:
    """Provenance of a comparison of routings, with the sizes of the corpus."""
    corpus = routings[0].source.corpus
    sizes = {"documents": len(corpus.documents), "tokens": corpus.num_tokens}
    return {**compared_attrs(analysis, {r.label: r.source for r in routings}, **parameters), **sizes}
