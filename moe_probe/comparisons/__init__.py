"""Several models or traces side by side: what training settles, what tuning or quantization changes.

Each comparison is a function of the file's name: `comparisons.routing_drift(before, after, texts)`. Its module says how
many sources it takes (`SOURCES`), and whether the command line runs it when nothing is asked for (`UNASKED`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import xarray as xr

from moe_probe.comparisons.side_by_side import open_sources
from moe_probe.registry import Registry

COMPARISONS: Registry[Callable[..., xr.Dataset]] = Registry(
    "moe_probe.comparisons.analyses", "comparisons", "comparison", getattr
)
__all__ = ["names", "open_sources"]


def names() -> Mapping[str, Callable[..., xr.Dataset]]:
    """Every comparison by its name, those of other packages too (entry points `moe_probe.comparisons`)."""
    return COMPARISONS


def __getattr__(name: str) -> Callable[..., xr.Dataset]:
    if name in COMPARISONS:
        return COMPARISONS[name]
    raise AttributeError(f"module 'moe_probe.comparisons' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *COMPARISONS])
