"""Comparisons of several models or traces: over training, after tuning, or after quantization.

Each comparison is a function with its file's name: `comparisons.routing_drift(before, after, texts)`. Its module says
how many sources it takes (`SOURCES`), and whether the command line runs it if the user names none (`UNASKED`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from moe_probe.deferred import Deferred
from moe_probe.registry import Registry

if TYPE_CHECKING:
    import xarray as xr

    from moe_probe.comparisons.side_by_side import open_sources

COMPARISONS: Registry[Callable[..., xr.Dataset]] = Registry(
    "moe_probe.comparisons.analyses", "comparisons", "comparison", getattr
)
__all__ = ["names", "open_sources"]
_NAMES = Deferred(__name__, __file__)


def names() -> Mapping[str, Callable[..., xr.Dataset]]:
    """Every comparison by its name, including those of other packages (entry points `moe_probe.comparisons`)."""
    return COMPARISONS


def __getattr__(name: str) -> Any:
    return COMPARISONS[name] if name in COMPARISONS else _NAMES.attribute(name)


def __dir__() -> list[str]:
    return sorted([*__all__, *COMPARISONS])
