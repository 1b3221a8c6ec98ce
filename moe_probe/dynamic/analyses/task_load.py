"""Experts that each task uses, and how many are FFN experts (MoE++, arXiv 2410.07348, figures 4 and A to E)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from scipy.stats import permutation_test, rankdata, spearmanr

from moe_probe.dynamic.analysis import Analysis, expert_labels, labeled
from moe_probe.errors import NotFitting
from moe_probe.families import Layer
from moe_probe.routing import LayerBatch, Source
from moe_probe.statistics.bootstrap import DRAWS, check_draws, ratio_interval
from moe_probe.statistics.by_label import (
    add_by_label,
    apart,
    expert_shares,
    labeled_tables,
    share_tests,
    total_variation,
    totals,
)
from moe_probe.statistics.states import PerUnit, TokenTable

KINDS = ["ffn", "constant", "copy", "zero"]
LEAST_TASKS = 3  # two points always lie on a line
UNDEFINED = "a correlation over tasks takes at least three (labels=), as two points always lie on a line, that differ"
MOST_ORDERS = 10_000
Variables = dict[str, tuple[tuple[str, ...], Any]]


@dataclass
class TaskLoad(Analysis):
    """Load by layer, task (the documents' label) and kind of expert; tokens of a task are pooled.

    p[t,l,e] is the share of expert e in the choices of task t in layer l, and k the number of choices per token (or
    sub-token). The result has, float64:

    - `share` (task, layer, expert), p, and `share_chance` (layer, expert), the share over all tasks; `share_p` (task,
      layer, expert), the two-sided p-value of their difference, the share of random permutations of the tasks among
      documents with a difference as large, and `share_q`, with the false discovery rate controlled over tasks, layers
      and experts (Benjamini and Hochberg 1995);
    - `ffn_per_token` (task, layer), k times the sum of p over the experts of kind `ffn`;
    - `activation` (task, layer, kind), k times the sum of p over the experts of a kind, and `activation_per_expert`,
      that divided by the number of these experts;
    - `correlation` (layer, other), Pearson's correlation of `ffn_per_token` over tasks (its attribute `undefined` says
      why a value is nan), and `token_correlation` (layer, other), that of tokens' counts of FFN experts over tokens;
    - `adjacent_correlation` and `adjacent_token_correlation`, their means over adjacent layers (the paper claims that
      adjacent layers agree);
    - `task_distance` (layer), the mean over pairs of tasks (a, b) of half the sum over experts of |p_a - p_b|, and
      `ffn_spread` (layer), the standard deviation of `ffn_per_token` over tasks (the paper claims that both are larger
      in shallow and last layers). Both are corrected for the variation among documents of a task
      (`moe_probe.statistics.by_label.apart`), and nan if a task has fewer than five documents;
    - with accuracies, `zero_accuracy` and `layer_zero_accuracy` (layer), Spearman's correlation of the activation of
      zero experts with accuracy over tasks, and `zero_accuracy_p`, its two-sided p-value from all orders of the tasks
      (or 10,000 of them).

    `share`, `ffn_per_token`, `task_distance` and `ffn_spread` have 95 % intervals, `_low` and `_high`, from documents
    resampled within tasks. `task_distance_chance`, `task_distance_chance_low` and `task_distance_chance_high` are the
    distance if the tasks are permuted among documents, and `task_distance_p` is the share of permutations with a
    distance as large; likewise for `ffn_spread`.

    Args:
        accuracy: the model's accuracy by task, such as `{"sums": 0.9, "prose": 0.4}`.
        bootstrap: resamples of the documents for the intervals; 0 for none.
        permutations: permutations of the tasks for the chance levels and p-values; 0 for none.
        as_published: omit the correction of distance and spread, which are then above 0 even if tasks do not differ.

    Raises:
        InputError: documents have no labels, or all the same, or accuracies are missing for a task.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.task_load("ckpt/tiny-moe-plus-plus", ["1 + 1 = 2", "A word."], labels=["sums", "prose"])
        >>> ds.share.dims
        ('task', 'layer', 'expert')
    """

    accuracy: Mapping[str, float] | None = None
    bootstrap: int = DRAWS
    permutations: int = DRAWS
    as_published: bool = False

    name = "task_load"
    title = "Task load"
    unasked = True
    legend = {
        "share": ("share of choices", "1"),
        "ffn_per_token": ("FFN experts per token", "experts"),
        "activation": ("experts of a kind per token", "experts"),
        "task_distance": ("mean total variation distance of tasks", "1"),
        "ffn_spread": ("spread of FFN experts per token over tasks", "experts"),
    }

    by_task, ffn = PerUnit("expert"), TokenTable(dtype=np.uint8)

    def __post_init__(self) -> None:
        if self.accuracy is not None:
            self.accuracy = {str(task): float(value) for task, value in self.accuracy.items()}
        check_draws(self.bootstrap)
        check_draws(self.permutations, "permutations")

    @classmethod
    def example(cls) -> Self:
        return cls(bootstrap=9, permutations=9)

    def check(self, source: Source) -> None:
        tasks = {document.label for document in source.corpus.documents} - {""}
        if len(tasks) < 2:
            labels = f"only {tasks.pop()!r}" if tasks else "none"
            raise NotFitting(
                f"task_load compares tasks: give documents at least two labels (labels=); they have {labels}."
            )
        lacking = sorted(tasks - set(self.accuracy)) if self.accuracy is not None else []
        if lacking:
            raise NotFitting(f"accuracy lacks the tasks {', '.join(lacking)}; pass a number for each.")

    def update(self, batch: LayerBatch) -> None:
        add_by_label(self.by_task, batch)
        ffn = torch.tensor([kind == "ffn" for kind in batch.layer.expert_kinds], device=batch.top_k_index.device)
        self.ffn.add(batch, batch.by_token(ffn[batch.top_k_index].sum(1)).sum(1))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        tables = labeled_tables(self.by_task)
        tasks, layers, layer = list(tables), self.by_task.layers, source.first_layer
        kinds = [kind for kind in KINDS if kind in layer.expert_kinds]
        of_kind = np.asarray([[kind == k for kind in layer.expert_kinds] for k in kinds], dtype=float)
        counts = totals(tables)
        load = expert_shares(counts)
        activation = layer.top_k * (counts @ of_kind.T / counts.sum(-1, keepdims=True))  # (layers, tasks, kinds)
        weight = layer.top_k * of_kind[kinds.index("ffn")]
        variables = self._descriptions(load, activation, of_kind, kinds.index("ffn")) | self._apart(tables, weight)
        if "zero" in kinds and self.accuracy is not None:
            variables |= _with_accuracy(activation[..., kinds.index("zero")], [self.accuracy[task] for task in tasks])
        if self.bootstrap:
            variables |= _intervals(tables, weight, self.bootstrap)
        if self.permutations:
            tested = zip(("share_p", "share_q"), share_tests(tables, self.permutations), strict=True)
            variables |= {name: (("layer", "task", "expert"), values) for name, values in tested}
            variables["share_chance"] = ("layer", "expert"), expert_shares(counts.sum(1))
        coords = self._named(layers, tasks, kinds, layer)
        order = ("task", "layer", "other", "kind", "expert")
        named = {n: v.transpose(*(d for d in order if d in v.dims)) for n, v in labeled(variables, coords).items()}
        for name in ("correlation", "adjacent_correlation"):
            named[name] = named[name].assign_attrs(undefined=UNDEFINED)
        return named

    def _descriptions(self, load: np.ndarray, activation: np.ndarray, of_kind: np.ndarray, ffn_at: int) -> Variables:
        ffn = activation[..., ffn_at]
        variables: Variables = {
            "share": (("layer", "task", "expert"), load),
            "ffn_per_token": (("layer", "task"), ffn),
            "activation": (("layer", "task", "kind"), activation),
            "activation_per_expert": (("layer", "task", "kind"), activation / of_kind.sum(1)),
        }
        over_tasks = ffn if ffn.shape[1] >= LEAST_TASKS else np.full_like(ffn, np.nan)
        return variables | _correlations("", over_tasks) | _correlations("token_", self.ffn.array.values)

    def _apart(self, tables: Mapping[str, np.ndarray], weight: np.ndarray) -> Variables:
        """Distance of the tasks in their shares of experts, and spread of their FFN experts per token."""
        variables: Variables = {}
        for name, shares, spread in (
            ("task_distance", expert_shares, total_variation),
            ("ffn_spread", lambda counts: expert_shares(counts) @ weight[:, None], _deviation),
        ):
            one = apart(tables, shares, spread, self.bootstrap, self.permutations, self.as_published)
            variables |= {f"{name}{ending}": (("layer",), getattr(one, of)) for ending, of in self._parts().items()}
        return variables

    def _parts(self) -> dict[str, str]:
        """Endings of the variables' names, and the attributes of `Apart` that they hold."""
        interval = {"_low": "low", "_high": "high"} if self.bootstrap else {}
        chance = ("chance", "chance_low", "chance_high", "p") if self.permutations else ()
        return {"": "value", **interval, **{f"_{part}": part for part in chance}}

    def _named(self, layers: list[int], tasks: list[str], kinds: list[str], layer: Layer) -> dict[str, Any]:
        coords: dict[str, Any] = {"layer": layers, "other": layers, "task": tasks, "kind": kinds}
        coords["expert"] = expert_labels(layer.num_experts)
        coords["expert_kind"] = ("expert", list(layer.expert_kinds))
        if self.accuracy is not None:
            coords["accuracy"] = ("task", [self.accuracy[task] for task in tasks])
        return coords


def _deviation(values: np.ndarray) -> np.ndarray:
    """Standard deviation over tasks, (..., tasks, 1) to (...)."""
    return values[..., 0].std(-1)


def _correlations(name: str, values: np.ndarray) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Pearson's correlation of layers, from values (layers, n); nan for a layer with equal values only."""
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.atleast_2d(np.corrcoef(values))
        adjacent = np.diagonal(correlation, 1)
        mean = adjacent[~np.isnan(adjacent)].mean() if (~np.isnan(adjacent)).any() else np.nan
    return {f"{name}correlation": (("layer", "other"), correlation), f"adjacent_{name}correlation": ((), mean)}


def _with_accuracy(zero: np.ndarray, accuracy: list[float]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Spearman's correlation of the activations of zero experts (layers, tasks) with accuracies."""
    if len(accuracy) < 3:
        raise NotFitting(
            f"A correlation with accuracy needs at least three tasks; there are {len(accuracy)}. Pass more tasks."
        )
    statistic, p_value = exact_spearman(zero.mean(0), accuracy)
    by_layer = [spearmanr(one, accuracy)[0] for one in zero]
    return {
        "zero_accuracy": ((), statistic),
        "zero_accuracy_p": ((), p_value),
        "layer_zero_accuracy": (("layer",), np.asarray(by_layer)),
    }


def exact_spearman(one: np.ndarray, other: Sequence[float]) -> tuple[float, float]:
    """Spearman's correlation, and its two-sided p-value from all orders, or from MOST_ORDERS random ones.

    Examples:
        >>> round(exact_spearman(np.arange(4.0), [1, 2, 3, 4])[1], 4)  # 2 of 4! orders
        0.0833
    """
    fixed = rankdata(other) - (len(other) + 1) / 2

    def statistic(values: np.ndarray, axis: int = -1) -> np.ndarray:
        ranks = rankdata(values, axis=axis) - (len(other) + 1) / 2
        return (ranks * fixed).sum(axis) / np.sqrt((ranks**2).sum(axis) * (fixed**2).sum())

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return np.nan, np.nan
    asked: dict[str, Any] = {"permutation_type": "pairings", "n_resamples": MOST_ORDERS, "vectorized": True}
    test = permutation_test((one,), statistic, rng=np.random.default_rng(0), **asked)
    return float(test.statistic), float(test.pvalue)


def _intervals(tables: Mapping[str, np.ndarray], ffn: np.ndarray, draws: int) -> Variables:
    """Intervals from choices (layers, units, E) by task; `ffn` (E,) weights experts in the FFN experts per token."""
    drawn = {"share": [], "ffn_per_token": []}
    for table in tables.values():
        rows = table.sum(2)
        both = zip(table, rows, strict=True)
        drawn["share"].append([ratio_interval(one, count, draws, (0, 1)) for one, count in both])
        both = zip(table @ ffn, rows, strict=True)
        drawn["ffn_per_token"].append([ratio_interval(one, count, draws, (0, ffn.max())) for one, count in both])
    dims = {"share": ("task", "layer", "expert"), "ffn_per_token": ("task", "layer")}
    return {
        f"{name}_{end}": (dims[name], np.array(values)[:, :, at])
        for name, values in drawn.items()
        for at, end in enumerate(("low", "high"))
    }
