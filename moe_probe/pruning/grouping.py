"""Groups of experts to merge, by the similarity of their outputs, weights or router logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, Unpack, get_args

import numpy as np
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.dynamic.driver import observe
from moe_probe.dynamic.sources import open_source
from moe_probe.errors import NotFitting, OutOfRange
from moe_probe.intervene.merge import Merge
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import SCORE_OPTIONS, RunOptions, completed
from moe_probe.pruning.clusters import Grouping, dominated, linked
from moe_probe.pruning.pairs import logit_products, output_sums, ratio, routed_cosines, similarity_of_products
from moe_probe.pruning.stored import StoredAsJson
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.signatures import check_number, check_types
from moe_probe.static import similarity
from moe_probe.statistics.states import Total
from moe_probe.texts.reading import Texts

By = Literal["output", "routed_output", "router_logit", "weight"]
Method = Literal["average", "complete", "single", "dominant"]
Average = Literal["usage", "equal"]


@dataclass(frozen=True)
class Groups(StoredAsJson):
    """Groups of experts to merge, for each layer.

    Attributes:
        model: name of the model.
        groups: groups of all experts, by layer; the most used expert of each group is first.
        usage: number of rows that chose each expert, by layer.
        by: the similarity that formed the groups.
        method: the clustering method.
        calibration: a digest of each document that was used.
    """

    model: str
    groups: Mapping[int, tuple[tuple[int, ...], ...]]
    usage: Mapping[int, tuple[int, ...]]
    by: By
    method: Method
    calibration: tuple[int, ...] = ()

    format = "moe_probe merging groups 1"
    what = "groups of experts"

    def merges(self, average: Average = "usage", aligned: bool = False) -> list[Merge]:
        """Returns the groups as interventions.

        Args:
            average: `usage`, which weights each expert by its number of choices, or `equal`.
            aligned: before averaging, put the neurons of each expert into the order of the group's most used one.

        Examples:
            >>> Groups("a model", {0: ((1, 0), (2,))}, {0: (1, 3, 5)}, "output", "average").merges()
            [Merge(layer=0, groups=((1, 0),), shares=((3.0, 1.0),))]
        """
        check_types(self.merges, {"average": average, "aligned": aligned})
        several = {layer: [group for group in groups if len(group) > 1] for layer, groups in self.groups.items()}
        return [
            Merge(layer, groups, aligned, self._shares(layer, groups) if average == "usage" else None)
            for layer, groups in several.items()
            if groups
        ]

    def _shares(self, layer: int, groups: Sequence[Sequence[int]]) -> list[list[float]]:
        """Number of choices of the experts of each group; equal numbers if no expert of a group is chosen."""
        counts = [[float(self.usage[layer][expert]) for expert in group] for group in groups]
        return [several if sum(several) else [1.0] * len(several) for several in counts]

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        """Returns the groups that `save` wrote."""
        for name in ("groups", "usage"):
            content[name] = {int(layer): tuple(values) for layer, values in content[name].items()}
        content["groups"] = {layer: tuple(map(tuple, groups)) for layer, groups in content["groups"].items()}
        content["calibration"] = tuple(content["calibration"])
        result = cls(**content)
        if result.by not in get_args(By) or result.method not in get_args(Method):
            raise ValueError(f"by {result.by!r}, {result.method!r}")
        for layer, groups in result.groups.items():
            counts, experts = result.usage[layer], sorted(expert for group in groups for expert in group)
            if not all(isinstance(count, int) and count >= 0 for count in counts) or experts != list(
                range(len(counts))
            ):
                raise ValueError(f"the experts of layer {layer}")
        return result


def read_groups(path: str | Path) -> Groups:
    """Reads groups from a file that `Groups.save` wrote.

    Raises:
        Damaged: the file holds no groups.

    Examples:
        >>> read_groups("groups.json")  # doctest: +SKIP
    """
    return Groups.read(path)


@dataclass
class PairPass(Analysis):
    """The sums for similarities of experts, in one pass; the analysis behind `groups`.

    Args:
        by: name of the similarity.
    """

    by: By

    name = "groups"

    sums, chosen, rows = Total("expert"), Total("expert"), Total()

    @classmethod
    def example(cls) -> PairPass:
        return cls("router_logit")

    def needed(self) -> frozenset[Need]:
        asked = {"router_logit": Need.SCORES, "output": Need.OUTPUTS, "routed_output": Need.OUTPUTS}
        return frozenset({Need.CHOICES, *([asked[self.by]] if self.by in asked else [])})

    def update(self, batch: LayerBatch) -> None:
        self.chosen.add(batch, batch.selected.double().sum(0))
        self.rows.add(batch, len(batch.top_k_index))
        sums = {"router_logit": logit_products, "output": output_sums, "routed_output": routed_cosines}
        if self.by in sums:
            self.sums.add(batch, sums[self.by](batch))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        return {"chosen": self.chosen.array}

    def distance(self, layer: int) -> np.ndarray:
        """Distances between the experts of a layer, (E, E)."""
        sums = np.asarray(self.sums[layer])
        if self.by == "output":
            means = sums / float(self.rows[layer])
            return np.linalg.norm(means[:, None] - means, axis=-1)
        return 1 - (similarity_of_products(sums) if self.by == "router_logit" else ratio(sums[..., 0], sums[..., 1]))


def groups(
    model: Openable,
    texts: Texts,
    count: int,
    *,
    by: By = "output",
    method: Method = "average",
    **options: Unpack[RunOptions],
) -> Groups:
    """Groups similar experts, to merge them.

    Args:
        model: a checkpoint folder, a hub id or a model.
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset, a table, or a `Corpus`; they also
            determine how often experts are chosen.
        count: number of groups of each layer; with `dominant`, on average over the layers.
        by: the similarity. `output`: the mean output over all rows, Euclidean distance (HC-SMoE, arXiv 2410.08589);
            `routed_output`: outputs on the rows that chose either expert, mean cosine; `router_logit`: raw logits over
            all rows, cosine (MC-SMoE, arXiv 2310.01334); `weight`: the matrices, cosine, mean over projections.
        method: linkage of a hierarchical clustering, `average`, `complete` or `single`; or `dominant`: the most used
            experts of the whole model stay, and every other one joins the nearest of its layer (MC-SMoE).
        options: those of `dynamic.run` except `baseline`.

    Returns:
        The groups; `merges()` gives them as interventions, `save(path)` writes them.

    Raises:
        OutOfRange: there are fewer experts than groups.
        NotFitting: experts cannot be compared, because they have no matrices, or no row chose either of two.
        FamilyError: the model's MoE layers cannot be watched.

    Examples:
        >>> from moe_probe import pruning
        >>> groups = pruning.groups("ckpt/tiny-mixtral", [[5, 6, 7, 8]], 4, by="router_logit")
        >>> len(groups.groups[0])
        4
    """
    check_types(groups, {"by": by, "method": method})
    asked = completed(options, SCORE_OPTIONS, "groups")
    opened = load(model)
    layers = opened.select_layers(asked["layers"])
    check_number("count", count, 1)
    for layer in layers:
        check_group_count(opened, layer, count)
    source = open_source(opened, texts, {"baseline": None, **asked})
    (analysis,) = observe(source, [PairPass(by)], asked)
    assert isinstance(analysis, PairPass)
    usage = {layer: np.asarray(analysis.chosen[layer]) for layer in layers}
    if by == "weight":
        distances = weight_distances(opened, layers, asked)
    else:
        distances = {layer: analysis.distance(layer) for layer in layers}
    for layer, distance in distances.items():
        check_distance(layer, distance, by)
    grouped = clustered(distances, usage, count, method)
    counts = {layer: tuple(round(value) for value in values.tolist()) for layer, values in usage.items()}
    return Groups(opened.name, grouped, counts, by, method, tuple(source.corpus.digests))


def clustered(
    distances: Mapping[int, np.ndarray], usage: Mapping[int, np.ndarray], count: int, method: Method
) -> dict[int, Grouping]:
    """Groups of each layer, the most used expert of each first."""
    if method == "dominant":
        grouped = dominated(distances, usage, count)
    else:
        grouped = {layer: linked(distance, count, method) for layer, distance in distances.items()}
    return {
        layer: tuple(most_used_first(group, usage[layer]) for group in several) for layer, several in grouped.items()
    }


def most_used_first(group: Sequence[int], usage: np.ndarray) -> tuple[int, ...]:
    """The experts of a group in descending order of usage; ties keep their order."""
    return tuple(sorted(group, key=lambda expert: -usage[expert]))


def check_group_count(model: MoEModel, layer: int, count: int) -> None:
    """Raises an error if a layer's experts cannot form `count` groups."""
    of_layer = model.layer(layer)
    if count > of_layer.num_experts:
        raise OutOfRange(
            f"count={count} is more than the {of_layer.num_experts} experts of layer {layer}; pass at most that."
        )
    if len(of_layer.weighted_experts) < of_layer.num_experts:
        raise NotFitting(f"Layer {layer} has experts without matrices, which cannot be merged; pass other layers=.")


def check_distance(layer: int, distance: np.ndarray, by: By) -> None:
    """Raises an error if a distance between experts is undefined."""
    unknown = np.argwhere(~np.isfinite(distance) & ~np.eye(len(distance), dtype=bool))
    if len(unknown):
        one, other = unknown[0].tolist()
        raise NotFitting(
            f"Layer {layer}: experts {one} and {other} cannot be compared by={by!r} on these texts: no row chose "
            "either, or one is zero; pass more texts, or another by=."
        )


def weight_distances(model: MoEModel, layers: Sequence[int], asked: Mapping[str, Any]) -> dict[int, np.ndarray]:
    """1 - cosine of the experts' matrices, averaged over projections, (E, E) for each layer."""
    alike = similarity(model, layers=list(layers), n_jobs=asked["n_jobs"], progress=asked["progress"]).cosine
    mean = alike.mean("projection").transpose("layer", "expert", "other")
    return {layer: 1 - mean.sel(layer=layer).values for layer in layers}
