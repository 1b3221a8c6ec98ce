"""Counts of whole numbers, most of which never occur."""

from __future__ import annotations

from typing import Self

import numpy as np

PENDING = 1 << 16  # keys that wait before they are sorted in


class Tally:
    """How often each key was seen.

    Attributes:
        keys: distinct, ascending, int64.
        counts: of each, int64.
    """

    def __init__(self, keys: np.ndarray | None = None, counts: np.ndarray | None = None):
        nothing = np.zeros(0, np.int64)
        self._keys, self._counts = [nothing if keys is None else keys], [nothing if counts is None else counts]

    def add(self, keys: np.ndarray) -> None:
        """See each of these keys once."""
        unique, counts = np.unique(keys, return_counts=True)
        self._take(unique, counts)

    def merge(self, other: Self) -> None:
        """Take in what another one saw."""
        self._take(other.keys, other.counts)

    def _take(self, keys: np.ndarray, counts: np.ndarray) -> None:
        self._keys.append(keys)
        self._counts.append(counts)
        if sum(map(len, self._keys[1:])) > max(PENDING, len(self._keys[0])):
            self._sort_in()

    def _sort_in(self) -> None:
        if len(self._keys) > 1:
            unique, inverse = np.unique(np.concatenate(self._keys), return_inverse=True)
            counts = np.zeros(len(unique), np.int64)
            np.add.at(counts, inverse, np.concatenate(self._counts))
            self._keys, self._counts = [unique], [counts]

    @property
    def keys(self) -> np.ndarray:
        self._sort_in()
        return self._keys[0]

    @property
    def counts(self) -> np.ndarray:
        self._sort_in()
        return self._counts[0]
