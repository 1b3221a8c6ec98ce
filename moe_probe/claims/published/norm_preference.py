"""The router prefers experts with large outputs (Lo et al.)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from moe_probe.claims.claim import Claim, Evidence, Finding, by_layer
from moe_probe.claims.units import of_units
from moe_probe.dynamic.analysis import Analysis
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import PerUnit


@dataclass
class NormPreference(Analysis):
    """Correlation of ranks of scores and norms, summed over the rows of each document: (layer, unit, [sum, rows])."""

    name = "norm_preference"
    title = "Preference for large outputs"
    needs = frozenset({Need.OUTPUTS, Need.SCORES})

    sums = PerUnit("moment")

    def update(self, batch: LayerBatch) -> None:
        rho = rank_correlation(batch.scores, batch.outputs.float().norm(dim=-1).T)
        known = rho.isfinite()
        rows = torch.stack([rho.nan_to_num(), known.double()], dim=1)
        self.sums.add(batch, (np.repeat(batch.tokens.unit, batch.layer.subtokens), rows))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        return {
            "sums": xr.DataArray(
                PerUnit.tables(self.sums)[""], {"layer": self.sums.layers}, ("layer", "unit", "moment")
            )
        }


def rank_correlation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Spearman's correlation of each row of (n, E), (n,); ties share their mean rank, and nan means all are equal."""
    x, y = (_centered_ranks(values) for values in (one, other))
    return (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()


def _centered_ranks(values: torch.Tensor) -> torch.Tensor:
    ordered = values.sort(dim=1).values.contiguous()
    first, last = (torch.searchsorted(ordered, values.contiguous(), right=right).double() for right in (False, True))
    return (first + last - values.shape[1]) / 2


def findings(evidence: Evidence) -> Sequence[Finding]:
    """Documents are the units."""
    ds = evidence.results["norm_preference"]
    effects = [of_units(lambda sums: sums[:, 0] / sums[:, 1], table, limits=(-1, 1)) for table in ds.sums.values]
    return by_layer(ds.layer.values, *np.array(effects).T)


CLAIM = Claim(
    hypothesis="The router gives higher scores to experts whose outputs for the token are larger.",
    source="Lo et al., arXiv 2406.18219, section 5.2",
    effect="Spearman's correlation over a token's experts of score and L2 norm of the output, mean over tokens",
    findings=findings,
    needs=(NormPreference(),),
)
