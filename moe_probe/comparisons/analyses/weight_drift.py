"""Makes `static.weight_drift` available among the comparisons."""

from __future__ import annotations

from moe_probe.static import weight_drift

SOURCES = (2, 2)
UNASKED = True

__all__ = ["weight_drift"]
