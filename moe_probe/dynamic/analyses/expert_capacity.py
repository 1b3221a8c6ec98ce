"""The choices that a limit on the tokens per expert would drop, from routing without a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import xarray as xr

from moe_probe.dynamic.analysis import Analysis, labeled
from moe_probe.errors import NoSuchName, OutOfRange
from moe_probe.families import Layer
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.signatures import check_number
from moe_probe.statistics.capacity import ORDERS, arrival_ranks, capacity
from moe_probe.statistics.states import TokenTable

FACTORS = tuple(np.arange(0.5, 4.01, 0.25).tolist())


@dataclass
class ExpertCapacity(Analysis):
    """Dropped choices and tokens against the capacity factor, by order of arrival (GShard, Switch, V-MoE, MH-MoE).

    An expert has a limited number of places per batch; choices that arrive later are dropped.
    `moe_probe.statistics.capacity` defines the limit and the orders of arrival. Rows are tokens, or sub-tokens; a batch
    is `batch_documents` documents in the order of the corpus. The result has, float64 unless said otherwise:

    - `dropped` (layer, order, factor), the share of choices without a place, and `overflow` (layer, order, factor,
      slot), the same for each rank of a choice;
    - `fully_dropped` (layer, order, factor), the share of rows without a place for any choice;
    - `second_dropped` (layer, order, factor), the expected share of second choices that are lost if the router also
      keeps them only with probability min(1, 2 g_2), g_2 = w_2 / (w_1 + w_2) (random routing of GShard, arXiv
      2006.16668, algorithm 1, in which second choices that are not kept still take a place);
    - `second_keep_probability` (layer), float32, the mean of that probability;
    - `capacity` (layer, factor), int64, places per expert and group in the largest batch.

    The analysis keeps every choice, 6 bytes each, until the end.

    Args:
        factors: capacity factors, positive.
        orders: orders of arrival: any of `slot`, `token` and `score`.
        groups: number of consecutive groups of a batch's rows with places of their own (GShard's local groups).
        batch_documents: documents per batch; by default the corpus is one batch.

    Raises:
        InputError: an order is unknown, orders or factors are empty, or a factor is not positive.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.expert_capacity("ckpt/tiny-mixtral", ["A short text."], factors=[1.0, 2.0])
        >>> ds.dropped.dims
        ('layer', 'order', 'factor')
    """

    factors: Sequence[float] = FACTORS
    orders: Sequence[str] = ORDERS
    groups: int = 1
    batch_documents: int | None = None

    name = "expert_capacity"
    title = "Expert capacity"
    unasked = True
    needs = frozenset({Need.WEIGHTS})
    legend = {
        "dropped": ("share of choices dropped", "1"),
        "capacity": ("places per expert and group", "rows"),
        "fully_dropped": ("share of rows without any place", "1"),
    }

    index = TokenTable("rank", subtokens=True, dtype=np.int16)
    weight = TokenTable("rank", subtokens=True, dtype=np.float32)

    def __post_init__(self) -> None:
        if not len(self.factors) or min(self.factors) <= 0:
            raise OutOfRange(f"factors is {list(self.factors)}; pass positive numbers.")
        for order in self.orders:
            if order not in ORDERS:
                raise NoSuchName.among("order of arrival", order, ORDERS)
        if not len(self.orders):
            raise OutOfRange(f"orders is empty; pass some of {', '.join(ORDERS)}.")
        check_number("groups", self.groups, 1)
        if self.batch_documents is not None:
            check_number("batch_documents", self.batch_documents, 1)
        self.factors, self.orders = [float(factor) for factor in self.factors], list(self.orders)

    @classmethod
    def example(cls) -> Self:
        return cls(factors=[0.5, 1.0])

    def update(self, batch: LayerBatch) -> None:
        index, weights = batch.ranked()
        self.index.add(batch, index)
        self.weight.add(batch, weights)

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        lengths = [len(document.ids) for document in source.corpus.documents]
        step = self.batch_documents or len(lengths)
        ends = np.cumsum(lengths)[step - 1 :: step].tolist()
        bounds = [0, *ends] if ends and ends[-1] == sum(lengths) else [0, *ends, sum(lengths)]
        values = {"index": self.index.array.values, "weight": self.weight.array.values}
        layers = self.index.layers
        by_layer = [self._layer(source.layers[layer], values, at, bounds) for at, layer in enumerate(layers)]
        dims = {"overflow": ("order", "factor", "slot"), "capacity": ("factor",), "second_keep_probability": ()}
        variables = {
            name: (("layer", *dims.get(name, ("order", "factor"))), np.stack([one[name] for one in by_layer]))
            for name in by_layer[0]
        }
        slots = np.arange(1, 1 + source.first_layer.top_k)
        return labeled(variables, {"layer": layers, "order": self.orders, "factor": self.factors, "slot": slots})

    def _layer(self, layer: Layer, values: dict[str, np.ndarray], at: int, bounds: list[int]) -> dict[str, np.ndarray]:
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
                place = arrival_ranks(index[rows], weight[rows], layer.num_experts, order, self.groups)
                for j, factor in enumerate(self.factors):
                    dropped = place >= capacity(size, layer.num_experts, layer.top_k, factor, self.groups)
                    lost[i, j] += dropped.sum(0)
                    none[i, j] += dropped.all(1).sum()
                    if layer.top_k > 1:
                        second[i, j] += (1 - (~dropped[:, 1] * keep[rows])).sum()
        total = len(index)
        fractions = {
            "dropped": lost.mean(-1) / total,
            "overflow": lost / total,
            "fully_dropped": none / total,
            "capacity": np.asarray(
                [capacity(most, layer.num_experts, layer.top_k, factor, self.groups) for factor in self.factors]
            ),
        }
        if layer.top_k > 1:
            fractions |= {"second_dropped": second / total, "second_keep_probability": np.asarray(keep.mean())}
        return fractions
