"""Statistics over documents, with interval and p-value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moe_probe.statistics.bootstrap import DRAWS, jackknife_interval, student_p


def of_units(
    statistic: Callable[[np.ndarray], np.ndarray],
    table: np.ndarray,
    null: float = 0.0,
    less: bool = False,
    debias: bool = False,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[float, float, float, float]:
    """Estimate, interval and p-value of a statistic of the sum over units.

    Args:
        statistic: takes sums (n, ...), returns values (n,).
        table: contribution of each unit, (units, ...); units of zeros do not count.
        null: value under the null hypothesis.
        less: one-sided, against smaller values; two-sided by default.
        debias: subtract the jackknife's estimate of the bias in few units.
        limits: smallest and largest possible value.

    Examples:
        >>> table = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 2.0], [0.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
        >>> of_units(lambda sums: sums[:, 0] / sums[:, 1], table, 0.5)[0]
        0.5
    """
    table = table[table.reshape(len(table), -1).any(1)]
    total = table.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate, without = statistic(total)[0], statistic(total - table)
    low, high = jackknife_interval(estimate, without, np.ones(len(table)), DRAWS, limits, debias)
    p = student_p(estimate, without, null, less, debias)
    if debias and len(table):
        estimate = estimate + (without - estimate).mean() * -(len(table) - 1)
    return float(np.clip(estimate, *limits)), float(low), float(high), float(p)
