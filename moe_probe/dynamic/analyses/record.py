"""Full records of short texts: routing, inputs and outputs of every MoE layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import xarray as xr
from rich.filesize import decimal

from moe_probe.dynamic.analysis import Analysis
from moe_probe.errors import NoSuchName, NotFitting
from moe_probe.families import Layer
from moe_probe.routing import LayerBatch, LogitBatch, Need, Source
from moe_probe.signatures import check_number
from moe_probe.statistics.states import ALL_LAYERS, Kept, Rows, TokenTable

Outputs = Literal["none", "selected", "all"]
NEEDS: Final[Mapping[str, frozenset[Need]]] = {
    "none": frozenset(),
    "selected": frozenset({Need.SELECTED}),
    "all": frozenset({Need.OUTPUTS}),
}

# what stands in the places of a layer that chooses fewer experts than others (under `intervene.TopK`)
RANKED: Final[Mapping[str, float]] = {"topk_expert": -1, "topk_weight": 0, "selected_output": 0}


@dataclass
class Record(Analysis):
    """Router logits, scores, choices, inputs and outputs of every MoE layer, for each token.

    The result has, float32 unless said otherwise:

    - `router_logits` (layer, token[, subtoken], expert), raw; `score` and `selection`, of the same shape, the
      router's score and the score that top-k ranks;
    - `topk_expert`, int64, and `topk_weight` (layer, token[, subtoken], rank), in the router's order; expert -1 and
      weight 0 fill ranks that a layer does not have;
    - `expert_input` and `routed_output` (layer, token[, subtoken], width); `block_output` (layer, token, hidden);
    - with `outputs="selected"`, `selected_output` (layer, token[, subtoken], rank, width), unweighted;
    - with `outputs="all"`, `output` (layer, token[, subtoken], expert, width), unweighted, and `norm` (layer,
      token[, subtoken], expert), its L2 norm;
    - with `logits=True`, `logits` (token, vocabulary), the model's output.

    Args:
        outputs: `none`, `selected` (of the chosen experts) or `all`.
        logits: keep the model's output too, which takes a run of the whole model.
        max_bytes: size limit of the result in bytes.

    Raises:
        InputError: the result would be larger.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.record("ckpt/tiny-mixtral", ["A short text."], outputs="all")
        >>> ds.output.dims
        ('layer', 'token', 'expert', 'hidden')
    """

    outputs: Outputs = "none"
    logits: bool = False
    max_bytes: int = 1 << 31

    name = "record"
    title = "Record"
    needs = frozenset({Need.WEIGHTS, Need.SCORES, Need.INPUT, Need.ROUTED})
    legend = {"topk_expert": ("chosen expert", "expert index"), "output": ("unweighted output", "residual stream")}

    router_logits, score, selection = TokenTable("expert"), TokenTable("expert"), TokenTable("expert")
    topk_expert, topk_weight = TokenTable("rank"), TokenTable("rank")
    expert_input, routed_output, block_output = TokenTable("width"), TokenTable("width"), TokenTable("hidden")
    selected_output = TokenTable("rank", "width")
    output, norm = TokenTable("expert", "width"), TokenTable("expert")
    of_model = TokenTable("vocabulary")

    def __post_init__(self) -> None:
        if self.outputs not in NEEDS:
            raise NoSuchName.among("value of outputs", self.outputs, get_args(Outputs))
        check_number("max_bytes", self.max_bytes, 1)

    def needed(self) -> frozenset[Need]:
        return self.needs | NEEDS[self.outputs] | ({Need.LOGITS} if self.logits else set())

    def check(self, source: Source) -> None:
        size, corpus = self.size(source), source.corpus
        if size > self.max_bytes:
            raise NotFitting(
                f"record needs {decimal(size)} ({corpus.num_tokens:,} tokens, {len(source.layers)} layers); max_bytes "
                f"is {decimal(self.max_bytes)}. Use RoutingTrace for routing, NormScoreRanks or OutputSimilarity for "
                "outputs, or pass fewer layers=."
            )

    def size(self, source: Source) -> int:
        """Size of the result in bytes."""
        values = sum(map(self._values, source.layers.values()))
        return 4 * source.corpus.num_tokens * (values + (source.vocab_size if self.logits else 0))

    def _values(self, layer: Layer) -> int:
        width, experts, k = layer.expert_hidden_size, layer.num_experts, layer.top_k
        outputs = {"none": 0, "selected": k * width, "all": experts * (width + 1)}[self.outputs]
        return layer.subtokens * (3 * experts + 3 * k + 2 * width + outputs) + layer.hidden_size

    def update(self, batch: LayerBatch) -> None:
        for name in ("router_logits", "selection", "expert_input", "routed_output", "block_output"):
            self.state_of(name).add(batch, getattr(batch, name))
        self.score.add(batch, batch.scores)
        self.topk_expert.add(batch, batch.top_k_index)
        self.topk_weight.add(batch, batch.top_k_weights)
        if self.outputs == "selected":
            self.selected_output.add(batch, batch.selected_outputs)
        elif self.outputs == "all":
            outputs = batch.outputs.transpose(0, 1)
            self.output.add(batch, outputs)
            self.norm.add(batch, outputs.float().norm(dim=-1))

    def update_logits(self, batch: LogitBatch) -> None:
        self.of_model.put(ALL_LAYERS, (batch.tokens, batch.logits))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        for name, fill in RANKED.items():
            pad_ranks(self.state_of(name), fill)
        tables = [name for name in self.declared() if isinstance(getattr(type(self), name), TokenTable)]
        arrays = {name: self.state_of(name).array for name in tables if name != "of_model" and self.state_of(name)}
        if self.of_model:
            arrays["logits"] = self.of_model.array.squeeze("layer", drop=True)
        if source.first_layer.subtokens == 1:
            arrays = {n: v.rename(width="hidden") if "width" in v.dims else v for n, v in arrays.items()}
        return arrays

    def coords(self, source: Source) -> Mapping[str, Any]:
        return {"kind": ("expert", list(source.first_layer.expert_kinds))}


def pad_ranks(state: Kept[Rows], fill: float) -> None:
    """Pads the tables of all layers to the largest number of ranks."""
    axis = -len(state.state.dims)
    most = max((values.shape[axis] for rows in state.values.values() for _, values in rows.parts), default=0)
    for rows in state.values.values():
        rows.parts = [(tokens, padded(values, axis, most, fill)) for tokens, values in rows.parts]


def padded(values: np.ndarray, axis: int, most: int, fill: float) -> np.ndarray:
    """Returns an array padded with `fill` to length `most` along an axis."""
    missing = [(0, 0)] * values.ndim
    missing[axis] = 0, most - values.shape[axis]
    return np.pad(values, missing, constant_values=fill)
