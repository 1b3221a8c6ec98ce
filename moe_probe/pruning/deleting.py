"""NAEE: which experts of a layer go together, by how far the layer's routed output moves without them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import comb
from typing import Unpack

import numpy as np
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.dynamic.driver import observe
from moe_probe.dynamic.sources import open_source
from moe_probe.errors import NotFitting
from moe_probe.forward.running import Running
from moe_probe.model import Openable, load
from moe_probe.options import SCORE_OPTIONS, RunOptions, completed
from moe_probe.pruning.moved import moved_squares
from moe_probe.results import dataset, variable
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.signatures import check_number
from moe_probe.statistics.states import Total
from moe_probe.texts.reading import Texts

MOST_SETS = 500  # that are all tried
DEFINITION = "distance: Frobenius norm over all rows of the routed output minus that with the experts deleted"
Sets = Mapping[int, Sequence[tuple[int, ...]]]


@dataclass
class DeletionPass(Analysis):
    """Squared distances of the routed outputs without sets of experts, in one pass; an analysis for `naee` alone."""

    name = "naee"
    needs = frozenset({Need.WEIGHTS, Need.OUTPUTS, Need.WITHOUT})

    moved = Total("set")

    def update(self, batch: LayerBatch) -> None:
        self.moved.add(batch, moved_squares(batch))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        return {"moved": variable(("layer", "set"), self.moved.array.values, "squared distance", "residual stream^2")}


@dataclass
class Search:
    """Sets of experts that move a layer's output least, layer by layer.

    Attributes:
        source: what runs.
        remove: experts of a set.
        most_sets: sets of a layer that are tried at once; where there are more, experts are taken one after the other.
        options: of the passes.
        tried: sets that were tried, by layer.
    """

    source: Running
    remove: int
    most_sets: int
    options: Mapping[str, object]
    tried: dict[int, int] = field(default_factory=dict)

    def run(self) -> dict[int, tuple[tuple[int, ...], float]]:
        """The best set that was tried, and its distance, by layer."""
        exact = {layer: comb(of.num_experts, self.remove) <= self.most_sets for layer, of in self.source.layers.items()}
        best: dict[int, tuple[tuple[int, ...], float]] = {}
        every = {layer: self._all_sets(layer) for layer in exact if exact[layer]}
        if every:
            best |= self._best(every)
        gone: dict[int, tuple[int, ...]] = {layer: () for layer in exact if not exact[layer]}
        for _ in range(self.remove if gone else 0):
            step = self._best({layer: self._one_more(layer, experts) for layer, experts in gone.items()})
            best |= step
            gone = {layer: step[layer][0] for layer in gone}
        return best

    def _all_sets(self, layer: int) -> list[tuple[int, ...]]:
        return list(combinations(range(self.source.layers[layer].num_experts), self.remove))

    def _one_more(self, layer: int, gone: tuple[int, ...]) -> list[tuple[int, ...]]:
        left = set(range(self.source.layers[layer].num_experts)) - set(gone)
        return [tuple(sorted((*gone, expert))) for expert in sorted(left)]

    def _best(self, sets: Sets) -> dict[int, tuple[tuple[int, ...], float]]:
        layers = {layer: self.source.layers[layer] for layer in sets}
        source = replace(self.source, layers=layers, deleted=sets)
        (analysis,) = observe(source, [DeletionPass()], self.options)
        assert isinstance(analysis, DeletionPass)
        best = {}
        for layer, several in sets.items():
            squares = np.asarray(analysis.moved[layer])
            self.tried[layer] = self.tried.get(layer, 0) + len(several)
            best[layer] = several[int(squares.argmin())], float(np.sqrt(squares.min()))
        return best


def naee(
    model: Openable, texts: Texts, remove: int, *, most_sets: int = MOST_SETS, **options: Unpack[RunOptions]
) -> xr.Dataset:
    """The experts of each layer without which its routed output moves least.

    The layer's own router chooses anew among the others, by all its rules. Where a layer has no more than `most_sets`
    sets of so many experts, all are tried, in one pass; otherwise the experts go one after the other, each the one that
    moves the output least, in as many passes, and nothing says how far the best set is from that.

    Args:
        model: a checkpoint folder, a hub id or a model.
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset, a table, or a `Corpus`.
        remove: experts of each layer that go.
        most_sets: of a layer, that are all tried.
        options: those of `dynamic.run` but `baseline` and `checkpoint_dir`.

    Returns:
        `removed` (layer, expert), bool; `distance` (layer), the Frobenius norm over all rows of z - z without the
        experts, residual stream; `tried` (layer), sets; `exact` (layer), whether all were. `pruning.plan` takes it.

    Raises:
        OutOfRange: `remove` is not 1 or more.
        NotFitting: fewer experts than a token chooses would be left.
        FamilyError: the model's MoE layers cannot be watched, or its router cannot choose anew.

    Source:
        Lu et al., arXiv 2402.14800, section 3.2; the distance is over all rows at once, its code adds those of batches.

    Examples:
        >>> from moe_probe import pruning
        >>> int(pruning.naee("ckpt/tiny-mixtral", [[5, 6, 7, 8]], 2).tried[0])
        28
    """
    check_number("remove", remove, 1)
    check_number("most_sets", most_sets, 1)
    takes = tuple(name for name in SCORE_OPTIONS if name != "checkpoint_dir")
    asked = completed(options, takes, "naee")
    source = open_source(load(model), texts, {"baseline": None, **asked})
    assert isinstance(source, Running)
    for index, layer in source.layers.items():
        if layer.num_experts - remove < layer.top_k:
            raise NotFitting(
                f"remove={remove} leaves {layer.num_experts - remove} experts of layer {index}, and a token chooses "
                f"{layer.top_k}; remove fewer."
            )
    search = Search(source, remove, most_sets, asked)
    best = search.run()
    return _result(source, search, best)


def _result(source: Running, search: Search, best: Mapping[int, tuple[tuple[int, ...], float]]) -> xr.Dataset:
    layers = sorted(best)
    experts = max(layer.num_experts for layer in source.layers.values())
    removed = np.array([np.isin(np.arange(experts), best[layer][0]) for layer in layers])
    exact = [comb(source.layers[layer].num_experts, search.remove) <= search.most_sets for layer in layers]
    arrays = {
        "removed": variable(("layer", "expert"), removed, "experts that go"),
        "distance": variable(
            ("layer",), [best[layer][1] for layer in layers], "distance of the routed output", "residual stream"
        ),
        "tried": variable(("layer",), [search.tried[layer] for layer in layers], "sets that were tried", "sets"),
        "exact": variable(("layer",), exact, "all sets were tried"),
    }
    about = {**DeletionPass().attrs(source), "definition": DEFINITION}
    about["parameters"] = json.dumps({"remove": search.remove, "most_sets": search.most_sets})
    coords = {"layer": layers, "expert": [str(expert) for expert in range(experts)]}
    return dataset(arrays, about, {**coords, "calibration": ("document", source.corpus.digests)})
