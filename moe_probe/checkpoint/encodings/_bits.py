"""Unpacks codes of a few bits from words, and views words as bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moe_probe.checkpoint.lazy import Index, LazyTensor, Size, Typed, itemsize_of
from moe_probe.checkpoint.slices import covering

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

WORD = 32


class Bytes(Typed):
    """The source of a tensor's bytes, lowest byte of each value first: the last dimension grows by the item size."""

    def __init__(self, base: LazyTensor):
        self.base, self.parts, self.kind = base, (base,), "uint8"
        self.each = itemsize_of(base.kind)
        self.shape = Size([*base.shape[:-1], base.shape[-1] * self.each])

    def read(self, index: Index) -> torch.Tensor:
        *lead, columns = index
        assert isinstance(columns, slice)
        words = covering(columns, self.each)
        values = self.base[(*lead, words)].read().contiguous().view(torch.uint8)
        return values[..., columns.start - self.each * words.start :][..., : columns.stop - columns.start]


class Viewed(Typed):
    """The source of a tensor of bytes, viewed as another dtype of one byte."""

    def __init__(self, base: LazyTensor, kind: str):
        self.base, self.parts, self.shape, self.kind = base, (base,), base.shape, kind

    def read(self, index: Index) -> torch.Tensor:
        return self.base[index].read().contiguous().view(getattr(torch, self.kind))


def unpacked(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Returns the codes (uint8) of words that pack them without gaps from the lowest bit on; a code may span two words.

    Args:
        words: 32-bit words; their number along `dim` is a multiple of the words of `period(bits)`.
        bits: bits per code, 1 to 8.
        dim: the dimension that grows by a factor of 32 / bits; codes along it are contiguous in memory.
    """
    stored = words.movedim(dim, -1).clone(memory_format=torch.contiguous_format).view(torch.uint8)
    codes = _halved(stored, bits) if WORD % bits == 0 else _apart(stored, bits)
    return codes.movedim(-1, dim)


def _halved(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns codes of 1, 2, 4 or 8 bits: splits each byte into two of half its bits until each holds one code."""
    width = 8
    while width > bits:
        width //= 2
        pairs = codes.to(torch.int16)
        codes = (pairs << (8 - width)).bitwise_or_(pairs).bitwise_and_(0x0101 * (2**width - 1)).view(torch.uint8)
    return codes


def _apart(stored: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns codes of any width: spreads the 8 codes in `bits` bytes over a 64-bit word, first halves, last bytes."""
    stored = stored.unflatten(-1, (-1, bits))
    words = stored.new_zeros(*stored.shape[:-1], 8)
    words[..., :bits] = stored
    codes = words.view(torch.int64)
    for each in (4, 2, 1):  # number of codes that move together
        low = sum((2 ** (each * bits) - 1) << start for start in range(0, 64, 16 * each))
        codes = (codes & low) | ((codes & (low << each * bits)) << (8 - bits) * each)
    return codes.view(torch.uint8).flatten(-2)


def padded(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Returns the codes (uint8) of words that hold `32 // bits` whole codes each; the highest bits may be unused."""
    words = words.view(torch.int32).movedim(dim, -1)
    shifts = torch.arange(WORD // bits, dtype=torch.int32) * bits
    return ((words.unsqueeze(-1) >> shifts) & (2**bits - 1)).to(torch.uint8).flatten(-2).movedim(-1, dim)


def period(bits: int) -> tuple[int, int]:
    """Returns a number of codes that fill whole words, and the number of these words."""
    return (WORD // bits, 1) if WORD % bits == 0 else (WORD, bits)


def read_codes(
    read: Callable[[slice], torch.Tensor], part: slice, bits: int, dim: int, total: int, dense: bool = True
) -> torch.Tensor:
    """Reads the codes of some entries of a dimension, uint8.

    Args:
        read: returns the words in a slice of `dim`.
        part: the entries to read.
        bits: bits per code.
        dim: the dimension, counted from the end.
        total: number of words along `dim`; the last period may be incomplete.
        dense: whether codes may span two words; otherwise each word holds whole codes.
    """
    codes, words = period(bits) if dense else (WORD // bits, 1)
    blocks = covering(part, codes)
    packed = read(slice(blocks.start * words, min(blocks.stop * words, total)))
    lacking = -packed.shape[dim] % words
    if lacking:
        filled = list(packed.shape)
        filled[dim] = lacking
        packed = torch.cat([packed, packed.new_zeros(filled)], dim)
    values = (unpacked if dense else padded)(packed, bits, dim)
    return values.narrow(dim, part.start - blocks.start * codes, part.stop - part.start)
