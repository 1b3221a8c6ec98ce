"""Which experts work together: on one token, and from layer to layer (OLMoE, arXiv 2409.02060, section 5.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis, Sums
from moe_probe.routing import LayerBatch
from moe_probe.statistics.bootstrap import BLOCKS, block_sums, check_draws, interval
from moe_probe.texts.corpus import Corpus


class Coactivation(Analysis):
    """Pairs of experts chosen by the same token (or sub-token), and the flow from each MoE layer to the next one.

    All pairs of the k chosen experts count.

    The result has, per layer, `count` (layer, expert, other), int64: rows that chose both, on the diagonal those that
    chose the expert; `conditional`, P(other | expert); `lift`, P(both) / (P(expert) P(other)), 1 if independent;
    `chance_lift`, what k experts drawn at random without preference would have: E (k - 1) / (k (E - 1)); and, from
    the second layer on, `flow` (layer, source, expert): the share of the choices of a row in this layer, given that it
    chose `source` in the MoE layer before; nan in the first one; `flow_chance` (layer, expert): that share whatever
    was chosen before. `lift_low` and `lift_high`: 95 % bootstrap interval over documents.

    Args:
        bootstrap: draws of the interval; 0 for none (32 times less memory).
        chance: whether to give the chance levels.
        as_published: count what OLMoE's code counts, pairs of neighbours in the top-k list, best score first; for k
            above 2 that leaves most pairs out.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.coactivation("ckpt/tiny-mixtral", ["A short text."]).lift.dims
        ('layer', 'expert', 'other')
    """

    name = "coactivation"

    def __init__(self, bootstrap: int = 200, chance: bool = True, as_published: bool = False):
        self.bootstrap, self.chance, self.as_published = check_draws(bootstrap), chance, as_published
        self._pairs = _Pairs(bootstrap, as_published)
        self._before: dict[int, tuple[int, np.ndarray]] = {}  # first document of a batch: layer, chosen experts

    def update(self, batch: LayerBatch) -> None:
        first = int(batch.tokens.document[0])
        if any(layer > batch.layer.index for layer, _ in self._before.values()):
            self._before.clear()  # the next batch of a resident pass
        self._pairs.before = self._before.get(first, (None, None))[1]
        self._pairs.update(batch)
        self._before[first] = batch.layer.index, batch.top_k_index.cpu().numpy().astype(np.int16)

    def merge(self, other: Self) -> None:
        self._pairs.merge(other._pairs)

    def state(self) -> dict[str, np.ndarray]:
        before = {f"before/{first}/{layer}": index for first, (layer, index) in self._before.items()}
        return {**self._pairs.state(), **before}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        before = {key: state.pop(key) for key in list(state) if key.startswith("before/")}
        places = {key: [int(part) for part in key.split("/")[1:]] for key in before}
        self._before = {first: (layer, before[key]) for key, (first, layer) in places.items()}
        self._pairs.restore(state)

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        found = self._pairs.result(model, corpus).assign_attrs(self.attrs(model, corpus))
        return found if self.chance else found.drop_vars(["chance_lift", "flow_chance"])


class _Pairs(Sums):
    name = "coactivation"

    def __init__(self, bootstrap: int, as_published: bool) -> None:
        super().__init__()
        self.before: np.ndarray | None = None
        self.bootstrap, self.as_published = bootstrap, as_published

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        selected = batch.selected.double()
        flow = torch.zeros(batch.layer.num_experts, batch.layer.num_experts, dtype=torch.float64)
        if self.before is not None:
            source = torch.from_numpy(self.before.astype(np.int64)).to(selected.device)
            flow = torch.zeros_like(selected).scatter_(1, source, 1.0).T @ selected
        count = _neighbours(batch) if self.as_published else lambda rows: selected[rows].T @ selected[rows]
        parts = BLOCKS if self.bootstrap else 1
        block = np.repeat(batch.tokens.document, batch.layer.subtokens) % parts
        blocks = torch.zeros(parts, *flow.shape, dtype=torch.int32)
        for at in np.unique(block):
            blocks[at] = count(torch.from_numpy(np.flatnonzero(block == at)).to(selected.device)).round().int().cpu()
        return {
            "count": blocks,
            "flow": flow,
            "rows": block_sums(torch.ones(len(selected)), block, parts),
            "least_k": torch.tensor(batch.top_k_index.shape[1]),
        }

    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        count, k = sums["count"].sum(1, dtype=np.int64), sums["least_k"]  # (layers, E, E)
        experts = count.shape[-1]
        totals = {"count": count, "rows": sums["rows"].sum(1)}
        with np.errstate(divide="ignore", invalid="ignore"):
            conditional = count / np.diagonal(count, axis1=1, axis2=2)[:, :, None]
            flow = sums["flow"] / sums["flow"].sum(-1, keepdims=True)
            lift = _lift(totals)
        labels = [str(expert) for expert in range(experts)]
        pair = ("layer", "expert", "other")
        chosen = np.diagonal(count, axis1=1, axis2=2)
        variables: dict[str, Any] = {
            "count": (pair, count),
            "conditional": (pair, conditional),
            "lift": (pair, lift),
            "chance_lift": (("layer",), experts * (k - 1) / (k * max(experts - 1, 1))),
            "flow": (("layer", "source", "expert"), flow),
            "flow_chance": (("layer", "expert"), chosen / chosen.sum(1, keepdims=True)),
        }
        if self.bootstrap:
            bounds = [
                interval(_lift, {"count": c, "rows": r}, self.bootstrap)
                for c, r in zip(sums["count"], sums["rows"], strict=True)
            ]
            for end, both in zip(("low", "high"), zip(*bounds, strict=True), strict=True):
                variables[f"lift_{end}"] = (pair, np.stack(both))
        return variables, {"expert": labels, "other": labels, "source": labels}


def _lift(total: Mapping[str, np.ndarray]) -> np.ndarray:
    """P(both) / (P(expert) P(other)), of counts (..., E, E) among rows (...)."""
    chosen = np.diagonal(total["count"], axis1=-2, axis2=-1)
    return total["count"] * total["rows"][..., None, None] / (chosen[..., :, None] * chosen[..., None, :])


def _neighbours(batch: LayerBatch) -> Callable[[Any], torch.Tensor]:
    """Counts (E, E) of pairs next to each other in the top-k list, both ways round; the diagonal counts choices."""
    experts = batch.layer.num_experts
    order = batch.scores.gather(1, batch.top_k_index).argsort(dim=1, descending=True, stable=True)
    index = batch.top_k_index.gather(1, order)

    def count(rows: Any) -> torch.Tensor:
        one, other = index[rows, :-1].flatten(), index[rows, 1:].flatten()
        pairs = torch.bincount(one * experts + other, minlength=experts**2).view(experts, experts)
        return pairs + pairs.T + torch.diag(torch.bincount(index[rows].flatten(), minlength=experts))

    return count
