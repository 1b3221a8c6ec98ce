"""Distributions of the router's highest and second-highest score (MoE++, arXiv 2410.07348, figure 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.errors import NotFitting, OutOfRange
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.signatures import check_number
from moe_probe.statistics.states import Least, Moments, Most, Total

ORDINALS = ["highest", "second"]


MOST_BINS = 1_000_000


@dataclass
class RouterScores(Analysis):
    """Histogram, mean, variance and range of the highest and the second-highest score of each token (or sub-token).

    Scores are those of the router over all experts, after softmax or sigmoid and before bias, groups and top-k. A large
    gap between the two means a confident router (MoE++, arXiv 2410.07348, figure 6).

    Args:
        bins: number of bins of equal width over `limits`.
        limits: ends of the histogram; scores outside count in the first and last bin.

    The result has `histogram` (layer, which, bin), int64, where `which` is highest or second; `score_mean`,
    `score_variance` (population), `minimum` and `maximum` (layer, which), float64; and the same over all layers, with
    the prefix `pooled_`. The coordinate `bin` holds the bins' left edges.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.router_scores("ckpt/tiny-mixtral", ["A short text."], bins=10).sizes["bin"]
        10
    """

    bins: int = 100
    limits: tuple[float, float] = (0.0, 1.0)

    name = "router_scores"
    title = "Router scores"
    unasked = True
    needs = frozenset({Need.SCORES})
    legend = {
        "histogram": ("scores in a bin", "rows"),
        "score_mean": ("mean score", "1"),
        "score_variance": ("variance of the score", "1"),
        "minimum": ("smallest score", "1"),
        "maximum": ("largest score", "1"),
    }

    counts, moments = Total("which", "bin"), Moments("which")
    least, most = Least("which"), Most("which")

    def __post_init__(self) -> None:
        check_number("bins", self.bins, 1, MOST_BINS)
        if len(self.limits) != 2 or not self.limits[0] < self.limits[1]:
            raise OutOfRange(f"limits is {self.limits}; pass two ascending numbers.")
        self.limits = (self.limits[0], self.limits[1])

    def check(self, source: Source) -> None:
        for layer in source.layers.values():
            if layer.num_experts < 2:
                raise NotFitting(f"Layer {layer.index} has one expert; a second-highest score needs two.")

    def update(self, batch: LayerBatch) -> None:
        top = batch.scores.topk(2, dim=1).values.double()  # (n, 2)
        low, high = self.limits
        place = ((top - low) / (high - low) * self.bins).floor().long().clamp(0, self.bins - 1)
        self.counts.add(batch, torch.stack([torch.bincount(column, minlength=self.bins) for column in place.T]))
        self.moments.add(batch, top)
        self.least.add(batch, top.amin(0))
        self.most.add(batch, top.amax(0))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        counts, seen = self.counts.array, self.moments.array
        least, most = self.least.array, self.most.array
        every = reduce(Moments("which").join, seen.values)
        whole = seen.isel(layer=0, drop=True).copy(data=every)
        pooled = described(counts.sum("layer"), whole, least.min("layer"), most.max("layer"))
        variables = described(counts, seen, least, most) | {f"pooled_{name}": value for name, value in pooled.items()}
        edges = np.linspace(*self.limits, self.bins + 1)[:-1]
        coords = {"which": ORDINALS, "bin": edges}
        return {n: v.assign_coords({k: c for k, c in coords.items() if k in v.dims}) for n, v in variables.items()}


def described(
    counts: xr.DataArray, seen: xr.DataArray, least: xr.DataArray, most: xr.DataArray
) -> dict[str, xr.DataArray]:
    """Variables from counts, moments and range, of one layer or of all."""
    rows, mean, squares = (seen.isel(moment=at) for at in range(3))
    return {
        "histogram": counts,
        "score_mean": mean,
        "score_variance": squares / rows,
        "minimum": least,
        "maximum": most,
    }
