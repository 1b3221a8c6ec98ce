"""Tests of papers' observations about routing by interventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr

from moe_probe.intervene.choosing import ALL
from moe_probe.intervene.measured.effects import DRAWS, effect
from moe_probe.intervene.permute import Permute
from moe_probe.intervene.random import Random
from moe_probe.intervene.replace import Replace
from moe_probe.intervene.route_by_norm import RouteByNorm
from moe_probe.intervene.uniform import Uniform
from moe_probe.intervene.zero import Zero
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import ABLATE_OPTIONS, RunOptions, completed
from moe_probe.routing import Intervention
from moe_probe.signatures import checked
from moe_probe.static.analyses.similarity import similarity
from moe_probe.texts.reading import Texts

REPLACED = 2  # most similar, and least similar, pairs of each layer


@checked
def claims(
    model: Openable,
    texts: Texts,
    *,
    dense: Openable | None = None,
    bootstrap: int = DRAWS,
    **options: Unpack[RunOptions],
) -> xr.Dataset:
    """Measures interventions that test observations of arXiv 2406.18219 and 2410.07348, in the given layers at once.

    Each question has its edits:

    - Does choosing experts by output norm help? `norm`, compared with `random` and the router itself (no change).
    - Does the router or the expert matter? `permuted` and `uniform`.
    - Do similar experts replace each other? `most similar`, compared with `least similar`: in the pairs of each layer
      with the largest, or smallest, mean cosine of their matrices, one expert runs instead of the other.
    - Are shared experts and experts without matrices needed? `no shared`, `no constant`, `no zero` and `no copy`, if
      the model has them, compared with `one silent`, a routed expert of each layer, and `no routed`, all of them.
    - Does a dense model's FFN do as well? `dense for one` and `dense for all`.

    Args:
        model: a checkpoint folder, a hub id or a model.
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset, a table, or a `Corpus`.
        dense: the dense model that the experts may have come from, such as Mistral for Mixtral; none by default.
        bootstrap: resamples of documents for the intervals; 0 for none.
        options: those of `dynamic.run` except `baseline`; `layers` are the edited layers.

    Returns:
        The Dataset of `intervene.effect` with `direct=True`.

    Examples:
        >>> from moe_probe.intervene import claims
        >>> ds = claims("ckpt/tiny-mixtral", [[5, 6, 7, 8], [9, 10, 11]], layers=[1])
        >>> "most similar" in ds.edit.values
        True
    """
    asked = completed(options, ABLATE_OPTIONS, "claims")
    opened = load(model)
    layers = opened.select_layers(asked.pop("layers"))
    edits = dict(_of_routing(layers)) | _of_similar(opened, layers) | _of_kinds(opened, layers)
    if dense is not None:
        baseline = load(dense)
        for name, experts in (("dense for one", [0]), ("dense for all", ALL)):
            edits[name] = [Replace(layer, experts, by="F", baseline=baseline) for layer in layers]
    effects = effect(opened, texts, edits, direct=True, control=False, bootstrap=bootstrap, **asked)
    return effects.assign_attrs(layers=list(layers))


def _of_routing(layers: Sequence[int]) -> Mapping[str, list[Intervention]]:
    kinds: Mapping[str, Any] = {"norm": RouteByNorm, "random": Random, "permuted": Permute, "uniform": Uniform}
    return {name: [kind(layer) for layer in layers] for name, kind in kinds.items()}


def _of_similar(model: MoEModel, layers: Sequence[int]) -> dict[str, list[Intervention]]:
    """Edits that replace experts by their most, and by their least, similar ones."""
    cosine = similarity(model, layers=list(layers)).cosine.mean("projection")
    edits: dict[str, list[Intervention]] = {"most similar": [], "least similar": []}
    for layer in layers:
        values = cosine.sel(layer=layer).values
        labels = [int(label) for label in cosine.expert.values]
        one, other = np.triu_indices(len(values), 1)
        order = np.argsort(values[one, other], kind="stable")
        for name, places in (("least similar", order), ("most similar", order[::-1])):
            pairs = [(labels[one[place]], labels[other[place]]) for place in places]
            edits[name] += [Replace(layer, first, second) for first, second in apart(pairs)[:REPLACED]]
    return edits


def apart(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs in their order, without those that share an expert with an earlier pair."""
    chosen: list[tuple[int, int]] = []
    for pair in pairs:
        if not {each for one in chosen for each in one} & set(pair):
            chosen.append(pair)
    return chosen


def _of_kinds(model: MoEModel, layers: Sequence[int]) -> dict[str, list[Intervention]]:
    """Edits without shared experts or experts without matrices, and those without routed ones to compare with."""
    edits: dict[str, list[Intervention]] = {"one silent": [Zero(layer, [0]) for layer in layers]}
    shared = [layer for layer in layers if model.layer(layer).num_shared]
    if shared:
        edits["no shared"] = [Zero(layer, ["S"]) for layer in shared]
    for kind in ("constant", "copy", "zero"):
        cells = {
            layer: [e for e, expert_kind in enumerate(model.layer(layer).expert_kinds) if expert_kind == kind]
            for layer in layers
        }
        if any(cells.values()):
            edits[f"no {kind}"] = [Zero(layer, experts) for layer, experts in cells.items() if experts]
    edits["no routed"] = [Zero(layer, ALL) for layer in layers]
    return edits
