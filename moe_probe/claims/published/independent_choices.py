"""Experts are chosen together little more often than by chance (OLMoE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from moe_probe.claims.claim import Claim, Evidence, Finding, by_layer
from moe_probe.claims.units import of_units
from moe_probe.dynamic.analysis import Analysis
from moe_probe.errors import NotFitting
from moe_probe.model import MoEModel
from moe_probe.routing import LayerBatch, Source
from moe_probe.statistics.margins import chance_pairs
from moe_probe.statistics.states import PerUnit

MOST = 64  # groups of documents whose tables of pairs are kept
LITTLE = 0.25**2


@dataclass
class PairsByUnit(Analysis):
    """Number of rows that chose both experts of a pair, by document: (layer, unit, expert, other)."""

    name = "pairs_by_unit"
    title = "Pairs of experts by document"

    both = PerUnit("expert", "other", most=MOST)

    def update(self, batch: LayerBatch) -> None:
        selected, unit = batch.selected.double(), np.repeat(batch.tokens.unit, batch.layer.subtokens)
        units = np.unique(unit)
        rows = (selected[torch.from_numpy(np.flatnonzero(unit == each)).to(selected.device)] for each in units)
        self.both.add(batch, (units, torch.stack([(choices.T @ choices).round().long().cpu() for choices in rows])))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        dims = ("layer", "unit", "expert", "other")
        return {"both": xr.DataArray(PerUnit.tables(self.both)[""], {"layer": self.both.layers}, dims)}


def excess(pairs: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Mean over pairs, weighted by chance, of (lift / chance - 1)^2, with interval and p-value of LITTLE or more.

    Args:
        pairs: number of rows that chose both, by unit, (units, E, E).
        k: choices per row.
    """
    pairs = pairs.astype(float)
    total = pairs.sum(0)
    share = np.diagonal(total) * k / np.diagonal(total).sum()
    one, other = np.triu_indices(len(share), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = chance_pairs(share, k)[one, other] / (share[one] * share[other])  # lift
    known = np.isfinite(chance) & (chance > 0)
    one, other, chance = one[known], other[known], chance[known]

    def statistic(sums: np.ndarray) -> np.ndarray:
        chosen = np.diagonal(sums, axis1=1, axis2=2)
        rows = chosen.sum(1, keepdims=True) / k
        expected = chance * chosen[:, one] * chosen[:, other] / rows
        apart = (sums[:, one, other] - expected) ** 2 / np.where(
            expected > 0, expected, 1
        )  # without the unit's experts
        return apart.sum(1) / expected.sum(1)

    return of_units(statistic, pairs, LITTLE, less=True, debias=True, limits=(0, np.inf))


def applies(model: MoEModel) -> None:
    """Raises `NotFitting` if rows have no pairs, or all rows have the same ones."""
    for index in model.moe_layers:
        layer = model.layer(index)
        if not 1 < layer.top_k < layer.num_experts:
            raise NotFitting(
                f"{model.name} chooses {layer.top_k} of {layer.num_experts} experts in layer {index}; pairs that can "
                "differ need at least 2, and not all of them."
            )


def findings(evidence: Evidence) -> Sequence[Finding]:
    """Chance keeps how often each expert is chosen; documents are the units."""
    ds = evidence.results["pairs_by_unit"]
    effects = [
        excess(table, evidence.model.layer(int(layer)).top_k)
        for layer, table in zip(ds.layer.values, ds.both.values, strict=True)
    ]
    return by_layer(ds.layer.values, *np.array(effects).T)


CLAIM = Claim(
    hypothesis="Pairs of experts are chosen together as often as their loads imply, to a quarter (root mean square).",
    source="OLMoE, arXiv 2409.02060, section 5.2 (co-activation); the threshold is moe_probe's",
    effect="mean over pairs, weighted by chance, of (lift / chance lift - 1)^2, corrected for few tokens",
    findings=findings,
    needs=(PairsByUnit(),),
    applies=applies,
    within=LITTLE,
)
