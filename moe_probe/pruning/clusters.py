"""Clustering of the experts of a layer, or of all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

Grouping = tuple[tuple[int, ...], ...]


def linked(distance: np.ndarray, count: int, method: str) -> Grouping:
    """Groups of a hierarchical clustering, cut at `count` groups.

    Args:
        distance: between the experts of a layer, (E, E), symmetric.
        count: number of groups.
        method: linkage: `single`, `complete` or `average`.
    """
    condensed = squareform((distance + distance.T) / 2, checks=False)
    tree = linkage(condensed, method)
    labels = np.arange(len(distance)) if count == len(distance) else cut(tree, count)
    return tuple(tuple(np.flatnonzero(labels == label).tolist()) for label in dict.fromkeys(labels.tolist()))


def cut(tree: np.ndarray, count: int) -> np.ndarray:
    """The group of each expert (E,) after E - count unions: exactly `count` groups, even if distances are equal."""
    experts = len(tree) + 1
    ranked = tree.copy()
    ranked[:, 2] = np.arange(1, experts)  # the order of the unions in place of their distances, which may be equal
    return fcluster(ranked, experts - count, "distance")


def dominated(distances: Mapping[int, np.ndarray], usage: Mapping[int, np.ndarray], count: int) -> dict[int, Grouping]:
    """Groups around dominant experts: the most used ones of the whole model, including the most used of each layer.

    Every other expert joins the nearest dominant one of its layer (MC-SMoE, arXiv 2310.01334, section 3.1). Layers have
    different numbers of groups, `count` on average.

    Args:
        distances: between the experts of each layer, (E, E).
        usage: share of each expert in the choices of its layer, (E,).
        count: average number of groups per layer.
    """
    scaled = {layer: counts / max(counts.max(), 1e-300) for layer, counts in usage.items()}
    cells = [(layer, expert) for layer, values in scaled.items() for expert in range(len(values))]
    order = np.argsort(-np.concatenate(list(scaled.values())), kind="stable")
    dominant: dict[int, list[int]] = {layer: [] for layer in usage}
    for place in order[: count * len(usage)].tolist():
        layer, expert = cells[place]
        dominant[layer].append(expert)
    return {layer: around(distance, dominant[layer]) for layer, distance in distances.items()}


def around(distance: np.ndarray, centers: Sequence[int]) -> Grouping:
    """Groups in which each expert joins the nearest of the centers; centers come first."""
    groups = {center: [center] for center in centers}
    for expert in range(len(distance)):
        if expert not in groups:
            groups[centers[int(distance[expert, list(centers)].argmin())]].append(expert)
    return tuple(map(tuple, groups.values()))
