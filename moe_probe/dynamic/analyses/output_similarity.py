"""Similarity of the experts' outputs for the same input (arXiv 2406.18219, section 5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis, expert_labels
from moe_probe.errors import NoSuchName, NotFitting
from moe_probe.families import DENSE, SHARED
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import TokenTable, Total

Metric = Literal["cosine", "angular"]
ROUNDING = 2e-15  # of a sum of products in float64, relative


@dataclass
class OutputSimilarity(Analysis):
    """Similarity of the unweighted outputs of every two experts, on the input of the ordinary forward pass.

    `cosine` is a.b / (|a| |b|), `angular` is 1 - arccos(cosine) / pi (the long-text experiment of arXiv 2406.18219,
    section 5.1; the diagonal is 1 by definition). The result averages over all tokens with equal weight, or keeps every
    token.

    Args:
        metric: `cosine` or `angular`.
        per_token: keep every token (the paper's short-text experiment).
        baseline: add the FFN of the dense model in the same layer, which runs on the same token ids, as `"F"`.
        shared: add the shared block as `"S"`.

    The result has `similarity` (layer, expert, other), float64; with `per_token` (layer, token[, subtoken], expert,
    other), float32, and `topk_expert` (layer, token[, subtoken], rank), int64, the chosen experts.
    The similarity with an expert whose output is zero is undefined: nan for that token. Means skip such tokens, and are
    nan if no token is left. `"S"` and `"F"` cannot be compared with the experts of sub-tokens (MH-MoE).

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.output_similarity("ckpt/tiny-mixtral", ["A short text."], metric="angular")
        >>> ds.similarity.dims
        ('layer', 'expert', 'other')
    """

    metric: Metric = "cosine"
    per_token: bool = False
    baseline: bool = False
    shared: bool = False

    name = "output_similarity"
    title = "Output similarity"
    unasked = True
    needs = frozenset({Need.OUTPUTS})
    legend = {"similarity": ("similarity of outputs", "1"), "topk_expert": ("chosen expert", "expert index")}

    total, defined = Total("expert", "other"), Total("expert", "other")
    table, chosen = TokenTable("expert", "other"), TokenTable("rank")

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            raise NoSuchName.among("metric", self.metric, get_args(Metric))

    def needed(self) -> frozenset[Need]:
        asked = {Need.BASELINE: self.baseline, Need.SHARED: self.shared}
        return self.needs | {need for need, wanted in asked.items() if wanted}

    def check(self, source: Source) -> None:
        for layer in source.layers.values():
            if (self.shared or self.baseline) and layer.subtokens > 1:
                label = SHARED if self.shared else DENSE
                raise NotFitting(f"Layer {layer.index} has no output {label!r} of an expert's width to compare.")
            if self.shared and not layer.num_shared:
                raise NotFitting(f"Layer {layer.index} has no shared expert; omit shared=True.")

    def update(self, batch: LayerBatch) -> None:
        similarity = self.similarity(batch)
        if self.per_token:
            self.table.add(batch, similarity)
            self.chosen.add(batch, batch.top_k_index)
        else:
            self.total.add(batch, similarity.double().nansum(0))
            self.defined.add(batch, (~similarity.isnan()).sum(0))

    def similarity(self, batch: LayerBatch) -> torch.Tensor:
        """(rows, R, R) in float64; nan where an output is zero."""
        gap = cosine_gaps(torch.stack([*batch.outputs.double(), *self._beside(batch)], dim=1))  # (n, R, w)
        return 1 - 2 * torch.arcsin((gap / 2).sqrt()) / torch.pi if self.metric == "angular" else 1 - gap

    def _beside(self, batch: LayerBatch) -> list[torch.Tensor]:
        """Outputs of the shared block and the dense model's FFN, if they were requested."""
        beside = []
        for label, wanted, field in ((SHARED, self.shared, "shared_output"), (DENSE, self.baseline, "baseline_output")):
            if not wanted:
                continue
            output = getattr(batch, field) if batch.holds(field) else None
            if output is None or output.shape != batch.outputs[0].shape:
                raise NotFitting(f"Layer {batch.layer.index} has no output {label!r} of an expert's width to compare.")
            beside.append(output.double())
        return beside

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        labels = expert_labels(source.first_layer.num_experts)
        labels += [SHARED] * self.shared + [DENSE] * self.baseline
        named = {"expert": labels, "other": labels}
        if self.per_token:
            return {"similarity": self.table.array.assign_coords(named), "topk_expert": self.chosen.array}
        return {"similarity": (self.total.array / self.defined.array).assign_coords(named)}

    def notes(self, source: Source) -> Mapping[str, Any]:
        return {"metric": self.metric}


def cosine_gaps(vectors: torch.Tensor) -> torch.Tensor:
    """1 - cosine of each pair of vectors (n, R, w) float64, (n, R, R): 0 to 2, 0 for equal ones; nan with zero vectors.

    Vectors are scaled to length 1 first, so that no scale loses digits. For nearly equal vectors, differences from the
    first one keep the digits.
    """
    largest = vectors.abs().amax(2, keepdim=True)
    scaled = vectors / largest
    unit = scaled / scaled.norm(dim=2, keepdim=True)
    away = unit - unit[:, :1].nan_to_num()
    products = away @ away.transpose(1, 2)
    squares = products.diagonal(dim1=1, dim2=2)
    gap = (squares[:, :, None] + squares[:, None, :]) / 2 - products
    gap = torch.where(gap > ROUNDING * torch.maximum(squares[:, :, None], squares[:, None, :]), gap, 0.0 * gap)
    gap.diagonal(dim1=1, dim2=2).mul_(0)
    return gap.clamp(0, 2)
