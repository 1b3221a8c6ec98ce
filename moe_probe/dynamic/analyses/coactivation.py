"""Coactivation of experts: on one token, and from layer to layer (OLMoE, arXiv 2409.02060, section 5.2)."""

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
from moe_probe.statistics.by_label import expert_shares
from moe_probe.statistics.margins import chance_pairs
from moe_probe.statistics.states import PerUnit, Same

LEAST_PAIRS = 10  # that chance makes, from which on an interval is given
BLOCKS, FLOW_BLOCKS = 64, 16  # groups of documents whose tables of pairs, and of flows, are kept


@dataclass
class Coactivation(Analysis):
    """Pairs of experts that the same token (or sub-token) chooses, and the flow from each MoE layer to the next one.

    All pairs of the k chosen experts count. Rows are tokens, or sub-tokens. The result has, float64 unless said
    otherwise:

    - `pairs` (layer, expert, other), int64: rows that choose both; on the diagonal, rows that choose the expert;
    - `conditional` (layer, expert, other): P(other | expert);
    - `lift` (layer, expert, other): P(both) / (P(expert) P(other)), 1 if independent; with `lift_low` and `lift_high`,
      its 95 % interval over documents, nan for pairs of which chance predicts fewer than ten;
    - `chance_lift` (layer, expert, other): the lift if k experts were drawn one after the other, each as often as it
      is chosen, independently of the others (`moe_probe.statistics.margins`); mostly below 1, because choosing one
      expert leaves one choice less for the others;
    - `flow` (layer, source, expert): the share of each expert among the choices of rows that chose `source` in the
      previous MoE layer; nan in the first MoE layer, and if the previous one is not known or has more experts;
    - `flow_chance` (layer, expert): the same share whatever was chosen before;
    - `flow_excess` (layer, source, expert): `flow` less `flow_chance`, 0 if the previous choice does not matter; with
      `flow_excess_low` and `flow_excess_high`, its 95 % interval over documents, nan where chance predicts fewer than
      ten choices.

    Args:
        bootstrap: resamples of the documents for the intervals; 0 for none (64 times less memory).
        chance: whether to compute the chance levels.
        as_published: count what OLMoE's code counts, pairs of neighbors in the top-k list, highest score first, which
            omits most pairs if k is above 2. `chance_lift` (layer) is then the lift if all experts were chosen equally
            often, E (k - 1) / (k (E - 1)).

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
        "flow": ("share of choices after choosing source in the previous MoE layer", "1"),
        "flow_excess": ("share after choosing source, above that of all rows", "1"),
    }

    both, rows = PerUnit("expert", "other", most=BLOCKS), PerUnit(most=BLOCKS)
    flows, sources, k = PerUnit("source", "expert", most=FLOW_BLOCKS), Same(), Same()

    def __post_init__(self) -> None:
        check_draws(self.bootstrap)

    def update(self, batch: LayerBatch) -> None:
        selected, layer = batch.selected.double(), batch.layer
        unit = np.repeat(batch.tokens.unit, layer.subtokens) if self.bootstrap else np.zeros(len(selected), np.int64)
        count = neighbors(batch) if self.as_published else lambda rows: selected[rows].T @ selected[rows]
        before = chosen_before(batch, selected)
        units = np.unique(unit)
        rows = [torch.from_numpy(np.flatnonzero(unit == each)).to(selected.device) for each in units]
        self.both.add(batch, (units, torch.stack([count(each).round().long().cpu() for each in rows])))
        flows = torch.stack([(before[each].T @ selected[each]).round().long().cpu() for each in rows])
        self.flows.add(batch, (units, flows))
        self.rows.add(batch, (unit, torch.ones(len(selected), dtype=torch.int64)))
        self.k.add(batch, batch.top_k_index.shape[1])
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
        variables["flow_excess"] = flow.copy(data=flow_excess({"flow": flow.values}))
        if not self.chance:
            variables = {n: v for n, v in variables.items() if "chance" not in n and "excess" not in n}
        return variables | (self._intervals(variables) if self.bootstrap else {})

    def _intervals(self, variables: Mapping[str, xr.DataArray]) -> dict[str, xr.DataArray]:
        """Intervals of the lift and, with chance levels, of the flow."""
        both, rows, flows = (PerUnit.tables(state)[""] for state in (self.both, self.rows, self.flows))
        drawn = {"lift": [lift_interval(*one, self.bootstrap) for one in zip(both, rows, strict=True)]}
        if "flow_excess" in variables:
            drawn["flow_excess"] = [flow_interval(one, self.bootstrap) for one in flows]
        return {
            f"{name}_{end}": variables[name].copy(data=np.stack(values))
            for name, ends in drawn.items()
            for end, values in zip(("low", "high"), zip(*ends, strict=True), strict=True)
        }

    def _chance(self, pairs: xr.DataArray) -> xr.DataArray:
        """Lift of experts that are chosen as often, but independently of each other."""
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
    """Number of rows that chose each expert, the diagonal: (layer, expert)."""
    return pairs.isel(other=0, drop=True).copy(data=np.diagonal(pairs.values, axis1=-2, axis2=-1))


def lift(total: Mapping[str, np.ndarray]) -> np.ndarray:
    """Lift P(both) / (P(expert) P(other)) from counts (..., E, E) among rows (...)."""
    count = total["count"].astype(float)
    chosen = np.diagonal(count, axis1=-2, axis2=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return count * total["rows"][..., None, None] / (chosen[..., :, None] * chosen[..., None, :])


def lift_interval(count: np.ndarray, rows: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the lift of pairs (documents, E, E); nan for pairs of which chance predicts fewer than LEAST_PAIRS.

    The predicted and not the observed count decides: the observed one would select pairs that are frequent by chance.
    """
    chosen = np.diagonal(count, axis1=1, axis2=2).astype(float)
    by_chance = chosen[:, :, None] * chosen[:, None, :] / rows[:, None, None]
    ends = interval(lift, {"count": count, "rows": rows}, draws, by_chance, (0, np.inf))
    few = by_chance.sum(0) < LEAST_PAIRS
    return np.where(few, np.nan, ends[0]), np.where(few, np.nan, ends[1])


def chosen_before(batch: LayerBatch, selected: torch.Tensor) -> torch.Tensor:
    """Which experts the same rows chose in the previous MoE layer, (n, E) of 0 and 1; all 0 if that is not known."""
    before = torch.zeros_like(selected)
    known = batch.layer_before is not None and len(batch.before) == len(selected)
    if known and int(batch.before.max()) < batch.layer.num_experts:
        before.scatter_(1, batch.before, 1.0)
    return before


def flow_excess(total: Mapping[str, np.ndarray]) -> np.ndarray:
    """Shares of experts after each source, less those after any, from counts (..., sources, E)."""
    flow = total["flow"]
    return expert_shares(flow) - expert_shares(flow.sum(-2, keepdims=True))


def flow_interval(flow: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the excess from counts (documents, sources, E); nan where chance predicts fewer than LEAST_PAIRS."""
    after = flow.sum(-1, keepdims=True)
    ends = interval(flow_excess, {"flow": flow}, draws, np.broadcast_to(after, flow.shape), (-1, 1))
    few = after.sum(0) * np.nan_to_num(expert_shares(flow.sum((0, 1)))) < LEAST_PAIRS
    return np.where(few, np.nan, ends[0]), np.where(few, np.nan, ends[1])


def neighbors(batch: LayerBatch) -> Callable[[Any], torch.Tensor]:
    """Counts (E, E) of neighbors in the top-k list, in both directions; the diagonal counts choices."""
    experts = batch.layer.num_experts
    index, _ = batch.ranked()

    def count(rows: Any) -> torch.Tensor:
        one, other = index[rows, :-1].flatten(), index[rows, 1:].flatten()
        pairs = torch.bincount(one * experts + other, minlength=experts**2).view(experts, experts)
        return pairs + pairs.T + torch.diag(torch.bincount(index[rows].flatten(), minlength=experts))

    return count
