"""Converts slices of an encoded tensor to slices of its stored parts."""

from __future__ import annotations


def as_slice(part: int | slice) -> slice:
    """Returns `part` as a slice; an integer becomes a slice of length 1."""
    return slice(part, part + 1) if isinstance(part, int) else part


def covering(part: int | slice, size: int) -> slice:
    """Returns the blocks of `size` entries that `part` touches, as a slice."""
    part = as_slice(part)
    return slice(part.start // size, -(-part.stop // size))


def aligned(part: int | slice, unit: int, size: int) -> slice:
    """Returns `part` extended to whole blocks of `unit` entries, in a dimension of `size` entries."""
    blocks = covering(part, unit)
    return slice(blocks.start * unit, min(blocks.stop * unit, size))


def within(part: int | slice, outer: slice) -> int | slice:
    """Returns `part` relative to the start of `outer`."""
    if isinstance(part, int):
        return part - outer.start
    return slice(part.start - outer.start, part.stop - outer.start)
