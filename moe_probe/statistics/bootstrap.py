"""Confidence intervals over documents, since tokens of one document are not independent.

The bootstrap resamples units: documents, or clusters of documents. Intervals are of the t type: the estimate plus and
minus a multiple of the jackknife's standard error. On each side, the multiple is the larger of two quantiles: that of
Student's t, whose degrees of freedom follow from the effective number of units (Kish 1965), which suits units of
different sizes; and that of the t statistics of resampled influence values (Efron and Tibshirani 1993, chapter 12),
which suits skewed units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import t as student

from moe_probe.signatures import check_number

DRAWS = 1000
MOST_DRAWS = 1_000_000
LEAST_UNITS = 5
MOST_ERRORS = 4.0  # quantiles of resamples that hardly vary are not believed beyond so many times Student's
LEVEL = 0.95
ROUNDING = 1e-9  # of an estimate: standard errors below are none
AT_ONCE = 1 << 22  # t statistics that are held
FEW = f"fewer than {LEAST_UNITS} documents, or documents that do not differ"
Sums = Mapping[str, np.ndarray]
Statistic = Callable[[Sums], np.ndarray]


def check_draws(draws: int, name: str = "bootstrap") -> None:
    """Raises an error if `draws` is not a number of draws; 0 means none.

    Raises:
        WrongType: the value is not a whole number.
        OutOfRange: the number is below 0 or above MOST_DRAWS.
    """
    check_number(name, draws, 0, MOST_DRAWS)


def interval(
    statistic: Statistic,
    sums: Sums,
    draws: int = DRAWS,
    weight: np.ndarray | None = None,
    limits: tuple[float, float] = (-np.inf, np.inf),
    debias: bool = False,
    seed: int = 0,
    level: float = LEVEL,
    in_steps: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence interval of a statistic of sums over units.

    Args:
        statistic: takes totals (n, ...) by name, returns values (n, ...).
        sums: by name, (units, ...).
        draws: number of resamples.
        weight: contribution of each unit to each value, (units, ...), such as its tokens; units of weight 0 do not
            count. By default, units whose sums are all 0 do not count and the others have equal weight.
        limits: smallest and largest possible value.
        debias: subtract the jackknife's estimate of the bias in few units (Quenouille 1956); the interval is then not
            centered on the estimate.
        seed: of the random resamples.
        level: coverage of the interval, such as 0.95.
        in_steps: whether the statistic changes in steps, as ranks do. Leaving out one unit of many then overestimates
            the error; the influence of a unit is instead that of as much more weight as moves the mean by the order of
            its standard error (1 / sqrt(units) of the unit's deviation).

    Returns:
        Lower and upper ends, (...) each; nan if fewer than LEAST_UNITS units count, or if units do not differ.

    Examples:
        >>> sums = {"hits": np.array([1.0, 2.0, 3.0, 2.0, 1.0]), "rows": np.full(5, 4.0)}
        >>> low, high = interval(lambda total: total["hits"] / total["rows"], sums)
        >>> bool(low < 0.45 < high)
        True
    """
    totals = {name: np.sum(value, 0, keepdims=True) for name, value in sums.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = statistic({name: np.asarray(value, float) for name, value in totals.items()})[0]
        if in_steps:
            without = _left_out(statistic, sums, totals, estimate)
        else:
            without = statistic({name: totals[name] - value for name, value in sums.items()})  # (units, ...)
    if weight is None:
        weight = np.any([np.reshape(value != 0, (len(value), -1)).any(1) for value in sums.values()], axis=0)
    return jackknife_interval(estimate, without, np.asarray(weight, float), draws, limits, debias, seed, level)


def _left_out(statistic: Statistic, sums: Sums, totals: Sums, estimate: np.ndarray) -> np.ndarray:
    """Estimates without each unit, (units, ...), extrapolated from those with about sqrt(units) more of it."""
    units = len(next(iter(sums.values())))
    moved = 1 / np.sqrt(max(units, 2))  # part of a unit's deviation by which the mean moves
    more = moved * units / (1 - moved)
    with_more = statistic({name: totals[name] + more * value for name, value in sums.items()})
    return estimate - (with_more - estimate) / (moved * max(units - 1, 1))


def jackknife_interval(
    estimate: np.ndarray,
    without: np.ndarray,
    weight: np.ndarray,
    draws: int = DRAWS,
    limits: tuple[float, float] = (-np.inf, np.inf),
    debias: bool = False,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[np.ndarray, np.ndarray]:
    """The same interval, from an estimate (...) and the estimates without each unit, (units, ...)."""
    weight = np.broadcast_to(weight.reshape(*weight.shape, *[1] * (without.ndim - weight.ndim)), without.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        influence, bias, error, normal = _influence(estimate, without, weight, level)
        below, above = _errors(influence, draws, seed, level)
        known = ((weight > 0).sum(0) >= LEAST_UNITS) & (error > ROUNDING * np.abs(estimate)) & np.isfinite(estimate)
        estimate = estimate - bias if debias else estimate
        low = estimate - error * np.clip(above, normal, MOST_ERRORS * normal)
        high = estimate + error * np.clip(-below, normal, MOST_ERRORS * normal)
    return np.where(known, np.clip(low, *limits), np.nan), np.where(known, np.clip(high, *limits), np.nan)


def _influence(
    estimate: np.ndarray, without: np.ndarray, weight: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centered influence of units, the jackknife's bias and standard error, and the quantile of Student's t."""
    used = weight > 0
    count = used.sum(0)
    influence = np.where(used, (estimate - without) * np.maximum(count - 1, 0), 0)
    bias = -influence.sum(0) / count
    influence += np.where(used, bias, 0)
    error = np.sqrt((influence**2).sum(0) / (count * (count - 1)))
    alike = weight.sum(0) ** 2 / (weight**2).sum(0)  # units of equal size that would weigh the same (Kish 1965)
    return influence, bias, error, student.ppf((1 + level) / 2, np.maximum(alike - 1, 1))


def student_p(
    estimate: np.ndarray, without: np.ndarray, null: float = 0.0, less: bool = False, debias: bool = False
) -> np.ndarray:
    """p-value of Student's test, with the jackknife's standard error, of the null hypothesis that the value is `null`.

    Args:
        estimate: estimates, (...).
        without: estimates without each unit, (units, ...); units have equal weight.
        null: value under the null hypothesis.
        less: one-sided, against smaller values; two-sided by default.
        debias: subtract the jackknife's estimate of the bias in few units.

    Returns:
        p-values, (...); nan if there are fewer than LEAST_UNITS units, or if units do not differ.

    Examples:
        >>> values = np.array([1.0, 2.0, 3.0, 2.0, 1.0])
        >>> without = (values.sum() - values) / 4
        >>> student_p(values.mean(), without, 1.8).item()
        1.0
    """
    units = len(without)
    with np.errstate(divide="ignore", invalid="ignore"):
        _, bias, error, _ = _influence(estimate, without, np.ones_like(without), LEVEL)
        t = ((estimate - bias if debias else estimate) - null) / error
        p = student.cdf(t, units - 1) if less else 2 * student.sf(np.abs(t), units - 1)
    return np.where((units >= LEAST_UNITS) & (error > ROUNDING * np.abs(estimate)), p, np.nan)


def crossed_interval(statistic: Statistic, ways: Sequence[Sums]) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a statistic of sums over two crossed kinds of units, such as words and documents.

    The variance is the sum of those over each kind minus that over their cells (Cameron, Gelbach and Miller 2011,
    Journal of Business and Economic Statistics 29, equation 2.11), but at least the larger of the two.

    Args:
        statistic: takes totals (n, ...) by name, returns values (n, ...).
        ways: the sums by name over units of the first kind, over units of the second kind, and over their cells.
    """
    variances, normals, counts, estimate = [], [], [], np.array(np.nan)
    for sums in ways:
        totals = {name: np.sum(value, 0, keepdims=True) for name, value in sums.items()}
        with np.errstate(divide="ignore", invalid="ignore"):
            estimate = statistic(totals)[0]
            without = statistic({name: totals[name] - value for name, value in sums.items()})
            weight = np.broadcast_to(np.ones(len(without)).reshape(-1, *[1] * (without.ndim - 1)), without.shape)
            _, _, error, normal = _influence(estimate, without, weight, LEVEL)
        variances.append(error**2)
        normals.append(normal)
        counts.append(len(without))
    variance = np.maximum(variances[0] + variances[1] - variances[2], np.maximum(variances[0], variances[1]))
    half = np.sqrt(variance) * np.maximum(normals[0], normals[1])
    half = np.where((min(counts[:2]) >= LEAST_UNITS) & (half > 0), half, np.nan)
    return estimate - half, estimate + half


def _errors(influence: np.ndarray, draws: int, seed: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of the t statistics of resampled influence values (units, ...), whose mean is 0."""
    units, flat = len(influence), influence.reshape(len(influence), -1)
    drawn = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws).astype(np.float32)
    scale = np.abs(flat).max(0)
    flat = (flat / np.where(scale > 0, scale, 1)).astype(np.float32)
    quantiles = np.zeros((2, flat.shape[1]))
    step = max(1, AT_ONCE // draws)
    for start in range(0, flat.shape[1], step):
        part = flat[:, start : start + step]
        total, squares = drawn @ part, drawn @ part**2
        t = total / np.sqrt(np.maximum(squares - total**2 / units, 0))
        t[~np.isfinite(t)] = 0
        quantiles[:, start : start + step] = np.quantile(t, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return quantiles[0].reshape(influence.shape[1:]), quantiles[1].reshape(influence.shape[1:])


def ratio(total: Sums) -> np.ndarray:
    """The statistic `total` (n, ...) / `count` (n, ...), which may lack the last dimensions."""
    count = total["count"]
    return total["total"] / count.reshape(*count.shape, *[1] * (total["total"].ndim - count.ndim))


def ratio_interval(
    total: np.ndarray, count: np.ndarray, draws: int = DRAWS, limits: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the sum of `total` (units, ...) divided by that of `count`, which may lack the last dimensions."""
    return interval(ratio, {"total": total, "count": count}, draws, count, limits)


def sums_over(values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Sums of rows (n, ...) over each unit, (units, ...), float64."""
    _, inverse = np.unique(unit, return_inverse=True)
    total = np.zeros((inverse.max(initial=-1) + 1, *values.shape[1:]))
    np.add.at(total, inverse, values)
    return total
