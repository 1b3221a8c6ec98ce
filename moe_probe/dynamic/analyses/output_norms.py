"""Norms of the experts' outputs, and the router's scores (arXiv 2406.18219, section 5.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.states import TokenTable


@dataclass
class OutputNorms(Analysis):
    """L2 norm of every expert's unweighted output, and the router's score of every expert, for each token.

    Use this for short texts, and `NormScoreRanks` for a corpus (arXiv 2406.18219, section 5.2).

    The result has `norm` and `score` (layer, token[, subtoken], expert), float32, and `chosen`, 1 if the expert is
    among the top-k and 0 otherwise.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.output_norms("ckpt/tiny-mixtral", ["A short text."]).norm.dims
        ('layer', 'token', 'expert')
    """

    name = "output_norms"
    title = "Output norms"
    needs = frozenset({Need.OUTPUTS, Need.SCORES})
    legend = {"norm": ("L2 norm of the output", "residual stream"), "score": ("router score", "1")}

    norm, score, chosen = TokenTable("expert"), TokenTable("expert"), TokenTable("expert")

    def update(self, batch: LayerBatch) -> None:
        self.norm.add(batch, batch.outputs.float().norm(dim=-1).T)
        self.score.add(batch, batch.scores)
        self.chosen.add(batch, batch.selected)

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        return {"norm": self.norm.array, "score": self.score.array, "chosen": self.chosen.array}
