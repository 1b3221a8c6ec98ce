"""Whether the router chooses the experts with large outputs (arXiv 2406.18219, section 5.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import Total

TIED_ROWS = 64  # whose tables of ranks are held at once


@dataclass
class NormScoreRanks(Analysis):
    """Counts of pairs of ranks: each token's experts ranked by the router's score, and by the norm of their output.

    Rank 1 is the smallest value and rank E the largest. Equal values share the ranks that they span: each counts in
    equal parts at every one of them, which is the mean of ranking them at random (arXiv 2406.18219, section 5.2).

    The result has `pairs` (layer, score_rank, norm_rank), float64, whole numbers if no values are equal, whose rows and
    columns each sum to the number of tokens (or sub-tokens); `total` (score_rank, norm_rank), the sum over layers; and
    `topk_agreement` (layer), the mean share of the router's top-k that is also among the k largest norms, nan if the
    router chooses all experts.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.norm_score_ranks("ckpt/tiny-mixtral", ["A short text."])
        >>> bool((ds.pairs.sum("norm_rank") == ds.pairs.sum("score_rank").values).all())
        True
    """

    name = "norm_score_ranks"
    title = "Ranks of norm and score"
    unasked = True
    needs = frozenset({Need.OUTPUTS, Need.SCORES})
    legend = {"pairs": ("pairs of ranks", "rows"), "total": ("pairs of ranks over layers", "rows")}

    pairs, agreement, rows = Total("score_rank", "norm_rank"), Total(), Total()

    def update(self, batch: LayerBatch) -> None:
        norms = spans(batch.outputs.float().norm(dim=-1).T)
        self.pairs.add(batch, pair_table(spans(batch.scores), norms))
        self.agreement.add(batch, top_share(norms, batch.top_k_index).sum())
        self.rows.add(batch, len(batch.scores))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        pairs = self.pairs.array
        ordinal = np.arange(1, pairs.sizes["norm_rank"] + 1)
        pairs = pairs.assign_coords(score_rank=ordinal, norm_rank=ordinal)
        everyone = [source.layers[int(layer)].top_k == len(ordinal) for layer in pairs.layer]
        agreement = self.agreement.array / self.rows.array
        return {
            "pairs": pairs,
            "total": pairs.sum("layer"),
            "topk_agreement": agreement.where(~xr.DataArray(everyone, {"layer": pairs.layer}, ("layer",))),
        }


Spans = tuple[torch.Tensor, torch.Tensor]


def spans(values: torch.Tensor) -> Spans:
    """First rank (from 0) that each value shares in its row, and the number of ranks it shares, (n, E)."""
    ordered = values.sort(dim=1).values.contiguous()
    first = torch.searchsorted(ordered, values.contiguous())
    return first, torch.searchsorted(ordered, values.contiguous(), right=True) - first


def pair_table(one: Spans, other: Spans) -> torch.Tensor:
    """Counts of pairs of ranks, (E, E), float64."""
    experts = one[0].shape[1]
    tied = ((one[1] > 1) | (other[1] > 1)).any(1)
    place = one[0] * experts + other[0]
    table = torch.bincount(place[~tied].flatten(), minlength=experts**2).view(experts, experts).double()
    for rows in torch.where(tied)[0].split(TIED_ROWS):
        table += torch.einsum("nei,nej->ij", shares(one, rows), shares(other, rows))
    return table


def shares(span: Spans, rows: torch.Tensor) -> torch.Tensor:
    """Share of each rank that each expert has, (rows, E, ranks), float64."""
    first, count = span[0][rows, :, None], span[1][rows, :, None]
    rank = torch.arange(first.shape[1], device=first.device)
    return ((rank >= first) & (rank < first + count)).double() / count


def top_share(norms: Spans, chosen: torch.Tensor) -> torch.Tensor:
    """Expected share of the chosen experts (n, k) that are among the k largest norms, (n,), float64."""
    experts, k = norms[0].shape[1], chosen.shape[1]
    first, count = (part.gather(1, chosen) for part in norms)
    return ((first + count - (experts - k)).clamp(min=0).minimum(count).double() / count).mean(dim=1)
