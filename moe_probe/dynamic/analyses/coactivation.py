"""Which experts work together: on one token, and from layer to layer (OLMoE, arXiv 2409.02060, section 5.3)."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis, LayerBatch, Sums
from moe_probe.dynamic.corpus import Corpus


class Coactivation(Analysis):
    """Pairs of experts chosen by the same token (or sub-token), and the flow from each MoE layer to the next one.

    All pairs of the k chosen experts count (OLMoE's published code counts only neighbours in the top-k list).

    The result has, per layer, `count` (layer, expert, other), int64: rows that chose both, on the diagonal those that
    chose the expert; `conditional`, P(other | expert); `lift`, P(both) / (P(expert) P(other)), 1 if independent;
    `chance_lift`, what k experts drawn at random without preference would have: E (k - 1) / (k (E - 1)); and, from
    the second layer on, `flow` (layer, source, expert): the share of the choices of a row in this layer, given that it
    chose `source` in the MoE layer before; nan in the first one.

    Example:
        >>> from moe_probe import dynamic
        >>> dynamic.coactivation("ckpt/tiny-mixtral", ["A short text."]).lift.dims
        ('layer', 'expert', 'other')
    """

    name = "coactivation"

    def __init__(self) -> None:
        self._pairs = _Pairs()
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
        return self._pairs.result(model, corpus).assign_attrs(self.attrs(model, corpus))


class _Pairs(Sums):
    name = "coactivation"

    def __init__(self) -> None:
        super().__init__()
        self.before: np.ndarray | None = None

    def parameters(self) -> dict[str, Any]:
        return {}

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        selected = batch.selected.double()
        flow = torch.zeros(batch.layer.num_experts, batch.layer.num_experts, dtype=torch.float64)
        if self.before is not None:
            source = torch.from_numpy(self.before.astype(np.int64)).to(selected.device)
            flow = torch.zeros_like(selected).scatter_(1, source, 1.0).T @ selected
        return {
            "count": (selected.T @ selected).round().long(),
            "flow": flow,
            "rows": torch.tensor(len(selected)),
            "least_k": torch.tensor(batch.top_k_index.shape[1]),
        }

    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        count, k = sums["count"], sums["least_k"]
        chosen = np.diagonal(count, axis1=1, axis2=2).astype(float)
        experts = count.shape[-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            conditional = count / chosen[:, :, None]
            lift = count * sums["rows"][:, None, None] / (chosen[:, :, None] * chosen[:, None, :])
            flow = sums["flow"] / sums["flow"].sum(-1, keepdims=True)
        labels = [str(expert) for expert in range(experts)]
        pair = ("layer", "expert", "other")
        variables = {
            "count": (pair, count),
            "conditional": (pair, conditional),
            "lift": (pair, lift),
            "chance_lift": (("layer",), experts * (k - 1) / (k * max(experts - 1, 1))),
            "flow": (("layer", "source", "expert"), flow),
        }
        return variables, {"expert": labels, "other": labels, "source": labels}
