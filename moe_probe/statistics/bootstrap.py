"""Confidence intervals: the bootstrap resamples documents, since tokens of one document are not independent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch

from moe_probe.signatures import check_number

BLOCKS = 32
MOST_DRAWS = 1_000_000
LEVEL = 0.95
Sums = Mapping[str, np.ndarray]


def check_draws(draws: int, name: str = "bootstrap") -> None:
    """Refuse what is no number of draws; 0 stands for none.

    Raises:
        WrongType, OutOfRange: it is no whole number, below 0 or above MOST_DRAWS.
    """
    check_number(name, draws, 0, MOST_DRAWS)


def block_sums(values: torch.Tensor, document: np.ndarray, blocks: int = BLOCKS) -> torch.Tensor:
    """Sums of rows (n, ...) over the documents of each block, (blocks, ...), float64.

    Documents are dealt into blocks by their number, so that what is kept does not grow with the corpus. With up to
    `blocks` documents each one is a block.
    """
    total = torch.zeros(blocks, *values.shape[1:], dtype=torch.float64)
    return total.index_add_(0, torch.from_numpy(np.asarray(document) % blocks), values.double().cpu())


def interval(
    statistic: Callable[[Sums], np.ndarray], sums: Sums, draws: int, seed: int = 0, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of a statistic of sums over documents (Efron 1979).

    Args:
        statistic: takes totals (draws, ...) by name, gives values (draws, ...).
        sums: by name, (documents or blocks, ...). Those that are 0 throughout have no document.
        draws: resamples.
        seed: of the draws.
        level: of the interval.

    Returns:
        Lower and upper ends; nan with fewer than two documents.

    Examples:
        >>> sums = {"hits": np.array([1.0, 2.0, 3.0]), "rows": np.array([4.0, 4.0, 4.0])}
        >>> low, high = interval(lambda total: total["hits"] / total["rows"], sums, 100)
        >>> bool(low < 0.5 < high)
        True
    """
    used = np.any([np.reshape(value != 0, (len(value), -1)).any(1) for value in sums.values()], axis=0)
    kept = {name: np.asarray(value, float)[used] for name, value in sums.items()}
    count = int(used.sum())
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of slices that are nan throughout
        if count < 2:
            one = statistic({name: np.sum(value, 0, keepdims=True) for name, value in sums.items()})
            nothing = np.full(one.shape[1:], np.nan)
            return nothing, nothing
        weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
        values = statistic({name: np.tensordot(weights.astype(float), value, 1) for name, value in kept.items()})
        low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def per_document(values: np.ndarray, document: np.ndarray) -> np.ndarray:
    """Sums of rows (n, ...) over each document, (documents, ...), float64."""
    _, inverse = np.unique(document, return_inverse=True)
    total = np.zeros((inverse.max(initial=-1) + 1, *values.shape[1:]))
    np.add.at(total, inverse, values)
    return total
