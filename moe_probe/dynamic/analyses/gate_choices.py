"""Which experts each token goes to, and how much each counts (arXiv 2406.18219, appendix I)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import TokenTable


@dataclass
class GateChoices(Analysis):
    """The applied weight of every expert, 0 where it was not chosen, token by token.

    The result has `weight` (layer, token[, subtoken], expert), float32, with the tokens' strings as coordinate.

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
