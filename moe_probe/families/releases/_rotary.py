"""Rows of q and k for the two ways in which rotary positions pair them."""

from __future__ import annotations

from moe_probe.checkpoint import LazyTensor


def half_by_half(tensor: LazyTensor, heads: int) -> LazyTensor:
    """Rows (or a bias) of q or k that are paired next to each other, as transformers pairs them: half a head apart.

    Row 2 i + j of a head of size s becomes row j s / 2 + i.
    """
    rows, *columns = tensor.shape
    pairs = tensor.reshape(heads, rows // heads // 2, 2, *columns)
    return pairs.transpose(1, 2).reshape(rows, *columns)
