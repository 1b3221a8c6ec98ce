"""p-values from random draws, and false discovery rates."""

from __future__ import annotations

import numpy as np
from scipy.stats import false_discovery_control

ROUNDING = 1e-12


def p_of_draws(observed: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """p-values (...): the share of draws (draws, ...) under the null that are at least as large as `observed` (...).

    The observed value counts as one draw (Phipson and Smyth 2010). The p-value is nan if the observed value is.

    Examples:
        >>> p_of_draws(np.array(3.0), np.array([1.0, 2.0, 4.0])).item()
        0.5
    """
    p = (1 + (draws >= observed - ROUNDING).sum(0)) / (1 + len(draws))
    return np.where(np.isnan(observed), np.nan, p)


def discoveries(p: np.ndarray) -> np.ndarray:
    """q-values of p-values of any shape (Benjamini and Hochberg 1995); nan values do not count.

    Examples:
        >>> discoveries(np.array([0.01, 0.5, np.nan])).tolist()
        [0.02, 0.5, nan]
    """
    q = np.full(p.shape, np.nan)
    known = ~np.isnan(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def mantel(one: np.ndarray, other: np.ndarray, draws: int) -> float:
    """Two-sided p-value of the correlation of two symmetric matrices (E, E), from permutations of the second one.

    Pairs with a nan do not count (Mantel 1967, Cancer Research 27).

    Examples:
        >>> points = np.random.default_rng(0).normal(size=(9, 1))
        >>> distance = np.abs(points - points.T)
        >>> mantel(distance, distance, 999) <= 0.002
        True
    """
    generator = np.random.default_rng(0)
    known = np.flatnonzero(np.isfinite(one).any(1) & np.isfinite(other).any(1))
    one, other = one[np.ix_(known, known)], other[np.ix_(known, known)]
    at = np.tril_indices(len(known), -1)
    orders = np.stack([np.arange(len(known)), *(generator.permutation(len(known)) for _ in range(draws))])
    dealt = np.stack([other[np.ix_(order, order)][at] for order in orders])  # (1 + draws, pairs)
    fixed = one[at] - one[at].mean()
    dealt = dealt - dealt.mean(1, keepdims=True)
    size = np.abs(dealt @ fixed)
    return float((size >= size[0] * (1 - ROUNDING)).mean())
