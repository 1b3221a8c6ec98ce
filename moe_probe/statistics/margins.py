"""Chance level of pairs that keeps the observed margins: k experts per row, each as frequent as observed.

Experts have fixed preferences, and a row draws k of them one after the other without replacement, in proportion to
their preferences (Plackett and Luce), as the k largest of fixed logits plus Gumbel noise do. Equivalently, each
expert's waiting time is exponential with its preference as the rate, and a row's experts are the first k (Yellott 1977,
Journal of Mathematical Psychology 15).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

STEPS, ENOUGH = 100, 1e-7
TIMES = 240  # at which waiting times are looked at, at equal steps of their logarithm
BEFORE, AFTER = (
    18.0,
    4.0,
)  # logarithms of the earliest and the latest time, from those of the fastest and slowest expert


def chance_pairs(share: np.ndarray, k: int) -> np.ndarray:
    """P(both) of each pair of experts, (E, E); the diagonal is P(expert).

    Args:
        share: of rows that choose each expert, (E,); the shares sum to k.
        k: choices per row.

    Examples:
        >>> chance_pairs(np.array([0.5, 0.5, 0.5, 0.5]), 2)[0, 1].round(5).item()  # 1 of the 6 pairs
        0.16667
    """
    certain = share >= 1 - ENOUGH
    free = np.flatnonzero(~certain & (share > ENOUGH))
    left = k - int(certain.sum())
    joint = np.where(certain[:, None] | certain, np.minimum(share[:, None], share), 0.0)
    if left > 1 and len(free):
        joint[np.ix_(free, free)] = _together(*_waiting(_preferences(share[free], left)), left)
    np.fill_diagonal(joint, share)
    return joint


def _waiting(preference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability that each expert has arrived by each time, and that it arrives in that time step, (E, times)."""
    ends = -np.log(preference.max()) - BEFORE, -np.log(preference.min()) + AFTER
    logs, step = np.linspace(*ends, TIMES, retstep=True)
    rate = preference[:, None] * np.exp(logs)
    return -np.expm1(-rate), rate * np.exp(-rate) * step


def _preferences(share: np.ndarray, k: int) -> np.ndarray:
    """Preferences with which experts are among the first k as often as `share` requires."""
    preference = -np.log1p(-share)
    for _ in range(STEPS):
        preference = preference / preference.sum()
        come, comes = _waiting(preference)
        expected = np.array([(now * room).sum() for now, room in zip(comes, _room(come, k - 1), strict=True)])
        expected *= k / expected.sum()
        if np.abs(expected - share).max() < ENOUGH:
            break
        preference = preference * np.log1p(-share) / np.log1p(-expected.clip(max=1 - ENOUGH))
    return preference


def _together(come: np.ndarray, comes: np.ndarray, k: int) -> np.ndarray:
    """P(both among the first k) of each pair, (E, E): the later one arrives after at most k - 2 others."""
    experts = len(come)
    joint = np.zeros((experts, experts))
    for one in range(experts):
        others = np.arange(experts) != one
        last = comes[one] * come[others] + comes[others] * come[one]
        joint[one, others] = [(at * room).sum() for at, room in zip(last, _room(come[others], k - 2), strict=True)]
    return joint


def _room(come: np.ndarray, most: int) -> Iterable[np.ndarray]:
    """P(at most `most` of the other experts have arrived), (times,), for each expert in turn."""
    before, after = _numbers(come[:-1], most), _numbers(come[:0:-1], most)
    for one, other in zip(before, after[::-1], strict=True):
        yield (one * np.cumsum(other, axis=0)[::-1]).sum(0)


def _numbers(come: np.ndarray, most: int) -> list[np.ndarray]:
    """P(0, 1, ... `most` of the first n experts have arrived), (most + 1, times), for each n from 0."""
    numbers = [np.zeros((most + 1, TIMES))]
    numbers[0][0] = 1
    for one in come:
        grown = numbers[-1] * (1 - one)
        grown[1:] += numbers[-1][:-1] * one
        numbers.append(grown)
    return numbers
