"""Controls of effects: the same edit of other experts that are chosen about as often."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from moe_probe.errors import InputError
from moe_probe.forward.running import Running
from moe_probe.intervene.choosing import ALL, OnExperts, routed
from moe_probe.model import MoEModel
from moe_probe.routing import Intervention, LayerBatch, Need

Interventions = tuple[Intervention, ...]


def controls_of(source: Running, edits: Mapping[str, Interventions]) -> dict[str, Interventions | None]:
    """Each edit with its experts exchanged for those with the nearest number of choices; None without a control.

    The control uses experts of the same kind (FFN, constant, ...) that the edit does not name, each once, and no expert
    that runs in the place of others. An edit that names no experts, or more than there are others, has no control.
    """
    every = [each for several in edits.values() for each in several]
    layers = sorted({each.layer for each in every if isinstance(each, OnExperts) and _names_experts(each)})
    if not layers:
        return dict.fromkeys(edits)
    counts = _counts(source, layers)
    return {name: _control(source.model, several, counts) for name, several in edits.items()}


def _names_experts(edit: Intervention) -> bool:
    return isinstance(edit, OnExperts) and edit.experts != ALL and any(isinstance(each, int) for each in edit.named)


def _counts(source: Running, layers: Sequence[int]) -> dict[int, np.ndarray]:
    """Number of choices of each expert in the unedited run, from a separate pass."""
    model = source.model
    running = Running(
        model,
        source.corpus,
        {layer: model.layer(layer) for layer in layers},
        batch_tokens=source.batch_tokens,
        layerwise=source.layerwise,
    )
    counts = {layer: np.zeros(model.layer(layer).num_experts, np.int64) for layer in layers}
    with torch.no_grad():
        for batch in chain.from_iterable(running.steps(frozenset({Need.CHOICES}))):
            assert isinstance(batch, LayerBatch)
            index = batch.top_k_index.flatten().cpu().numpy()
            counts[batch.layer.index] += np.bincount(index, minlength=batch.layer.num_experts)
    return counts


def _control(model: MoEModel, edits: Interventions, counts: Mapping[int, np.ndarray]) -> Interventions | None:
    exchanged = [_exchanged(model, each, counts) if _names_experts(each) else each for each in edits]
    known = tuple(each for each in exchanged if each is not None)
    if len(known) < len(edits) or not any(map(_names_experts, edits)):
        return None
    try:
        model.under(*known)
    except InputError:
        return None
    return known


def _exchanged(model: MoEModel, edit: Any, counts: Mapping[int, np.ndarray]) -> Intervention | None:
    layer = model.layer(edit.layer)
    others = exchanged(routed(edit.experts, layer), counts[edit.layer], layer.expert_kinds, {getattr(edit, "by", None)})
    shared = tuple(each for each in edit.named if not isinstance(each, int))  # the shared block
    return None if others is None else replace(edit, experts=(*others, *shared))


def exchanged(
    experts: Sequence[int], counts: np.ndarray, kinds: Sequence[str], besides: Collection[Any] = ()
) -> tuple[int, ...] | None:
    """For each expert, another one of its kind with the nearest count, assigned in descending order of count.

    Examples:
        >>> exchanged([0], np.array([5, 9, 6]), ["ffn"] * 3)
        (2,)
        >>> exchanged([0, 1], np.array([5, 9, 6]), ["ffn"] * 3) is None
        True
    """
    taken: dict[int, int] = {}
    for expert in sorted(experts, key=lambda each: -counts[each]):
        free = [
            other
            for other in range(len(counts))
            if kinds[other] == kinds[expert] and other not in {*experts, *taken.values(), *besides}
        ]
        if not free:
            return None
        taken[expert] = min(free, key=lambda other, count=counts[expert]: abs(int(counts[other]) - int(count)))
    return tuple(taken[expert] for expert in experts)
