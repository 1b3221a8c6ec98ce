"""Which experts each task uses, and how many that compute (MoE++, arXiv 2410.07348, figures 4 and A to E)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from scipy.stats import spearmanr

from moe_probe.dynamic.analysis import Analysis, expert_labels, labeled
from moe_probe.errors import NotFitting
from moe_probe.families import Layer
from moe_probe.routing import LayerBatch, Source
from moe_probe.statistics.bootstrap import check_draws
from moe_probe.statistics.by_label import (
    add_by_label,
    expert_shares,
    interval_ends,
    permuted,
    resampled,
    stack_labels,
    total_variation,
)
from moe_probe.statistics.states import TokenTable, Total

KINDS = ["ffn", "constant", "copy", "zero"]
Variables = dict[str, tuple[tuple[str, ...], Any]]


@dataclass
class TaskLoad(Analysis):
    """Load by layer, task (the documents' label) and kind of expert; tokens of a task are pooled.

    p[t,l,e] is the share of expert e in the choices of task t in layer l, K the choices per token (or sub-token). The
    result has, float64:

    `share` (task, layer, expert), p; `ffn_per_token` (task, layer), K times p over the experts of kind `ffn`;
    `activation` (task, layer, kind), K times p over the kind, and `activation_per_expert`, that divided by the kind's
    experts; `correlation` (layer, other), Pearson over tasks of `ffn_per_token`, `token_correlation` the same over
    tokens of their counts of FFN experts, and the means over adjacent layers, `adjacent_correlation`,
    `adjacent_token_correlation` (the paper claims that they agree); `task_distance` (layer), the mean over pairs of
    tasks of half the sum over experts of |p_a - p_b|, and `ffn_spread` (layer), the standard deviation over tasks of
    `ffn_per_token` (the paper claims that both are larger in shallow and last layers); with accuracies,
    `zero_accuracy` and `layer_zero_accuracy` (layer), Spearman's correlation of zero experts' activation with
    accuracy over tasks, and `zero_accuracy_p`.

    `share_low`, `share_high`, `ffn_per_token_low`, `_high`, `task_distance_low`, `_high`: 95 % bootstrap intervals,
    with documents drawn within tasks. `task_distance_chance` and its `_low` and `_high`: with the tasks dealt out at
    random among the documents; `share_chance` (layer, expert): the share over all tasks.

    Args:
        accuracy: of the model, by task.
        bootstrap: resamples of the documents for the intervals; 0 for none.
        permutations: draws of the chance level; 0 for none.

    Raises:
        InputError: documents have no labels, or all the same, or accuracies are of other tasks.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.task_load("ckpt/tiny-moe-plus-plus", ["1 + 1 = 2", "A word."], labels=["sums", "prose"])
        >>> ds.share.dims
        ('task', 'layer', 'expert')
    """

    accuracy: Mapping[str, float] | None = None
    bootstrap: int = 200
    permutations: int = 200

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

    by_task, ffn = Total("block", "expert"), TokenTable(dtype=np.uint8)

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
            found = f"only {tasks.pop()!r}" if tasks else "none"
            raise NotFitting(f"task_load compares tasks: give documents at least two labels (labels=); has {found}.")
        lacking = sorted(tasks - set(self.accuracy)) if self.accuracy is not None else []
        if lacking:
            raise NotFitting(f"accuracy lacks the tasks {', '.join(lacking)}; pass a number for each.")

    def update(self, batch: LayerBatch) -> None:
        add_by_label(self.by_task, batch)
        ffn = torch.tensor([kind == "ffn" for kind in batch.layer.expert_kinds], device=batch.top_k_index.device)
        self.ffn.add(batch, batch.by_token(ffn[batch.top_k_index].sum(1)).sum(1))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        tasks, counts = stack_labels(self.by_task)  # (layers, tasks, blocks, E)
        layers, layer = self.by_task.layers, source.first_layer
        kinds = [kind for kind in KINDS if kind in layer.expert_kinds]
        of_kind = np.asarray([[kind == k for kind in layer.expert_kinds] for k in kinds], dtype=float)
        totals = counts.sum(2)
        activation = layer.top_k * (totals @ of_kind.T / totals.sum(-1, keepdims=True))  # (layers, tasks, kinds)
        found = self._descriptions(expert_shares(totals), activation, of_kind, kinds.index("ffn"))
        if "zero" in kinds and self.accuracy is not None:
            found |= _with_accuracy(activation[..., kinds.index("zero")], [self.accuracy[task] for task in tasks])
        if self.bootstrap:
            found |= _intervals(counts, layer.top_k * of_kind[kinds.index("ffn")], self.bootstrap)
        if self.permutations:
            found |= _chance(counts, self.permutations)
        coords = self._named(layers, tasks, kinds, layer)
        order = ("task", "layer", "other", "kind", "expert")
        return {n: v.transpose(*(d for d in order if d in v.dims)) for n, v in labeled(found, coords).items()}

    def _descriptions(self, load: np.ndarray, activation: np.ndarray, of_kind: np.ndarray, ffn_at: int) -> Variables:
        ffn = activation[..., ffn_at]
        found: Variables = {
            "share": (("layer", "task", "expert"), load),
            "ffn_per_token": (("layer", "task"), ffn),
            "activation": (("layer", "task", "kind"), activation),
            "activation_per_expert": (("layer", "task", "kind"), activation / of_kind.sum(1)),
            "task_distance": (("layer",), total_variation(load)),
            "ffn_spread": (("layer",), ffn.std(1)),
        }
        return found | _correlations("", ffn) | _correlations("token_", self.ffn.array.values)

    def _named(self, layers: list[int], tasks: list[str], kinds: list[str], layer: Layer) -> dict[str, Any]:
        coords: dict[str, Any] = {"layer": layers, "other": layers, "task": tasks, "kind": kinds}
        coords["expert"] = expert_labels(layer.num_experts)
        coords["expert_kind"] = ("expert", list(layer.expert_kinds))
        if self.accuracy is not None:
            coords["accuracy"] = ("task", [self.accuracy[task] for task in tasks])
        return coords


def _chance(counts: np.ndarray, draws: int) -> Variables:
    """Of (layers, tasks, blocks, E) choices: what they are with the tasks dealt out at random."""
    null = [total_variation(expert_shares(permuted(one, draws))) for one in counts]
    low, high = interval_ends(np.stack(null, axis=1))
    return {
        "share_chance": (("layer", "expert"), expert_shares(counts.sum((1, 2)))),
        "task_distance_chance": (("layer",), np.mean(null, axis=1)),
        "task_distance_chance_low": (("layer",), low),
        "task_distance_chance_high": (("layer",), high),
    }


def _correlations(name: str, values: np.ndarray) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Pearson's correlation of layers, from values (layers, n); nan for a layer whose values are all the same."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.atleast_2d(np.corrcoef(values))
        adjacent = np.diagonal(found, 1)
        mean = adjacent[~np.isnan(adjacent)].mean() if (~np.isnan(adjacent)).any() else np.nan
    return {f"{name}correlation": (("layer", "other"), found), f"adjacent_{name}correlation": ((), mean)}


def _with_accuracy(zero: np.ndarray, accuracy: list[float]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Spearman's correlation of zero experts' activations (layers, tasks) with accuracies."""
    if len(accuracy) < 3:
        raise NotFitting(
            f"Accuracies of {len(accuracy)} tasks say nothing of a correlation; pass at least three tasks."
        )
    statistic, p_value = spearmanr(zero.mean(0), accuracy)
    by_layer = [spearmanr(one, accuracy)[0] for one in zero]
    return {
        "zero_accuracy": ((), statistic),
        "zero_accuracy_p": ((), p_value),
        "layer_zero_accuracy": (("layer",), np.asarray(by_layer)),
    }


def _intervals(counts: np.ndarray, ffn: np.ndarray, draws: int) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Of (layers, tasks, blocks, E) choices; `ffn` (E,) weights the experts that count for FFN experts per token."""
    drawn = [expert_shares(resampled(one, draws)) for one in counts]
    found = {
        "share": (("layer", "task", "expert"), np.stack([interval_ends(one) for one in drawn], axis=1)),
        "ffn_per_token": (("layer", "task"), np.stack([interval_ends(one @ ffn) for one in drawn], axis=1)),
        "task_distance": (("layer",), np.stack([interval_ends(total_variation(one)) for one in drawn], axis=1)),
    }
    return {
        f"{name}_{end}": (dims, value[at])
        for name, (dims, value) in found.items()
        for at, end in enumerate(("low", "high"))
    }
