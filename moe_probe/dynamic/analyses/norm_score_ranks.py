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
    """How often each pair of ranks occurs: experts of a token ranked by the router's score, and by their output's norm.

    Ranks ascend from 1 to E, E is the largest. Equal values share the ranks that they span: each counts as an equal
    part of a pair at every one of them, which is what ranking them at random would give on average.

    The result has `pairs` (layer, score_rank, norm_rank), float64, whole numbers where no values are equal; every row
    and column of it adds up to the rows seen; `total` (score_rank, norm_rank) over layers; `topk_agreement` (layer),
    the mean share of the router's top-k that is also among the k largest norms; nan where all experts are chosen.

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
    """First rank (from 0) that each value shares in its row, and how many ranks it shares, (n, E)."""
    ordered = values.sort(dim=1).values.contiguous()
    first = torch.searchsorted(ordered, values.contiguous())
    return first, torch.searchsorted(ordered, values.contiguous(), right=True) - first


def pair_table(one: Spans, other: Spans) -> torch.Tensor:
    """How often each pair of ranks occurs, (E, E), float64."""
    experts = one[0].shape[1]
    tied = ((one[1] > 1) | (other[1] > 1)).any(1)
    place = one[0] * experts + other[0]
    table = torch.bincount(place[~tied].flatten(), minlength=experts**2).view(experts, experts).double()
    for rows in torch.where(tied)[0].split(TIED_ROWS):
        table += torch.einsum("nei,nej->ij", shares(one, rows), shares(other, rows))
    return table


def shares(span: Spans, rows: torch.Tensor) -> torch.Tensor:
    """The part of each rank that each expert has, (rows, E, ranks), float64."""
    first, count = span[0][rows, :, None], span[1][rows, :, None]
    rank = torch.arange(first.shape[1], device=first.device)
    return ((rank >= first) & (rank < first + count)).double() / count


def top_share(norms: Spans, chosen: torch.Tensor) -> torch.Tensor:
    """Expected share of the chosen experts (n, k) that are among the k largest norms, (n,), float64."""
    experts, k = norms[0].shape[1], chosen.shape[1]
    first, count = (part.gather(1, chosen) for part in norms)
    return ((first + count - (experts - k)).clamp(min=0).minimum(count).double() / count).mean(dim=1)
