"""States for sparse whole numbers: how often each occurred, and where first."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from moe_probe.statistics.states import State

PENDING = 1 << 16  # keys of a tally that wait before they are sorted in


class Counts:
    """Number of occurrences of each whole number.

    Attributes:
        keys: distinct, ascending, int64.
        counts: of each, int64.
    """

    joined, start = np.add, 0  # how counts of one key become one

    def __init__(self, keys: np.ndarray, counts: np.ndarray):
        self._keys, self._counts = [keys], [counts]

    def take(self, other: Counts) -> Self:
        """Merges the counts of another instance; returns this one."""
        self._keys += other._keys
        self._counts += other._counts
        if sum(map(len, self._keys[1:])) > max(PENDING, len(self._keys[0])):
            self._sort_in()
        return self

    def _sort_in(self) -> None:
        if len(self._keys) > 1:
            unique, inverse = np.unique(np.concatenate(self._keys), return_inverse=True)
            counts = np.full(len(unique), self.start, np.int64)
            self.joined.at(counts, inverse, np.concatenate(self._counts))
            self._keys, self._counts = [unique], [counts]

    @property
    def keys(self) -> np.ndarray:
        self._sort_in()
        return self._keys[0]

    @property
    def counts(self) -> np.ndarray:
        self._sort_in()
        return self._counts[0]


class Earliest(Counts):
    """The smallest position at which each whole number occurred, in `counts`."""

    joined, start = np.minimum, np.iinfo(np.int64).max


class Tally(State[Counts]):
    """Counts of whole numbers, most of which never occur."""

    def of(self, value: Any) -> Counts:
        keys, counts = np.unique(np.asarray(value), return_counts=True)
        return Counts(keys.astype(np.int64), counts)

    def join(self, one: Counts, other: Counts) -> Counts:
        return one.take(other)

    def arrays(self, value: Counts) -> dict[str, np.ndarray]:
        return {"keys": value.keys, "counts": value.counts}

    def value(self, arrays: dict[str, np.ndarray]) -> Counts:
        return Counts(arrays["keys"], arrays["counts"])


class FirstSeen(Tally):
    """First occurrence of each whole number, from pairs of numbers and positions; the smallest position counts.

    Examples:
        >>> one, other = (FirstSeen().of(pair) for pair in (([7, 7], [3, 2]), ([7, 8], [5, 6])))
        >>> FirstSeen().join(one, other).counts.tolist()
        [2, 6]
    """

    def of(self, value: Any) -> Earliest:
        numbers, places = (np.asarray(each, np.int64) for each in value)
        order = np.lexsort((places, numbers))
        keys, first = np.unique(numbers[order], return_index=True)
        return Earliest(keys, places[order][first])

    def value(self, arrays: dict[str, np.ndarray]) -> Earliest:
        return Earliest(arrays["keys"], arrays["counts"])
