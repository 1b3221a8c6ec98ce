"""A hundred tokens of one text suffice to estimate the experts' loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from moe_probe.claims.claim import Claim, Evidence, Finding, by_layer
from moe_probe.claims.units import of_units
from moe_probe.dynamic.analysis import Analysis
from moe_probe.errors import NotFitting
from moe_probe.routing import LayerBatch, Source
from moe_probe.statistics.states import PerUnit

TOKENS, CLOSE = 100, 0.1


@dataclass
class FirstTokens(Analysis):
    """Choices of the first TOKENS tokens of each document that has as many: (layer, unit, expert)."""

    name = "first_tokens"
    title = "Load of the first tokens"

    chosen = PerUnit("expert")

    def check(self, source: Source) -> None:
        if sum(len(document.ids) >= TOKENS for document in source.corpus.documents) < 2:
            raise NotFitting(f"Fewer than two documents have {TOKENS} tokens; pass longer texts.")

    def update(self, batch: LayerBatch) -> None:
        documents, counts = np.unique(batch.tokens.document, return_counts=True)
        long = documents[counts >= TOKENS]
        rows = np.repeat(np.isin(batch.tokens.document, long) & (batch.tokens.position < TOKENS), batch.layer.subtokens)
        unit = np.repeat(batch.tokens.unit, batch.layer.subtokens)
        self.chosen.add(batch, (unit[rows], batch.selected.cpu().long().numpy()[rows]))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        dims = ("layer", "unit", "expert")
        return {"chosen": xr.DataArray(PerUnit.tables(self.chosen)[""], {"layer": self.chosen.layers}, dims)}


def distances(chosen: np.ndarray) -> np.ndarray:
    """Total variation distance of each unit's expert shares from those of all others, (units,)."""
    others = chosen.sum(0) - chosen
    shares = [each / each.sum(1, keepdims=True) for each in (chosen, others)]
    return np.abs(shares[0] - shares[1]).sum(1) / 2


def findings(evidence: Evidence) -> Sequence[Finding]:
    """Documents are the units."""
    ds = evidence.results["first_tokens"]
    effects = []
    for chosen in ds.chosen.values.astype(float):
        apart = distances(chosen[chosen.any(1)])
        table = np.stack([apart, np.ones(len(apart))], axis=1)
        effects.append(of_units(lambda sums: sums[:, 0] / sums[:, 1], table, CLOSE, less=True, limits=(0, 1)))
    return by_layer(ds.layer.values, *np.array(effects).T)


CLAIM = Claim(
    hypothesis=f"The loads in the first {TOKENS} tokens of one text are within {CLOSE:g} of those in the other texts.",
    source="Lo et al., arXiv 2406.18219, section 5 (short sequences represent a corpus); the threshold is moe_probe's",
    effect=f"mean total variation distance of expert shares, a text's first {TOKENS} tokens from those of the others",
    findings=findings,
    needs=(FirstTokens(),),
    within=CLOSE,
)
