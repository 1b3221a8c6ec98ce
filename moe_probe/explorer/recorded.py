"""The routing that a page shows: experts of every token, their router logits and applied weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analyses.record import padded
from moe_probe.dynamic.analysis import Analysis
from moe_probe.families import Layer
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import Rows, TokenTable

FEW = 16  # experts of a layer that are all listed by default
RUNNERS_UP = 1  # experts that are listed beside the chosen ones where there are more


@dataclass(frozen=True)
class RecordedLayer:
    """One layer's routing; rows are tokens, or sub-tokens one after the other.

    Attributes:
        layer: description of the layer.
        index: listed experts, (rows, listed), int16: the chosen ones, the largest selection score first, then the
            runners-up; padded with `layer.num_experts`.
        logits: their router logits, (rows, listed), float32; 0 for padding.
        weight: applied weights of the chosen ones, (rows, k), float32.
    """

    layer: Layer
    index: np.ndarray
    logits: np.ndarray
    weight: np.ndarray

    @property
    def chosen(self) -> np.ndarray:
        """The chosen experts, (rows, k), where k is the largest number that a row chooses."""
        return self.index[:, : self.weight.shape[1]]


@dataclass
class Routing(Analysis):
    """Experts that are listed for every token, their logits and weights, by layer.

    Args:
        runners_up: number of experts listed besides the chosen ones; None for all in layers of up to 16 experts, and 1
            in others.
    """

    runners_up: int | None = None

    name = "routing"
    title = "Routing"
    needs = frozenset({Need.WEIGHTS, Need.SCORES})

    index = TokenTable("rank", subtokens=True, dtype=np.int16)
    logits = TokenTable("rank", subtokens=True, dtype=np.float32)
    weight = TokenTable("rank", subtokens=True, dtype=np.float32)
    next_index = TokenTable("rank", subtokens=True, dtype=np.int16)
    next_logits = TokenTable("rank", subtokens=True, dtype=np.float32)

    def update(self, batch: LayerBatch) -> None:
        layer, (chosen, weight) = batch.layer, batch.ranked()
        repeated = chosen == chosen[:, :1]  # in places that a token with fewer choices leaves (`intervene.TopK`)
        repeated[:, 0] = False
        self.index.add(batch, chosen.masked_fill(repeated, layer.num_experts))
        self.logits.add(batch, batch.router_logits.gather(1, chosen).masked_fill(repeated, 0))
        self.weight.add(batch, weight)
        others = batch.selection.scatter(1, chosen, -torch.inf)
        score, best = others.topk(self.listed(layer) - layer.top_k, dim=1)
        logits = batch.router_logits.gather(1, best)
        excluded = score.isneginf() | logits.isneginf()  # by the router, or by an intervention that masks
        self.next_index.add(batch, best.masked_fill(excluded, layer.num_experts))
        self.next_logits.add(batch, logits.masked_fill(excluded, 0))

    def listed(self, layer: Layer) -> int:
        """Number of listed experts of each row."""
        by_default = layer.num_experts if layer.num_experts <= FEW else RUNNERS_UP
        return min(layer.num_experts, layer.top_k + (by_default if self.runners_up is None else self.runners_up))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        return {name: self.state_of(name).array for name in self.declared() if name != "score_kinds"}

    def layers(self, source: Source) -> dict[int, RecordedLayer]:
        """The observed layers, with tokens in the order of the texts."""
        recorded = {}
        for index in self.index.layers:
            layer = source.layers[index]
            chosen, logits, weight, best, next_logits = (
                self._rows(source, name, index, fill)
                for name, fill in (
                    ("index", layer.num_experts),
                    ("logits", 0),
                    ("weight", 0),
                    ("next_index", layer.num_experts),
                    ("next_logits", 0),
                )
            )
            listed, all_logits = np.hstack([chosen, best]), np.hstack([logits, next_logits])
            recorded[index] = RecordedLayer(layer, listed, all_logits, weight)
        return recorded

    def _rows(self, source: Source, name: str, layer: int, fill: float) -> np.ndarray:
        """A table's rows (rows, ranks) of a layer; batches with fewer ranks than others are padded."""
        parts = self.state_of(name)[layer].parts
        most = max(values.shape[-1] for _, values in parts)
        tokens, values = Rows([(tokens, padded(values, -1, most, fill)) for tokens, values in parts]).ordered()
        ordered = values[in_order_of_texts(source, tokens.document)]
        return ordered.reshape(ordered.shape[0] * ordered.shape[1], most)


def in_order_of_texts(source: Source, document: np.ndarray) -> np.ndarray:
    """Places of tokens that are sorted by their document's number, in the order of the corpus."""
    numbers = np.asarray([each.number for each in source.corpus.documents])
    return np.argsort(np.argsort(numbers)[np.searchsorted(np.sort(numbers), document)], kind="stable")
