"""Shares of tokens that activate each neuron of each expert: act(gate projection) above a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import Total


@dataclass
class ActiveNeurons(Analysis):
    """Share of tokens for which a neuron of an expert is active: act(gate projection) above a threshold.

    Every expert runs on every token (MH-MoE: sub-token), chosen or not (arXiv 2406.18219).

    Args:
        threshold: a neuron is active if its activation is greater.

    The result has `active_share` (layer, expert, neuron), float64, and `expert_share` (layer, expert), its mean over
    neurons.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.active_neurons("ckpt/tiny-mixtral", ["Short."]).active_share.dims
        ('layer', 'expert', 'neuron')
    """

    threshold: float = 0.001

    name = "active_neurons"
    title = "Active neurons"
    needs = frozenset({Need.ACTIVATIONS})

    active, rows = Total("expert", "neuron"), Total()

    def update(self, batch: LayerBatch) -> None:
        self.active.add(batch, (batch.activations > float(self.threshold)).sum(dim=1))
        self.rows.add(batch, batch.activations.shape[1])

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        share = self.active.array / self.rows.array
        return {"active_share": share, "expert_share": share.mean("neuron")}
