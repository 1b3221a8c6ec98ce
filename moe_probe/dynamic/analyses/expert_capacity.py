"""What a limit to the tokens per expert would drop, from routing that was recorded without one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from moe_probe.dynamic.per_token import PerToken, by_token
from moe_probe.errors import InputError
from moe_probe.routing import LayerBatch
from moe_probe.statistics.capacity import ORDERS, capacity, places
from moe_probe.texts.corpus import Corpus

FACTORS = tuple(np.arange(0.5, 4.01, 0.25).tolist())


class ExpertCapacity(PerToken):
    """Choices and tokens dropped against the capacity factor, by order of arrival (GShard, Switch, V-MoE, MH-MoE).

    See `moe_probe.statistics.capacity` for the rule and the orders. Rows are tokens, or sub-tokens; a batch is
    `batch_documents` documents in the order of the corpus.

    The result has, (layer, order, factor), float64: `dropped`, the share of choices without a place (with `overflow`
    (..., slot) by choice); `fully_dropped`, the share of rows none of whose choices has one; `second_dropped`, the
    share of second choices lost where they are also kept only with probability min(1, 2 g_2), g_2 = w_2 / (w_1 + w_2)
    (GShard's random routing, algorithm 1: those that are not kept take a place nevertheless; the expected share); and
    `capacity` (layer, factor) of the largest batch; `second_keep_probability` (layer), the mean of that probability.

    It keeps every choice, 6 bytes each, until the end.

    Args:
        factors: capacity factors.
        orders: of arrival, of `slot`, `token` and `score`.
        groups: consecutive groups of a batch's rows that have places of their own (GShard's local groups).
        batch_documents: documents per batch; by default the corpus is one batch.

    Raises:
        InputError: there is no such order, or no factor, or one that is not positive.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.expert_capacity("ckpt/tiny-mixtral", ["A short text."], factors=[1.0, 2.0])
        >>> ds.dropped.dims
        ('layer', 'order', 'factor')
    """

    name = "expert_capacity"

    def __init__(
        self,
        factors: Sequence[float] = FACTORS,
        orders: Sequence[str] = ORDERS,
        groups: int = 1,
        batch_documents: int | None = None,
    ):
        super().__init__()
        if not len(factors) or min(factors) <= 0:
            raise InputError(f"Capacity factors are positive numbers, not {list(factors)}.")
        unknown = [order for order in orders if order not in ORDERS]
        if unknown or not len(orders):
            raise InputError(f"There is no order of arrival {unknown or 'none'}; there are {', '.join(ORDERS)}.")
        if groups < 1 or (batch_documents is not None and batch_documents < 1):
            raise InputError("There is at least one group, and at least one document in a batch.")
        self.factors, self.orders = [float(factor) for factor in factors], list(orders)
        self.groups, self.batch_documents = groups, batch_documents

    def measure(self, batch: LayerBatch) -> dict[str, np.ndarray]:
        order = batch.scores.gather(1, batch.top_k_index).argsort(dim=1, descending=True, stable=True)
        index, weights = batch.top_k_index.gather(1, order), batch.top_k_weights.gather(1, order)
        return {
            "index": by_token(index.cpu(), batch).astype(np.int16),
            "weight": by_token(weights.cpu(), batch).astype(np.float32),
        }

    def dataset(
        self, model: Any, corpus: Corpus, layers: list[int], values: dict[str, np.ndarray]
    ) -> tuple[dict, dict]:
        lengths = [len(document.ids) for document in corpus.documents]
        step = self.batch_documents or len(lengths)
        ends = np.cumsum(lengths)[step - 1 :: step].tolist()
        bounds = [0, *ends] if ends and ends[-1] == sum(lengths) else [0, *ends, sum(lengths)]
        found = [self._layer(model.layer(layer), values, at, bounds) for at, layer in enumerate(layers)]
        dims = {"overflow": ("order", "factor", "slot"), "capacity": ("factor",), "second_keep_probability": ()}
        variables = {
            name: (("layer", *dims.get(name, ("order", "factor"))), np.stack([one[name] for one in found]))
            for name in found[0]
        }
        coords = {"order": self.orders, "factor": self.factors, "slot": np.arange(1, 1 + model.layer(layers[0]).top_k)}
        return variables, coords

    def _layer(self, layer: Any, values: dict[str, np.ndarray], at: int, bounds: list[int]) -> dict[str, np.ndarray]:
        index, weight = (values[name][at].reshape(-1, layer.top_k) for name in ("index", "weight"))
        shape = (len(self.orders), len(self.factors))
        lost, none, second, most = np.zeros((*shape, layer.top_k)), np.zeros(shape), np.zeros(shape), 0
        with np.errstate(divide="ignore", invalid="ignore"):
            keep = np.minimum(1, 2 * weight[:, 1] / weight[:, :2].sum(1)) if layer.top_k > 1 else np.ones(len(weight))
        for start, end in pairwise(bounds):
            rows = slice(start * layer.subtokens, end * layer.subtokens)
            size = rows.stop - rows.start
            most = max(most, size)
            for i, order in enumerate(self.orders):
                place = places(index[rows], weight[rows], layer.num_experts, order, self.groups)
                for j, factor in enumerate(self.factors):
                    dropped = place >= capacity(size, layer.num_experts, layer.top_k, factor, self.groups)
                    lost[i, j] += dropped.sum(0)
                    none[i, j] += dropped.all(1).sum()
                    if layer.top_k > 1:
                        second[i, j] += (1 - (~dropped[:, 1] * keep[rows])).sum()
        total = len(index)
        found = {
            "dropped": lost.mean(-1) / total,
            "overflow": lost / total,
            "fully_dropped": none / total,
            "capacity": np.asarray(
                [capacity(most, layer.num_experts, layer.top_k, factor, self.groups) for factor in self.factors]
            ),
        }
        if layer.top_k > 1:
            found |= {"second_dropped": second / total, "second_keep_probability": np.asarray(keep.mean())}
        return found
