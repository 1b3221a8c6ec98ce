"""The experts that each token chooses, and their applied weights (arXiv 2406.18219, appendix I)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import TokenTable


@dataclass
class GateChoices(Analysis):
    """Applied weight of every expert for each token, 0 if it was not chosen (arXiv 2406.18219, appendix I).

    The result has `weight` (layer, token[, subtoken], expert), float32; the tokens' strings are a coordinate.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.gate_choices("ckpt/tiny-mixtral", ["A short text."]).weight.dims
        ('layer', 'token', 'expert')
    """

    name = "gate_choices"
    title = "Gate choices"
    needs = frozenset({Need.WEIGHTS})

    weight = TokenTable("expert")

    def update(self, batch: LayerBatch) -> None:
        self.weight.add(batch, batch.weights)

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        return {"weight": self.weight.array}
