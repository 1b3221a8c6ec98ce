"""Geometry of vectors, accurate even if they are nearly equal, as upcycled experts and quantized copies are.

Inner products of vectors that differ by a thousandth share six digits, so float32 products do not give their distances.
Here a vector close to another one is replaced by its difference from that neighbor before any multiplication.
Differences of neighboring floating-point numbers are exact (Sterbenz 1974).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.stats import rankdata

NONE = -1  # the neighbor of a vector that is kept as it is
NEAR = 2.0  # a neighbor is nearer than 1 / NEAR of the vector's length
BLOCK_ELEMENTS = 1 << 22  # of the differences of paths that are multiplied at once
LOST = 100.0  # a tree whose edges, squared, are so many times as long as they could be costs too many digits


@dataclass(frozen=True)
class Tree:
    """Each vector's neighbor; the sum of differences along the path to the origin is the vector itself.

    Attributes:
        neighbor: of each vector, or NONE, (R,).
        order: the vectors, each after its neighbor, (R,).
    """

    neighbor: np.ndarray
    order: np.ndarray

    @classmethod
    def none(cls, count: int) -> Tree:
        """A tree without neighbors: every vector stays as it is."""
        return cls(np.full(count, NONE), np.arange(count))

    @classmethod
    def shortest(cls, distance: np.ndarray, norm: np.ndarray) -> Tree:
        """The minimum spanning tree of vectors and origin: no edge on a path is longer than the path's ends are apart.

        Args:
            distance: of each pair, (R, R).
            norm: of each vector, (R,).
        """
        count = len(norm)
        lengths = np.zeros((count + 1, count + 1))
        lengths[:count, :count], lengths[:count, count] = NEAR * distance, norm
        upper = np.triu_indices(count + 1, 1)
        ranks = np.zeros_like(lengths)
        ranks[upper] = rankdata(lengths[upper])  # all above 0: the solver takes 0 for no edge
        order, parent = breadth_first_order(minimum_spanning_tree(ranks), count, directed=False)
        return cls(np.where(parent[:count] == count, NONE, parent[:count]), order[1:])

    @property
    def plain(self) -> bool:
        """Whether every vector stays as it is."""
        return bool((self.neighbor == NONE).all())

    @cached_property
    def paths(self) -> torch.Tensor:
        """The differences that add up to each vector, (R, R) float64, 1 for those that do and 0 for others."""
        paths = np.eye(len(self.order))
        for at in self.order:
            if self.neighbor[at] != NONE:
                paths[at] += paths[self.neighbor[at]]
        return torch.from_numpy(paths)

    def subtract(self, vectors: torch.Tensor) -> torch.Tensor:
        """Subtracts from each of `vectors` (R, ...) its neighbor, in place."""
        for at in self.order[::-1]:
            if self.neighbor[at] != NONE:
                vectors[at] -= vectors[self.neighbor[at]]
        return vectors

    def loses_digits(self, geometry: Geometry) -> bool:
        """Whether its edges are much longer than those of the shortest tree."""
        squares = np.sort(geometry.products.diagonal().numpy())
        best = geometry.shortest
        edges = np.where(
            best.neighbor == NONE,
            geometry.norm.numpy() ** 2,
            geometry.squared_distance.numpy()[np.arange(len(squares)), best.neighbor],
        )
        return bool((squares > LOST * np.sort(edges)).any())


@dataclass(frozen=True)
class Geometry:
    """Inner products of R vectors, from those of their differences.

    Attributes:
        products: of the vectors minus their neighbors, (R, R) float64.
        tree: the neighbors.

    Examples:
        >>> near = Geometry.of(torch.tensor([[1.0, 0.0], [1.0, 1e-9]], dtype=torch.float64))
        >>> round(float(near.distance[0, 1]) * 1e9, 6)
        1.0
    """

    products: torch.Tensor
    tree: Tree

    @classmethod
    def of(cls, vectors: torch.Tensor) -> Geometry:
        """Returns the geometry of vectors in memory, (R, d) float64, of any scale."""
        if not torch.isfinite(vectors).all() or not vectors.any():
            return cls.unaided(vectors)
        exponent = torch.frexp(vectors.abs().max()).exponent
        scaled = torch.ldexp(vectors, -exponent)
        tree = cls.unaided(scaled).shortest
        differences = tree.subtract(scaled.clone())
        return cls(torch.ldexp(differences @ differences.T, 2 * exponent), tree)

    @classmethod
    def unaided(cls, vectors: torch.Tensor) -> Geometry:
        """Returns the geometry of vectors (R, d) without neighbors, which loses distances below 1e-8 of the lengths."""
        return cls(vectors @ vectors.T, Tree.none(len(vectors)))

    @cached_property
    def shortest(self) -> Tree:
        """The minimum spanning tree of the vectors."""
        return Tree.shortest(self.distance.numpy(), self.norm.numpy())

    @cached_property
    def gram(self) -> torch.Tensor:
        """Inner products of the vectors themselves, (R, R)."""
        if self.tree.plain:
            return self.products
        paths = self.tree.paths
        return paths @ self.products @ paths.T

    @cached_property
    def norm(self) -> torch.Tensor:
        """Lengths, (R,)."""
        return self.gram.diagonal().clamp_min(0).sqrt()

    @cached_property
    def squared_distance(self) -> torch.Tensor:
        """Squared Euclidean distance of each pair, (R, R); 0 for equal vectors."""
        squares = self._forms(-1).clamp_min(0)
        return (squares + squares.T) / 2

    def _forms(self, sign: int) -> torch.Tensor:
        """Inner products of a - b with a + `sign` b for each pair, (R, R), from their paths."""
        if self.tree.plain:
            squares = self.products.diagonal()
            return squares[:, None] - self.products.T + sign * (self.products - squares)
        paths = self.tree.paths
        count = len(paths)
        step = max(1, BLOCK_ELEMENTS // max(count, 1) ** 2)
        rows = []
        for block in paths.split(step):
            away = (block[:, None] - paths).flatten(0, 1)
            beside = away if sign < 0 else (block[:, None] + paths).flatten(0, 1)
            rows.append(((away @ self.products) * beside).sum(1).view(-1, count))
        return torch.cat(rows)

    @property
    def distance(self) -> torch.Tensor:
        """Euclidean distance of each pair, (R, R)."""
        return self.squared_distance.sqrt()

    @property
    def centered(self) -> torch.Tensor:
        """Inner products of the vectors minus their mean, (R, R)."""
        return centered(self.squared_distance)

    @property
    def gap(self) -> torch.Tensor:
        """1 - cosine of each pair, (R, R), accurate also for near vectors; NaN with a vector of zeros.

        |a - b|^2 - (|a| - |b|)^2 = 2 |a| |b| (1 - cosine).
        """
        norm, squares, gram = self.norm, self.squared_distance, self.gram
        scale = norm[:, None] * norm
        known = torch.where((norm[:, None] > 0) & (norm > 0), 1.0, torch.nan)
        taller = self._forms(1)
        near = (squares - (taller / (norm[:, None] + norm)).square()).clamp_min(0) / (2 * scale)
        far = 1 - gram / norm[:, None] / norm
        return torch.where(squares < scale, near, far).clamp(0, 2).fill_diagonal_(0) * known

    @property
    def cosine(self) -> torch.Tensor:
        """Cosine of each pair, (R, R), between -1 and 1; NaN with a vector of zeros, which has no direction."""
        return 1 - self.gap


def centered(squares: torch.Tensor) -> torch.Tensor:
    """Inner products of vectors minus their mean, (R, R), from the squared distance of each pair."""
    mean = squares.mean(0)
    return (mean + mean[:, None] - squares - mean.mean()) / 2
