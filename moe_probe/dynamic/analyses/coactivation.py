"""Which experts work together: on one token, and from layer to layer (OLMoE, arXiv 2409.02060, section 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.statistics.bootstrap import DRAWS, check_draws, interval
from moe_probe.statistics.margins import chance_pairs
from moe_probe.statistics.states import PerUnit, Same, Total

LEAST_PAIRS = 10  # that chance makes, from which on an interval is given
BLOCKS = 64  # groups of documents whose tables of pairs are kept


@dataclass
class Coactivation(Analysis):
    """Pairs of experts chosen by the same token (or sub-token), and the flow from each MoE layer to the next one.

    All pairs of the k chosen experts count.

    The result has, per layer, `pairs` (layer, expert, other), int64: rows that chose both, on the diagonal those that
    chose the expert; `conditional`, P(other | expert); `lift`, P(both) / (P(expert) P(other)), 1 if independent;
    `chance_lift` (layer, expert, other), that of k experts drawn one after the other, each chosen as often as it is,
    without regard to each other (`moe_probe.statistics.margins`): mostly below 1, since a choice of one is a choice
    less for the others; and, from the second layer on, `flow` (layer, source, expert): the share of the choices of a
    row in this layer, given that it chose `source` in the MoE layer before; nan in the first one, and where the layer
    before is not known or has more experts; `flow_chance` (layer, expert): that share whatever was chosen before.
    `lift_low` and `lift_high`: 95 % interval over documents, nan for pairs that chance would make fewer than ten times.

    Args:
        bootstrap: draws of the interval; 0 for none (64 times less memory).
        chance: whether to give the chance levels.
        as_published: count what OLMoE's code counts, pairs of neighbors in the top-k list, best score first; for k
            above 2 that leaves most pairs out. `chance_lift` (layer) is then that of experts that are all chosen
            alike, E (k - 1) / (k (E - 1)).

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.coactivation("ckpt/tiny-mixtral", ["A short text."]).lift.dims
        ('layer', 'expert', 'other')
    """

    bootstrap: int = DRAWS
    chance: bool = True
    as_published: bool = False

    name = "coactivation"
    title = "Coactivation"
    unasked = True
    needs = frozenset({Need.CHOICES, Need.BEFORE})
    legend = {
        "pairs": ("rows that choose both", "rows"),
        "conditional": ("P(other | expert)", "1"),
        "lift": ("P(both) / (P(expert) P(other))", "1"),
        "chance_lift": ("lift of experts drawn at random", "1"),
        "flow": ("share of choices after choosing source in the layer before", "1"),
    }

    both, rows = PerUnit("expert", "other", most=BLOCKS), PerUnit(most=BLOCKS)
    flows, sources, k = Total("source", "expert"), Same(), Same()

    def __post_init__(self) -> None:
        check_draws(self.bootstrap)

    def update(self, batch: LayerBatch) -> None:
        selected, layer = batch.selected.double(), batch.layer
        unit = np.repeat(batch.tokens.unit, layer.subtokens) if self.bootstrap else np.zeros(len(selected), np.int64)
        count = neighbors(batch) if self.as_published else lambda rows: selected[rows].T @ selected[rows]
        units = np.unique(unit)
        rows = (torch.from_numpy(np.flatnonzero(unit == each)).to(selected.device) for each in units)
        self.both.add(batch, (units, torch.stack([count(each).round().long().cpu() for each in rows])))
        self.rows.add(batch, (unit, torch.ones(len(selected), dtype=torch.int64)))
        self.k.add(batch, batch.top_k_index.shape[1])
        self._follow(batch, selected)

    def _follow(self, batch: LayerBatch, selected: torch.Tensor) -> None:
        """Choices in this layer by what the same row chose in the layer before."""
        experts = batch.layer.num_experts
        flow = torch.zeros(experts, experts, dtype=torch.int64)
        if batch.layer_before is not None and len(batch.before) == len(selected) and int(batch.before.max()) < experts:
            flow = (torch.zeros_like(selected).scatter_(1, batch.before, 1.0).T @ selected).round().long()
        self.flows.add(batch, flow)
        self.sources.add(batch, -1 if batch.layer_before is None else batch.layer_before)

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        pairs = self.both.array
        chosen = chosen_rows(pairs)
        flow = self.flows.array
        variables = {
            "pairs": pairs,
            "conditional": pairs / chosen,
            "lift": pairs.copy(data=lift({"count": pairs.values, "rows": self.rows.array.values})),
            "chance_lift": self._chance(pairs),
            "flow": flow / flow.sum("expert"),
            "flow_chance": chosen / chosen.sum("expert"),
        }
        if not self.chance:
            variables = {name: value for name, value in variables.items() if "chance" not in name}
        if self.bootstrap:
            counted = zip(*(PerUnit.tables(state)[""] for state in (self.both, self.rows)), strict=True)
            drawn = [lift_interval(count, rows, self.bootstrap) for count, rows in counted]
            for end, values in zip(("low", "high"), zip(*drawn, strict=True), strict=True):
                variables[f"lift_{end}"] = pairs.copy(data=np.stack(values))
        return variables

    def _chance(self, pairs: xr.DataArray) -> xr.DataArray:
        """Lift of experts that are chosen as often, without regard to each other."""
        k, experts = self.k.array, pairs.sizes["expert"]
        if self.as_published:
            return experts * (k - 1) / (k * max(experts - 1, 1))
        share = (chosen_rows(pairs) / self.rows.array).values
        together = np.stack([chance_pairs(one, int(choices)) for one, choices in zip(share, k.values, strict=True)])
        with np.errstate(divide="ignore", invalid="ignore"):
            return pairs.copy(data=together / (share[:, :, None] * share[:, None, :]))

    def notes(self, source: Source) -> Mapping[str, Any]:
        before = {layer: int(self.sources[layer]) for layer in self.sources.layers}
        return {"flow_from": "; ".join(f"{layer} from {b}" for layer, b in before.items() if b >= 0)}


def chosen_rows(pairs: xr.DataArray) -> xr.DataArray:
    """Rows that chose each expert: the diagonal, (layer, expert)."""
    return pairs.isel(other=0, drop=True).copy(data=np.diagonal(pairs.values, axis1=-2, axis2=-1))


def lift(total: Mapping[str, np.ndarray]) -> np.ndarray:
    """P(both) / (P(expert) P(other)), of counts (..., E, E) among rows (...)."""
    count = total["count"].astype(float)
    chosen = np.diagonal(count, axis1=-2, axis2=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return count * total["rows"][..., None, None] / (chosen[..., :, None] * chosen[..., None, :])


def lift_interval(count: np.ndarray, rows: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the lift of pairs (documents, E, E); nan where chance would make fewer than LEAST_PAIRS.

    What is known is told by how often chance would make the pair, and not by how often it is seen: pairs that are seen
    often by chance alone would be picked otherwise.
    """
    chosen = np.diagonal(count, axis1=1, axis2=2).astype(float)
    by_chance = chosen[:, :, None] * chosen[:, None, :] / rows[:, None, None]
    ends = interval(lift, {"count": count, "rows": rows}, draws, by_chance, (0, np.inf))
    few = by_chance.sum(0) < LEAST_PAIRS
    return np.where(few, np.nan, ends[0]), np.where(few, np.nan, ends[1])


def neighbors(batch: LayerBatch) -> Callable[[Any], torch.Tensor]:
    """Counts (E, E) of pairs next to each other in the top-k list, both ways round; the diagonal counts choices."""
    experts = batch.layer.num_experts
    index, _ = batch.ranked()

    def count(rows: Any) -> torch.Tensor:
        one, other = index[rows, :-1].flatten(), index[rows, 1:].flatten()
        pairs = torch.bincount(one * experts + other, minlength=experts**2).view(experts, experts)
        return pairs + pairs.T + torch.diag(torch.bincount(index[rows].flatten(), minlength=experts))

    return count
