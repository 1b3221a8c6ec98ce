"""Plans of the experts to keep, made from scores and stored as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr

from moe_probe.errors import NoSuchName, NotFitting
from moe_probe.intervene.mask import Mask
from moe_probe.model import MoEModel, Openable, load
from moe_probe.pruning.costs import check_of_model
from moe_probe.pruning.curves import orders_of
from moe_probe.pruning.selecting import Per, Pruned, check_fraction, check_values, lowest
from moe_probe.pruning.stored import StoredAsJson
from moe_probe.signatures import check_types


@dataclass(frozen=True)
class Plan(StoredAsJson):
    """The experts of each layer to keep.

    Attributes:
        model: name of the model.
        kept: numbers of the experts to keep, ascending, by layer.
        experts: number of experts before pruning, by layer.
        score: name of the score.
        fraction: share of removed experts.
    """

    model: str
    kept: Mapping[int, tuple[int, ...]]
    experts: Mapping[int, int]
    score: str = ""
    fraction: float = 0.0

    format = "moe_probe pruning plan 1"
    what = "plan of what to prune"

    def masks(self) -> list[Mask]:
        """Returns the plan as interventions: masks of the removed experts."""
        gone = {layer: sorted(set(range(self.experts[layer])) - set(experts)) for layer, experts in self.kept.items()}
        return [Mask(layer, experts) for layer, experts in gone.items() if experts]

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        """Returns the plan that `save` wrote."""
        for name in ("kept", "experts"):
            content[name] = {int(layer): value for layer, value in content[name].items()}
        content["kept"] = {layer: tuple(map(int, experts)) for layer, experts in content["kept"].items()}
        plan = cls(**content)
        for layer, experts in plan.kept.items():
            ascending = bool(experts) and sorted(set(experts)) == list(experts)
            if not ascending or not 0 <= experts[0] <= experts[-1] < plan.experts[layer]:
                raise ValueError(f"the experts of layer {layer}")
        return plan


def read_plan(path: str | Path) -> Plan:
    """Reads a plan from a file that `Plan.save` wrote.

    Raises:
        Damaged: the file holds no plan.

    Examples:
        >>> read_plan("plan.json")  # doctest: +SKIP
    """
    return Plan.read(path)


def plan(
    model: Openable, scores: xr.Dataset, fraction: float | None = None, score: str | None = None, *, per: Per = "layer"
) -> Plan:
    """Returns the plan that removes the experts with the lowest scores, or those that `naee` found.

    If the router selects groups of experts first, the plan removes the same number from each group. Experts that no row
    chose go first.

    Args:
        model: the model of the scores.
        scores: result of `pruning.scores`, or of `pruning.naee`, which already names the experts to remove.
        fraction: share of experts to remove, rounded to whole experts; only for scores.
        score: name of the score; may be omitted if there is only one.
        per: `layer`, the same number in each layer, or `model`, the lowest of the whole model, which masks support but
            published layouts do not.

    Raises:
        NoSuchName: there is no such score.
        NotFitting: fewer experts than a token chooses would be left, a score is nan, groups would be unequal, or
            `fraction` is missing, or given for the result of `naee`.

    Examples:
        >>> from moe_probe import pruning
        >>> scores = pruning.scores("ckpt/tiny-mixtral", names="gate_norm")
        >>> len(pruning.plan("ckpt/tiny-mixtral", scores, 0.25).kept[0])
        6
    """
    check_types(plan, {"per": per, "score": score})
    opened = load(model)
    if isinstance(scores, xr.Dataset) and scores.attrs.get("analysis") == "naee":
        if fraction is not None or score is not None:
            raise NotFitting("The result of naee already names the experts to remove; omit fraction and score.")
        return plan_of_sets(opened, scores)
    check_of_model(opened, scores, "scores")
    if fraction is None:
        raise NotFitting("plan needs the share of experts to remove; pass fraction=0.25, for example.")
    names = [str(name) for name in scores.score.values]
    chosen = names[0] if score is None and len(names) == 1 else score
    if chosen not in names:
        raise NoSuchName.among("score of these", str(chosen), names)
    values = orders_of(opened, scores, 0)[chosen]
    groups = groups_of(opened)
    if groups > 1 and per == "model":
        raise NotFitting(f"{opened.name} selects groups of experts, which must stay equal; pass per='layer'.")
    gone = by_group(opened, values, fraction, groups) if groups > 1 else lowest(opened, values, fraction, per)
    return plan_without(opened, {layer: gone.get(layer, ()) for layer in values}, chosen, float(fraction))


def plan_of_sets(model: MoEModel, result: xr.Dataset) -> Plan:
    """Returns the plan that removes the experts that `naee` found."""
    check_of_model(model, result, "naee")
    removed = result.removed.transpose("layer", "expert").values
    gone = {int(layer): np.flatnonzero(row).tolist() for layer, row in zip(result.layer.values, removed, strict=True)}
    experts = sum(model.layer(layer).num_experts for layer in gone)
    return plan_without(model, gone, "naee", float(removed.sum() / experts))


def plan_without(model: MoEModel, gone: Mapping[int, Sequence[int]], score: str, fraction: float) -> Plan:
    """Returns the plan that removes the given experts and keeps all others."""
    counts = {layer: model.layer(layer).num_experts for layer in gone}
    kept = {layer: tuple(e for e in range(count) if e not in gone[layer]) for layer, count in counts.items()}
    return Plan(model.name, kept, counts, score, fraction)


def groups_of(model: MoEModel) -> int:
    """Number of groups of experts of which the router excludes some; 1 without groups."""
    config: Any = model.config.get_text_config(decoder=True)
    stated = (getattr(config, name, None) for name in ("n_group", "num_expert_group"))
    return next((groups for groups in stated if isinstance(groups, int) and groups > 1), 1)


def by_group(model: MoEModel, values: Mapping[int, np.ndarray], fraction: float, groups: int) -> Pruned:
    """The lowest experts of each group, the same number of each.

    Raises:
        NotFitting: the share is not a whole number of experts of each group, or leaves too few to choose from.
    """
    check_fraction(fraction)
    check_values(values)
    config: Any = model.config.get_text_config(decoder=True)
    gone: dict[int, tuple[int, ...]] = {}
    for layer, scores in values.items():
        experts = len(scores)
        size, count = experts // groups, round(fraction * experts)
        left = size - count // groups
        if count % groups:
            raise NotFitting(
                f"A share of {fraction:g} is {count} of {experts} experts in {groups} groups, which must stay equal; "
                f"pass a share that is a multiple of {groups} experts, such as {count // groups * groups / experts:g}."
            )
        if left < 2 or left * getattr(config, "topk_group", groups) < model.layer(layer).top_k:
            raise NotFitting(
                f"A share of {fraction:g} leaves {left} experts in each group of layer {layer}, too few; pass less."
            )
        order = scores.reshape(groups, size).argsort(1, kind="stable")[:, : count // groups]
        gone[layer] = tuple(sorted((order + size * np.arange(groups)[:, None]).ravel().tolist()))
    return {layer: several for layer, several in gone.items() if several}
