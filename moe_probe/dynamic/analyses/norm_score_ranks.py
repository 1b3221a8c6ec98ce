"""Whether the router chooses the experts with large outputs (arXiv 2406.18219, section 4.2)."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.dynamic.analysis import Sums
from moe_probe.routing import OUTPUTS, LayerBatch


class NormScoreRanks(Sums):
    """How often each pair of ranks occurs: experts of a token ranked by the router's score, and by their output's norm.

    Ranks ascend from 1 to E, E is the largest; of equal values the lower expert index has the lower rank.

    The result has `count` (layer, score_rank, norm_rank), int64, every row and column of which adds up to the rows
    seen; `total` (score_rank, norm_rank) over layers; `topk_agreement` (layer), the mean share of the router's top-k
    that is also among the k largest norms.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.norm_score_ranks("ckpt/tiny-mixtral", ["A short text."])
        >>> bool((ds["count"].sum("norm_rank") == ds["count"].sum("score_rank").values).all())
        True
    """

    name = "norm_score_ranks"
    needs = frozenset({OUTPUTS})

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        norms = batch.outputs.float().norm(dim=-1).T
        score_ranks, norm_ranks = ranks(batch.scores), ranks(norms)
        experts = batch.layer.num_experts
        pairs = torch.bincount((score_ranks * experts + norm_ranks).flatten(), minlength=experts**2)
        chosen_ranks = norm_ranks.gather(1, batch.top_k_index)
        agreement = (chosen_ranks >= experts - batch.layer.top_k).double().mean(dim=1).sum()
        return {"count": pairs.view(experts, experts), "agreement": agreement, "rows": torch.tensor(len(norms))}

    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        count = sums["count"]
        ordinal = np.arange(1, count.shape[-1] + 1)
        variables = {
            "count": (("layer", "score_rank", "norm_rank"), count),
            "total": (("score_rank", "norm_rank"), count.sum(0)),
            "topk_agreement": (("layer",), sums["agreement"] / sums["rows"]),
        }
        return variables, {"score_rank": ordinal, "norm_rank": ordinal}


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ascending rank of each value in its row, from 0; (n, E) to (n, E), int64."""
    order = values.argsort(dim=1, stable=True)
    positions = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, positions)
