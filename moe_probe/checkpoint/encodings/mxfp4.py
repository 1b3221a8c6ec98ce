"""MXFP4: gpt-oss's pairs `X_blocks` and `X_scales`, which appear as one tensor `X`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from moe_probe.checkpoint.lazy import Index, LazyTensor, Permuted, Stored
from moe_probe.checkpoint.slices import covering
from moe_probe.errors import DamagedFile

BLOCKS_SUFFIX, SCALES_SUFFIX = "_blocks", "_scales"
# the 16 values of a 4-bit float (1 sign, 2 exponent, 1 mantissa bit): OCP Microscaling Formats v1.0, section 5.3.3
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
MXFP4_BLOCK = 32
E8M0_BIAS = 127


class Mxfp4:
    """gpt-oss's packed experts: `blocks` (E, rows, groups, 16) uint8, `scales` (E, rows, groups) uint8.

    Each byte holds two 4-bit floats, the low one first; each group of 32 shares the exponent `scale - 127`.
    Dequantized shape (E, rows, groups * 32), bfloat16 (exact: no rounding takes place).
    """

    dtype = torch.bfloat16

    def __init__(self, blocks: LazyTensor, scales: LazyTensor):
        self.blocks, self.scales = blocks, scales
        self.parts = (blocks, scales)
        self.shape = torch.Size([*blocks.shape[:-2], blocks.shape[-2] * MXFP4_BLOCK])

    def read(self, index: Index) -> torch.Tensor:
        *lead, columns = index
        groups = covering(columns, MXFP4_BLOCK)
        packed = self.blocks[tuple([*lead, groups])].read()
        exponent = self.scales[tuple([*lead, groups])].read().to(torch.int32) - E8M0_BIAS
        values = torch.tensor(FP4_VALUES, dtype=self.dtype)
        pairs = torch.stack([values[(packed & 0xF).int()], values[(packed >> 4).int()]], dim=-1)
        flat = torch.ldexp(pairs.flatten(-2), exponent.unsqueeze(-1)).to(self.dtype).flatten(-2)
        if isinstance(columns, int):
            return flat[..., columns % MXFP4_BLOCK]
        offset = columns.start % MXFP4_BLOCK
        return flat[..., offset : offset + columns.stop - columns.start]


@dataclass(frozen=True)
class Mxfp4Pairs:
    """The encoding: blocks and scales, as one bfloat16 tensor each."""

    methods: tuple[str, ...] = ("mxfp4",)
    title: str = "mxfp4"

    def decoded(self, tensors: Mapping[str, LazyTensor], quantization: Mapping[str, Any]) -> dict[str, LazyTensor]:
        """`tensors` with the pairs as the values that they stand for.

        Raises:
            DamagedFile: blocks without scales, or scales that do not fit.
        """
        promised = quantization.get("quant_method") in self.methods
        names = [key.removesuffix(BLOCKS_SUFFIX) for key in tensors if key.endswith(BLOCKS_SUFFIX)]
        paired = {name for name in names if promised or name + SCALES_SUFFIX in tensors}
        gone = {name + SCALES_SUFFIX for name in paired}
        decoded: dict[str, LazyTensor] = {}
        for key, tensor in tensors.items():
            name = key.removesuffix(BLOCKS_SUFFIX)
            if name != key and name in paired:
                decoded[name] = _mxfp4(name, tensors)
            elif key not in gone:
                decoded[key] = tensor
        return decoded


def _mxfp4(name: str, tensors: Mapping[str, LazyTensor]) -> LazyTensor:
    blocks, scales = tensors[name + "_blocks"], tensors.get(name + "_scales")
    if scales is None:
        raise DamagedFile(f"{name + '_blocks'!r} is stored as MXFP4 without its scales {name + '_scales'!r}.")
    if blocks.ndim < 3 or blocks.shape[-1] * 2 != MXFP4_BLOCK or scales.shape != blocks.shape[:-1]:
        raise DamagedFile(
            f"{name + '_blocks'!r} and {name + '_scales'!r} have shapes {tuple(blocks.shape)} and "
            f"{tuple(scales.shape)}, expected (..., rows, groups, {MXFP4_BLOCK // 2}) and (..., rows, groups)."
        )
    plain = Stored(Mxfp4(blocks, scales))
    return Permuted(plain, (*range(plain.ndim - 2), plain.ndim - 1, plain.ndim - 2))


ENCODING = Mxfp4Pairs()
