"""Conversion of q and k between the two orders of rows for rotary position embeddings."""

from __future__ import annotations

from moe_probe.checkpoint import LazyTensor


def half_by_half(tensor: LazyTensor, heads: int) -> LazyTensor:
    """Reorders rows (or a bias) of q or k from adjacent rotary pairs to transformers' pairs, half a head apart.

    Row 2 i + j of a head of size s becomes row j s / 2 + i.
    """
    rows, *columns = tensor.shape
    pairs = tensor.reshape(heads, rows // heads // 2, 2, *columns)
    return pairs.transpose(1, 2).reshape(rows, *columns)
