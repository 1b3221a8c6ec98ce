"""Choices of experts by document label: shares, distances between labels, intervals and chance levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_probe.routing import LayerBatch
from moe_probe.statistics.bootstrap import DRAWS, LEAST_UNITS, LEVEL
from moe_probe.statistics.rates import discoveries, p_of_draws
from moe_probe.statistics.states import Kept, PerUnit, UnitSums

ENDS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
SCALES = np.array([0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.5, 2, 3, 5])  # of the differences that are tried
Shares = Callable[[np.ndarray], np.ndarray]  # choices (..., labels, E) to values (..., labels, m)
Spread = Callable[[np.ndarray], np.ndarray]  # values (..., labels, m) to how far apart labels are, (...)


def add_by_label(state: Kept[UnitSums], batch: LayerBatch) -> None:
    """Adds the choices of each expert in each document to a state, (units, E) by label."""
    labels, unit = batch.labels, np.repeat(batch.tokens.unit, batch.layer.subtokens)
    selected = batch.selected.long()
    for label in sorted(set(labels)):
        rows = np.flatnonzero(labels == label)
        state.add(batch, (unit[rows], selected[rows]), key=str(label))


def labeled_tables(state: Kept[UnitSums]) -> dict[str, np.ndarray]:
    """Choices (layers, units, E) of each label except ""."""
    return {label: table for label, table in PerUnit.tables(state).items() if label}


def totals(tables: Mapping[str, np.ndarray]) -> np.ndarray:
    """Choices of each label, (layers, labels, E)."""
    return np.stack([table.sum(1) for table in tables.values()], axis=1)


def expert_shares(counts: np.ndarray) -> np.ndarray:
    """Share of each expert in the choices, (..., E)."""
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(-1, keepdims=True)


def total_variation(share: np.ndarray) -> np.ndarray:
    """Mean total variation distance of pairs of labels: half the sum of |p_a - p_b|, (..., labels, E) to (...)."""
    labels = share.shape[-2]
    if labels < 2:
        return np.full(share.shape[:-2], np.nan)
    weight = 2 * np.arange(labels) - labels + 1  # how often a value is the larger of a pair, less how often the smaller
    return (weight[:, None] * np.sort(share, axis=-2)).sum((-2, -1)) / (labels * (labels - 1))


def resampled(tables: Mapping[str, np.ndarray], layer: int, draws: int) -> np.ndarray:
    """Choices of one layer with documents resampled within their labels, (draws, labels, E)."""
    generator = np.random.default_rng(0)
    sums = []
    for table in tables.values():
        units = len(table[layer])
        drawn = generator.multinomial(units, np.full(units, 1 / units), size=draws)
        sums.append(drawn.astype(float) @ table[layer])
    return np.stack(sums, axis=1)


def permuted(tables: Mapping[str, np.ndarray], layer: int, draws: int) -> np.ndarray:
    """Choices of one layer with labels permuted among documents, (draws, labels, E)."""
    generator = np.random.default_rng(0)
    label = np.repeat(np.arange(len(tables)), [table.shape[1] for table in tables.values()])
    units = np.concatenate([table[layer] for table in tables.values()]).astype(float)
    dealt = generator.permuted(np.tile(label, (draws, 1)), axis=1)
    return np.stack([(dealt == at).astype(float) @ units for at in range(len(tables))], axis=1)


def share_tests(tables: Mapping[str, np.ndarray], permutations: int) -> tuple[np.ndarray, np.ndarray]:
    """Tests whether a label's share of an expert differs from the share among all labels, (layers, labels, E) each.

    Returns:
        Two-sided p-values, the share of random permutations of the labels among documents with a difference as large,
        and q-values, with the false discovery rate controlled over layers, labels and experts.
    """
    counts = totals(tables)
    pooled = expert_shares(counts.sum(1))
    away = np.abs(expert_shares(counts) - pooled[:, None])
    null = (np.abs(expert_shares(permuted(tables, at, permutations)) - pooled[at]) for at in range(len(pooled)))
    p = np.stack([p_of_draws(one, draws) for one, draws in zip(away, null, strict=True)])
    return p, discoveries(p)


@dataclass(frozen=True)
class Apart:
    """Distance between labels, corrected for chance; each attribute is (layers,).

    Attributes:
        value: the estimate, 0 if labels differ no more than resampled documents do; the observed distance, without an
            interval, if documents of a label do not differ at all.
        low, high: ends of its 95 % interval.
        chance, chance_low, chance_high: mean and ends of the distance with labels permuted among documents.
        p: share of permutations with a distance as large.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    chance: np.ndarray
    chance_low: np.ndarray
    chance_high: np.ndarray
    p: np.ndarray


def apart(
    tables: Mapping[str, np.ndarray], shares: Shares, spread: Spread, draws: int, permutations: int, plain: bool = False
) -> Apart:
    """Estimates the distance between labels in each layer, corrected for chance.

    The distance between two noisy estimates is above 0 even if the true distance is 0. The estimate returned is the
    true distance for which the observed one would be the median: labels' differences are scaled, noise of resampled
    documents is added, and the resulting distances are compared with the observed one. The interval contains the
    distances that the observed one does not exclude.

    Args:
        tables: choices (layers, units, E) by label.
        shares: computes the compared values from choices (..., labels, E).
        spread: the distance, which must grow when its argument is scaled up.
        draws: resamples for the interval; 0 for none.
        permutations: permutations for the chance level; 0 for none.
        plain: return the observed distance without correction.
    """
    layers = len(next(iter(tables.values())))
    by_layer = [_apart(tables, layer, shares, spread, draws, permutations, plain) for layer in range(layers)]
    return Apart(*np.array(by_layer, float).T)


def _apart(
    tables: Mapping[str, np.ndarray],
    layer: int,
    shares: Shares,
    spread: Spread,
    draws: int,
    permutations: int,
    plain: bool,
) -> list[float]:
    values = shares(np.stack([table[layer].sum(0) for table in tables.values()]))
    observed = float(spread(values))
    few = min(int(table[layer].any(1).sum()) for table in tables.values()) < LEAST_UNITS
    noise = None if few else resampled_noise(tables, layer, shares, draws or DRAWS, values)
    constant = noise is not None and not (np.abs(noise) > ROUNDING).any()  # documents of a label do not differ
    curve = None if noise is None or constant else _curve(noise, spread, values)
    value = observed if plain or constant else _true(curve, 1, observed)
    low, high = (_true(curve if draws else None, end, observed) for end in (2, 0))
    if not permutations:
        return [value, low, high, np.nan, np.nan, np.nan, np.nan]
    null = spread(shares(permuted(tables, layer, permutations)))
    p = (1 + (null >= observed - ROUNDING).sum()) / (1 + permutations)
    if not plain and not constant:
        null = _true(curve, 1, null)
    return [value, low, high, null.mean(), *np.quantile(null, ENDS), p]


ROUNDING = 1e-12


def resampled_noise(
    tables: Mapping[str, np.ndarray], layer: int, shares: Shares, draws: int, values: np.ndarray
) -> np.ndarray:
    """Deviations of resampled documents' values from `values`, those of all documents, (draws, labels, ...)."""
    units = np.array([table[layer].any(1).sum() for table in tables.values()])
    wider = np.sqrt(units / (units - 1))  # resamples vary less than samples by so much
    return (shares(resampled(tables, layer, draws)) - values) * wider[:, None]


def _curve(noise: np.ndarray, spread: Spread, values: np.ndarray) -> np.ndarray:
    """Quantiles 0.025, 0.5, 0.975 of the observed distance at each of s scales, and the true distance there, (s, 4)."""
    unit = float(spread(values)) or 1.0
    quantiles = [np.quantile(spread(scale * values + noise), [ENDS[0], 0.5, ENDS[1]]) for scale in SCALES]
    return np.column_stack([np.maximum.accumulate(quantiles, axis=0), SCALES * unit])


def _true(curve: np.ndarray | None, quantile: int, observed: Any) -> Any:
    """The true distance for which the observed one would be a quantile (of `_curve`); nan if it is not known."""
    return np.nan * observed if curve is None else np.interp(observed, curve[:, quantile], curve[:, 3])
