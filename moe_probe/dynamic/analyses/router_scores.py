"""How sure the router is: distributions of its highest and second-highest score (MoE++, arXiv 2410.07348, figure 6)."""

from __future__ import annotations

import numpy as np
import torch

from moe_probe.dynamic.analysis import Sums
from moe_probe.errors import InputError
from moe_probe.routing import LayerBatch

ORDINALS = ["highest", "second"]


class RouterScores(Sums):
    """Histogram, mean, variance and range of the highest and the second-highest score of each row.

    Scores are the router's over all experts (after softmax or sigmoid, before bias, groups and top-k).

    Args:
        bins: of equal width over `limits`.
        limits: ends of the histogram; scores outside count in the first and last bin.

    The result has `count` (layer, which, bin), int64, `which` being highest and second; `mean`, `variance`
    (population), `minimum`, `maximum` (layer, which), float64; the same over all layers with `pooled_` before; and the
    bins' left edges as the coordinate `bin`.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.router_scores("ckpt/tiny-mixtral", ["A short text."], bins=10).sizes["bin"]
        10
    """

    name = "router_scores"

    def __init__(self, bins: int = 100, limits: tuple[float, float] = (0.0, 1.0)):
        super().__init__()
        if bins < 1 or not limits[0] < limits[1]:
            raise InputError(f"A histogram has at least one bin and ascending limits, not {bins} and {limits}.")
        self.bins, self.limits = bins, tuple(limits)

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        if batch.layer.num_experts < 2:
            raise InputError(f"Layer {batch.layer.index} has one expert; there is no second-highest score.")
        top = batch.scores.topk(2, dim=1).values.double()  # (n, 2)
        low, high = self.limits
        place = ((top - low) / (high - low) * self.bins).floor().long().clamp(0, self.bins - 1)
        counts = torch.stack([torch.bincount(column, minlength=self.bins) for column in place.T])
        return {
            "count": counts,
            "sum": top.sum(0),
            "squares": top.square().sum(0),
            "least_score": top.amin(0),
            "most_score": top.amax(0),
            "rows": torch.tensor(len(top)),
        }

    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        of_layers = _moments(sums, ("layer",))
        pooled = {
            name: (value.min if name.startswith("least") else value.max if name.startswith("most") else value.sum)(0)
            for name, value in sums.items()
        }
        variables = of_layers | {f"pooled_{name}": value for name, value in _moments(pooled, ()).items()}
        low, high = self.limits
        return variables, {"which": ORDINALS, "bin": np.linspace(low, high, self.bins + 1)[:-1]}


def _moments(sums: dict[str, np.ndarray], first: tuple[str, ...]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    rows = np.asarray(sums["rows"])[..., None]
    mean = sums["sum"] / rows
    values = {
        "mean": mean,
        "variance": (sums["squares"] / rows - mean**2).clip(0),
        "minimum": sums["least_score"],
        "maximum": sums["most_score"],
    }
    moments = {name: ((*first, "which"), value) for name, value in values.items()}
    return {"count": ((*first, "which", "bin"), sums["count"]), **moments}
