"""Changes over all texts, with bootstrap intervals over documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from moe_probe.results import variable
from moe_probe.statistics.bootstrap import check_draws, interval

__all__ = ["check_draws", "pooled", "with_ends"]
ENDINGS = {"": "", "_low": ", lower end of the 95 % interval", "_high": ", upper end of the 95 % interval"}


def pooled(sums: np.ndarray, counts: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratio of total sum to total count, and the ends of its 95 % interval.

    The bootstrap resamples documents with both their edited and their unedited run, so that changes are paired.

    Args:
        sums: by document or block of documents, (documents, ...).
        counts: number of summands, (documents,).
        draws: resamples; 0 for none.

    Returns:
        Value, lower and upper end, (...) each; ends are nan with fewer than five documents.
    """
    shape = (-1,) + (1,) * (sums.ndim - 1)
    spread: Any = counts.astype(float).reshape(shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = sums.sum(0) / spread.sum(0)
    if draws == 0:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    low, high = interval(lambda total: total["sums"] / total["counts"], {"sums": sums, "counts": spread}, draws)
    return value, low, high


def with_ends(name: str, dims: Sequence[str], values: Iterable[np.ndarray], long_name: str) -> dict[str, xr.DataArray]:
    """Returns the variables `name`, `name_low` and `name_high` in nats, from the values that `pooled` returns."""
    return {
        f"{name}{ending}": variable(dims, of_ending, f"{long_name}{said}", "nats")
        for (ending, said), of_ending in zip(ENDINGS.items(), values, strict=True)
    }
