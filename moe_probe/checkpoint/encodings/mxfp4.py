"""MXFP4: gpt-oss's pairs `X_blocks` and `X_scales` (`X.blocks`, `X.scales` in `original/`), decoded to one `X`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._fp4 import Fp4
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.lazy import Index, LazyTensor, Size, Stored, Typed
from moe_probe.errors import DamagedFile

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

PAIRS = {"_blocks": "_scales", ".blocks": ".scales"}
MXFP4_BLOCK = 32


class Flattened(Typed):
    """The source of blocks (..., rows, groups, bytes), flattened to (..., rows, groups * bytes)."""

    def __init__(self, base: LazyTensor):
        self.base, self.parts, self.kind = base, (base,), base.kind
        self.size = base.shape[-1]
        self.shape = Size([*base.shape[:-2], base.shape[-2] * self.size])

    def read(self, index: Index) -> torch.Tensor:
        *lead, columns = index
        assert isinstance(columns, slice)
        groups = slice(columns.start // self.size, -(-columns.stop // self.size))
        flat = self.base[(*lead, groups)].read().flatten(-2)
        start = columns.start - groups.start * self.size
        return flat[..., start : start + columns.stop - columns.start]


@dataclass(frozen=True)
class Mxfp4Pairs:
    """The encoding: blocks and scales, decoded to one bfloat16 tensor each (exact: nothing is rounded)."""

    methods: tuple[str, ...] = ("mxfp4",)
    title: str = "mxfp4"
    source: str = "openai/gpt-oss; transformers 5.23, `integrations/mxfp4.py`; OCP Microscaling Formats v1.0."

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the decoded matrix of each pair.

        Raises:
            DamagedFile: blocks have no scales, or scales do not fit.
        """
        for key in tensors:
            for blocks, scales in PAIRS.items():
                name = key.removesuffix(blocks)
                if name != key and (quantization.method is not None or name + scales in tensors):
                    values = _mxfp4(key, name + scales, tensors)
                    yield Packed(name, (key, name + scales), values.transpose(-1, -2) if blocks[0] == "_" else values)


def _mxfp4(key: str, scale_key: str, tensors: Mapping[str, LazyTensor]) -> LazyTensor:
    blocks, scales = tensors[key], tensors.get(scale_key)
    if scales is None:
        raise DamagedFile(f"{key!r} is stored as MXFP4 without its scales {scale_key!r}.")
    if blocks.ndim < 3 or blocks.shape[-1] * 2 != MXFP4_BLOCK or scales.shape != blocks.shape[:-1]:
        raise DamagedFile(
            f"{key!r} and {scale_key!r} have shapes {tuple(blocks.shape)} and "
            f"{tuple(scales.shape)}, expected (..., rows, groups, {MXFP4_BLOCK // 2}) and (..., rows, groups)."
        )
    return Stored(Fp4("MXFP4", Stored(Flattened(blocks)), scales))


ENCODING = Mxfp4Pairs()
