"""The routing that a page tells of: of every token its experts, their router logits and applied weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.families import Layer
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import TokenTable

FEW = 16  # experts of a layer that are all listed by default
RUNNERS_UP = 1  # experts that are listed beside the chosen ones where there are more


@dataclass(frozen=True)
class RecordedLayer:
    """One layer's routing; rows are tokens, or sub-tokens one after the other.

    Attributes:
        layer: what it is made of.
        index: listed experts, (rows, listed), int16: the chosen ones, the largest selection score first, then the
            runners-up; `layer.num_experts` where the router excludes all others.
        logits: their router logits, (rows, listed), float32; 0 where `index` names no expert.
        weight: applied weights of the chosen ones, (rows, k), float32.
    """

    layer: Layer
    index: np.ndarray
    logits: np.ndarray
    weight: np.ndarray

    @property
    def chosen(self) -> np.ndarray:
        """The chosen experts, (rows, k)."""
        return self.index[:, : self.layer.top_k]


@dataclass
class Routing(Analysis):
    """Experts that every token lists, their logits and weights, by layer.

    Args:
        runners_up: experts listed beside the chosen ones; None for all of a layer with up to 16 experts, and 1 elsewhere.
    """

    runners_up: int | None = None

    name = "routing"
    title = "Routing"
    needs = frozenset({Need.WEIGHTS, Need.SCORES})

    index = TokenTable("rank", subtokens=True, dtype=np.int16)
    logits = TokenTable("rank", subtokens=True, dtype=np.float32)
    weight = TokenTable("rank", subtokens=True, dtype=np.float32)

    def update(self, batch: LayerBatch) -> None:
        chosen, weight = batch.ranked()
        others = batch.selection.scatter(1, chosen, -torch.inf)
        score, best = others.topk(self.listed(batch.layer) - chosen.shape[1], dim=1)
        index = torch.cat([chosen, best], dim=1)
        logits = batch.router_logits.gather(1, index)
        excluded = torch.cat([torch.zeros_like(chosen, dtype=torch.bool), score.isneginf()], dim=1)
        excluded |= logits.isneginf()  # of experts that an intervention masks
        self.index.add(batch, index.masked_fill(excluded, batch.layer.num_experts))
        self.logits.add(batch, logits.masked_fill(excluded, 0))
        self.weight.add(batch, weight)

    def listed(self, layer: Layer) -> int:
        """How many experts of each row are listed."""
        by_default = layer.num_experts if layer.num_experts <= FEW else RUNNERS_UP
        return min(layer.num_experts, layer.top_k + (by_default if self.runners_up is None else self.runners_up))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        return {name: self.state_of(name).array for name in ("index", "logits", "weight")}

    def layers(self, source: Source) -> dict[int, RecordedLayer]:
        """The layers that it has seen, tokens in the order of the texts."""
        recorded = {}
        for index in self.index.layers:
            tables = {name: self.state_of(name)[index].ordered() for name in ("index", "logits", "weight")}
            order = in_order_of_texts(source, tables["index"][0].document)
            rows: dict[str, Any] = {
                name: values[order].reshape(-1, values.shape[-1]) for name, (_, values) in tables.items()
            }
            recorded[index] = RecordedLayer(source.layers[index], **rows)
        return recorded


def in_order_of_texts(source: Source, document: np.ndarray) -> np.ndarray:
    """Places of tokens that are sorted by their document's number, in the order of the corpus."""
    numbers = np.asarray([each.number for each in source.corpus.documents])
    return np.argsort(np.argsort(numbers)[np.searchsorted(np.sort(numbers), document)], kind="stable")
