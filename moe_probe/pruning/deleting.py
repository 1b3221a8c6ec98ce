"""NAEE: chooses experts to delete together, by the change of the layer's routed output without them."""

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
from moe_probe.pruning.moved import least_moved_squares, moved_squares
from moe_probe.results import dataset, variable
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.signatures import check_number
from moe_probe.statistics.states import Total
from moe_probe.texts.reading import Texts

MOST_SETS = 500  # that are all tried
DEFINITION = (
    "distance: Frobenius norm over all rows of the routed output minus that with the experts deleted; distance_bound: "
    "no set of so many experts has a smaller distance, because an expert's output is that far from the others' span"
)
Sets = Mapping[int, Sequence[tuple[int, ...]]]


@dataclass
class DeletionPass(Analysis):
    """Squared distances of the routed outputs without sets of experts, in one pass; the analysis behind `naee`."""

    name = "naee"
    needs = frozenset({Need.WEIGHTS, Need.OUTPUTS, Need.WITHOUT})

    moved = Total("set")

    def update(self, batch: LayerBatch) -> None:
        self.moved.add(batch, moved_squares(batch))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        return {"moved": variable(("layer", "set"), self.moved.array.values, "squared distance", "residual stream^2")}


@dataclass
class LeastPass(Analysis):
    """Lower bounds of the squared distances of the routed outputs without each expert, in the pass of `naee`."""

    name = "naee_bound"
    needs = frozenset({Need.WEIGHTS, Need.OUTPUTS})

    least = Total("expert")

    def update(self, batch: LayerBatch) -> None:
        self.least.add(batch, least_moved_squares(batch))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        squares = self.least.array.values
        return {"least": variable(("layer", "expert"), squares, "least squared distance", "residual stream^2")}

    def bound(self, layer: int, remove: int, top_k: int) -> float:
        """Returns a lower bound of the distance without any `remove` experts.

        A row may have chosen several of them, min(k, remove) at most; its change is at least the mean of their bounds.
        """
        squares = np.sort(np.asarray(self.least[layer]))[:remove].sum()
        return float(np.sqrt(squares / min(top_k, remove)))


@dataclass
class Search:
    """Search for the sets of experts whose removal changes each layer's output least.

    Attributes:
        source: the model on its corpus.
        remove: number of experts in a set.
        most_sets: largest number of sets of a layer to try at once; if there are more, the search is greedy.
        options: of the passes.
        tried: number of sets tried, by layer.
        bounds: lower bounds of the distance, of layers whose search is greedy.
    """

    source: Running
    remove: int
    most_sets: int
    options: Mapping[str, object]
    tried: dict[int, int] = field(default_factory=dict)
    bounds: dict[int, float] = field(default_factory=dict)

    def run(self) -> dict[int, tuple[tuple[int, ...], float]]:
        """Returns the best set tried, and its distance, by layer."""
        exact = {layer: comb(of.num_experts, self.remove) <= self.most_sets for layer, of in self.source.layers.items()}
        best: dict[int, tuple[tuple[int, ...], float]] = {}
        every = {layer: self._all_sets(layer) for layer in exact if exact[layer]}
        if every:
            best |= self._best(every)
        gone: dict[int, tuple[int, ...]] = {layer: () for layer in exact if not exact[layer]}
        for number in range(self.remove if gone else 0):
            sets = {layer: self._one_more(layer, experts) for layer, experts in gone.items()}
            step = self._best(sets, [LeastPass()] if number == 0 else [])
            best |= step
            gone = {layer: step[layer][0] for layer in gone}
        return best

    def _all_sets(self, layer: int) -> list[tuple[int, ...]]:
        return list(combinations(range(self.source.layers[layer].num_experts), self.remove))

    def _one_more(self, layer: int, gone: tuple[int, ...]) -> list[tuple[int, ...]]:
        left = set(range(self.source.layers[layer].num_experts)) - set(gone)
        return [tuple(sorted((*gone, expert))) for expert in sorted(left)]

    def _best(self, sets: Sets, beside: Sequence[LeastPass] = ()) -> dict[int, tuple[tuple[int, ...], float]]:
        layers = {layer: self.source.layers[layer] for layer in sets}
        source = replace(self.source, layers=layers, deleted=sets)
        deletions, *others = observe(source, [DeletionPass(), *beside], self.options)
        assert isinstance(deletions, DeletionPass)
        for least in others:
            assert isinstance(least, LeastPass)
            self.bounds |= {layer: least.bound(layer, self.remove, of.top_k) for layer, of in layers.items()}
        best = {}
        for layer, several in sets.items():
            squares = np.asarray(deletions.moved[layer])
            self.tried[layer] = self.tried.get(layer, 0) + len(several)
            best[layer] = several[int(squares.argmin())], float(np.sqrt(squares.min()))
        return best


def naee(
    model: Openable, texts: Texts, remove: int, *, most_sets: int = MOST_SETS, **options: Unpack[RunOptions]
) -> xr.Dataset:
    """Finds the experts of each layer whose removal changes the layer's routed output least.

    The layer's own router chooses among the other experts, by all of its rules. If a layer has at most `most_sets` sets
    of the given size, one pass tries all of them. Otherwise the search is greedy: each pass removes the one expert that
    changes the output least, which may miss the best set; `distance_bound` says how much closer any set could be.

    Args:
        model: a checkpoint folder, a hub id or a model.
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset, a table, or a `Corpus`.
        remove: number of experts to remove from each layer.
        most_sets: largest number of sets of a layer for which all are tried.
        options: those of `dynamic.run` except `baseline` and `checkpoint_dir`.

    Returns:
        Dataset with `removed` (layer, expert), bool; `distance` (layer), float64, the Frobenius norm over all rows of
        z - z without the experts, in units of the residual stream; `distance_bound` (layer), float64, which no set of
        `remove` experts is below (the distance itself if all were tried); `tried` (layer), the number of sets tried;
        and `exact` (layer), bool, whether these were all. `pruning.plan` takes it.

        The bound is moe_probe's: a row that chose a removed expert e with weight w_e changes by at least w_e times the
        distance of e's output from the span of the other experts' outputs, whatever is chosen instead. A row may have
        chosen m = min(k, remove) removed experts, so the square is the sum of the `remove` smallest such squares over
        the experts, divided by m.

    Raises:
        OutOfRange: `remove` is below 1.
        NotFitting: fewer experts than a token chooses would be left.
        FamilyError: the model's MoE layers cannot be watched, or its router cannot choose again.

    Source:
        Lu et al., arXiv 2402.14800, section 3.2. The distance is over all rows at once; their code sums those of
        batches.

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
                f"remove={remove} leaves {layer.num_experts - remove} experts of layer {index}, but a token chooses "
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
    bounds = [search.bounds.get(layer, best[layer][1]) for layer in layers]
    arrays = {
        "removed": variable(("layer", "expert"), removed, "removed experts"),
        "distance": variable(
            ("layer",), [best[layer][1] for layer in layers], "distance of the routed output", "residual stream"
        ),
        "distance_bound": variable(("layer",), bounds, "least possible distance", "residual stream"),
        "tried": variable(("layer",), [search.tried[layer] for layer in layers], "sets tried", "sets"),
        "exact": variable(("layer",), exact, "all sets were tried"),
    }
    about = {**DeletionPass().attrs(source), "definition": DEFINITION}
    about["parameters"] = json.dumps({"remove": search.remove, "most_sets": search.most_sets})
    coords = {"layer": layers, "expert": [str(expert) for expert in range(experts)]}
    return dataset(arrays, about, {**coords, "calibration": ("document", source.corpus.digests)})
