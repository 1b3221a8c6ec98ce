"""Which experts each task uses, and how many that compute (MoE++, arXiv 2410.07348, figures 4 and A to E)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import spearmanr

from moe_probe.dynamic.analysis import Sums
from moe_probe.dynamic.parts import Parts
from moe_probe.dynamic.per_token import PerToken, by_token
from moe_probe.errors import InputError
from moe_probe.results import with_attrs
from moe_probe.routing import LayerBatch
from moe_probe.statistics.bootstrap import check_draws
from moe_probe.statistics.by_label import distance, ends, label_sums, permuted, resampled, shares, stacked
from moe_probe.texts.corpus import Corpus

KINDS = ["ffn", "constant", "copy", "zero"]


class TaskLoad(Parts):
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
        bootstrap: draws of the intervals; 0 for none.
        permutations: draws of the chance level; 0 for none.

    Raises:
        InputError: documents have no labels, or all the same, or accuracies are of other tasks.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.task_load("ckpt/tiny-moe-plus-plus", ["1 + 1 = 2", "A word."], labels=["sums", "prose"])
        >>> ds.share.dims
        ('task', 'layer', 'expert')
    """

    name = "task_load"

    def __init__(self, accuracy: Mapping[str, float] | None = None, bootstrap: int = 200, permutations: int = 200):
        super().__init__(load=_Load(), ffn=_FFN())
        self.accuracy = None if accuracy is None else {str(task): float(value) for task, value in accuracy.items()}
        self.bootstrap, self.permutations = check_draws(bootstrap), check_draws(permutations)

    def prepare(self, model: Any, corpus: Corpus, layers: list[int]) -> None:
        tasks = {document.label for document in corpus.documents} - {""}
        if len(tasks) < 2:
            found = f"only {tasks.pop()!r}" if tasks else "none"
            raise InputError(
                f"task_load compares tasks: give the documents at least two labels (labels=); has {found}."
            )
        wanting = sorted(tasks - set(self.accuracy)) if self.accuracy is not None else []
        if wanting:
            raise InputError(f"accuracy lacks the tasks {', '.join(wanting)}.")

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        self.prepare(model, corpus, [])
        parts = self._parts["load"].result(model, corpus)
        layers, tasks = parts.layer.values.tolist(), parts.task.values.tolist()
        layer = model.layer(layers[0])
        counts = parts["count"].values  # (layers, tasks, blocks, E)
        totals = counts.sum(2)
        load = shares(totals)
        kinds = [kind for kind in KINDS if kind in layer.expert_kinds]
        of_kind = np.asarray([[kind == k for kind in layer.expert_kinds] for k in kinds], dtype=float)
        activation = layer.top_k * (totals @ of_kind.T / totals.sum(-1, keepdims=True))  # (layers, tasks, kinds)
        ffn = activation[..., kinds.index("ffn")]
        variables: dict[str, tuple[tuple[str, ...], Any]] = {
            "share": (("layer", "task", "expert"), load),
            "ffn_per_token": (("layer", "task"), ffn),
            "activation": (("layer", "task", "kind"), activation),
            "activation_per_expert": (("layer", "task", "kind"), activation / of_kind.sum(1)),
            "task_distance": (("layer",), distance(load)),
            "ffn_spread": (("layer",), ffn.std(1)),
        }
        variables |= _correlations("", ffn) | _correlations("token_", self._parts["ffn"].values(corpus)[1]["count"])
        if "zero" in kinds and self.accuracy is not None:
            variables |= _with_accuracy(activation[..., kinds.index("zero")], [self.accuracy[task] for task in tasks])
        if self.bootstrap:
            variables |= _intervals(counts, layer.top_k * of_kind[kinds.index("ffn")], self.bootstrap)
        if self.permutations:
            null = [distance(shares(permuted(one, self.permutations))) for one in counts]
            low, high = ends(np.stack(null, axis=1))
            variables |= {
                "share_chance": (("layer", "expert"), shares(counts.sum((1, 2)))),
                "task_distance_chance": (("layer",), np.mean(null, axis=1)),
                "task_distance_chance_low": (("layer",), low),
                "task_distance_chance_high": (("layer",), high),
            }
        coords = {"layer": layers, "other": layers, "task": tasks, "kind": kinds}
        coords["expert"] = [str(expert) for expert in range(layer.num_experts)]
        coords["expert_kind"] = ("expert", list(layer.expert_kinds))
        if self.accuracy is not None:
            coords["accuracy"] = ("task", [self.accuracy[task] for task in tasks])
        found = with_attrs(variables, coords, self.attrs(model, corpus))
        return found.transpose("task", "layer", "other", "kind", "expert", missing_dims="ignore")


class _Load(Sums):
    name = "task_load"

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        return label_sums(batch)

    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        tasks, counts = stacked(sums)
        return {"count": (("layer", "task", "block", "expert"), counts)}, {"task": tasks}


class _FFN(PerToken):
    name = "task_load"

    def measure(self, batch: LayerBatch) -> dict[str, np.ndarray]:
        ffn = np.asarray(batch.layer.expert_kinds) == "ffn"
        return {"count": by_token(ffn[batch.top_k_index.cpu().numpy()].sum(1), batch).sum(1).astype(np.uint8)}


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
        raise InputError(
            f"Accuracies of {len(accuracy)} tasks say nothing of a correlation; give at least three tasks."
        )
    pooled = spearmanr(zero.mean(0), accuracy)
    by_layer = [spearmanr(one, accuracy).statistic for one in zero]
    return {
        "zero_accuracy": ((), pooled.statistic),
        "zero_accuracy_p": ((), pooled.pvalue),
        "layer_zero_accuracy": (("layer",), np.asarray(by_layer)),
    }


def _intervals(counts: np.ndarray, ffn: np.ndarray, draws: int) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Of (layers, tasks, blocks, E) choices; `ffn` (E,) weights the experts that count for FFN experts per token."""
    drawn = [shares(resampled(one, draws)) for one in counts]
    found = {
        "share": (("layer", "task", "expert"), np.stack([ends(one) for one in drawn], axis=1)),
        "ffn_per_token": (("layer", "task"), np.stack([ends(one @ ffn) for one in drawn], axis=1)),
        "task_distance": (("layer",), np.stack([ends(distance(one)) for one in drawn], axis=1)),
    }
    return {
        f"{name}_{end}": (dims, value[at])
        for name, (dims, value) in found.items()
        for at, end in enumerate(("low", "high"))
    }
