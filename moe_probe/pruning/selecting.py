"""Selects the least important experts of each layer or of the whole model, and leaves enough for top-k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from moe_probe.errors import NotFitting, OutOfRange
from moe_probe.model import MoEModel
from moe_probe.signatures import check_number

Per = Literal["layer", "model"]
Pruned = Mapping[int, tuple[int, ...]]


def lowest(model: MoEModel, values: Mapping[int, np.ndarray], fraction: float, per: Per) -> Pruned:
    """The experts with the lowest values, by layer, ascending.

    Args:
        model: the model, which says how many experts each layer has and chooses.
        values: of each layer's experts, (E,); -inf is the lowest, and ties select the first expert.
        fraction: share of the experts of each layer, or of all layers together, rounded to whole experts.
        per: `layer`, or `model`: the lowest of all, but each layer keeps top-k experts.

    Raises:
        NotFitting: a value is nan, or fewer experts than top-k would be left.
    """
    check_fraction(fraction)
    check_values(values)
    spare = {layer: model.layer(layer).num_experts - model.layer(layer).top_k for layer in values}
    if per == "model":
        return _of_model(values, fraction, spare)
    counts = {layer: round(fraction * len(scores)) for layer, scores in values.items()}
    for layer, count in counts.items():
        if count > spare[layer]:
            raise NotFitting(_short(fraction, f"layer {layer}", count, spare[layer]))
    orders = {layer: np.argsort(scores, kind="stable") for layer, scores in values.items()}
    return {layer: tuple(sorted(orders[layer][:count].tolist())) for layer, count in counts.items() if count}


def _of_model(values: Mapping[int, np.ndarray], fraction: float, spare: Mapping[int, int]) -> Pruned:
    wanted = round(fraction * sum(map(len, values.values())))
    if wanted > sum(spare.values()):
        raise NotFitting(_short(fraction, "the model", wanted, sum(spare.values())))
    cells = [(layer, expert) for layer, scores in values.items() for expert in range(len(scores))]
    order = np.argsort(np.concatenate(list(values.values())), kind="stable")
    gone: dict[int, list[int]] = {}
    for place in order.tolist():
        layer, expert = cells[place]
        if wanted and len(gone.get(layer, ())) < spare[layer]:
            gone.setdefault(layer, []).append(expert)
            wanted -= 1
    return {layer: tuple(sorted(gone[layer])) for layer in values if layer in gone}


def _short(fraction: float, where: str, count: int, spare: int) -> str:
    return (
        f"A share of {fraction:g} is {count} experts of {where}, which can spare {spare} and keep as many as "
        "a token chooses; pass a smaller fraction."
    )


def check_fraction(fraction: float) -> None:
    """Raises `OutOfRange` if a fraction is not between 0 and 1."""
    check_number("fraction", fraction, 0, 1, whole=False)
    if fraction == 1:
        raise OutOfRange("A fraction of 1 leaves no expert; pass one below 1.")


def check_values(values: Mapping[int, np.ndarray]) -> None:
    """Raises `NotFitting` if a value is nan."""
    for layer, scores in values.items():
        if np.isnan(scores).any():
            expert = int(np.flatnonzero(np.isnan(scores))[0])
            raise NotFitting(f"Expert {expert} of layer {layer} has no value; omit this score, or this layer.")


def random_values(model: MoEModel, layers: Sequence[int], draw: int) -> dict[int, np.ndarray]:
    """A random order of each layer's experts, the same for the same draw."""
    generator = np.random.default_rng(draw)
    return {layer: generator.random(model.layer(layer).num_experts) for layer in layers}
