"""Gating residuals make routing steadier (MoE++)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from moe_probe.claims.claim import Claim, Evidence, Finding, by_layer
from moe_probe.claims.units import of_units
from moe_probe.dynamic.analysis import Analysis
from moe_probe.dynamic.driver import results
from moe_probe.dynamic.sources import running
from moe_probe.errors import NotFitting
from moe_probe.intervene.config import Config
from moe_probe.model import MoEModel
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import PerUnit


@dataclass
class TopScore(Analysis):
    """Number, sum and sum of squares of each row's highest score, by document: (layer, unit, moment)."""

    name = "top_score"
    title = "Highest score by document"
    needs = frozenset({Need.SCORES})

    sums = PerUnit("moment")

    def update(self, batch: LayerBatch) -> None:
        top = batch.scores.double().amax(1)
        rows = torch.stack([torch.ones_like(top), top, top.square()], dim=1)
        self.sums.add(batch, (np.repeat(batch.tokens.unit, batch.layer.subtokens), rows))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        return {
            "sums": xr.DataArray(
                PerUnit.tables(self.sums)[""], {"layer": self.sums.layers}, ("layer", "unit", "moment")
            )
        }


def steadier(with_it: np.ndarray, without: np.ndarray) -> tuple[float, float, float, float]:
    """Logarithm of the ratio of variances without and with the residual, from moments (units, 3) of the documents."""

    def statistic(sums: np.ndarray) -> np.ndarray:
        variance = sums[..., 2] / sums[..., 0] - (sums[..., 1] / sums[..., 0]) ** 2
        return np.log(variance[:, 1] / variance[:, 0])

    return of_units(statistic, np.stack([with_it, without], axis=1))


def applies(model: MoEModel) -> None:
    """Raises `NotFitting` if the model has no gating residual."""
    if not getattr(model.config, "moe_gate_residual", False):
        raise NotFitting(f"{model.name} has no gating residual; the claim is about MoE++.")


def findings(evidence: Evidence) -> Sequence[Finding]:
    """The same documents with and without the residual, in all MoE layers except the first, which has none."""
    layers = [layer for layer in evidence.layers if layer != evidence.model.moe_layers[0]]
    if not layers:
        raise NotFitting("The first MoE layer has no gating residual of its own; pass other layers=.")
    removed = evidence.model.under(Config(moe_gate_residual=False))
    source = running(removed, evidence.source.corpus, evidence.options)
    other = results(source, [TopScore()], evidence.options)["top_score"].sums.sel(layer=layers)
    sums = evidence.results["top_score"].sums.sel(layer=layers)
    effects = [steadier(one, two) for one, two in zip(sums.values, other.values, strict=True)]
    return by_layer(layers, *np.array(effects).T)


CLAIM = Claim(
    hypothesis="The router's highest score varies less over tokens with the gating residual than without it.",
    source="MoE++, arXiv 2410.07348, figure 6 (there two trained models; here one checkpoint under an intervention)",
    effect="natural logarithm of variance without the residual over variance with it",
    findings=findings,
    needs=(TopScore(),),
    applies=applies,
)
