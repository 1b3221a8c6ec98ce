"""fp8 matrices with one scale per block: DeepSeek-V3's `weight` and `weight_scale_inv`.

They appear under the weight's name; the scales disappear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from moe_probe.checkpoint.lazy import Index, LazyTensor, Stored
from moe_probe.checkpoint.slices import as_slice, covering
from moe_probe.errors import DamagedFile

FP8 = {torch.float8_e4m3fn, torch.float8_e5m2}
SCALE_SUFFIX = "_scale_inv"


class BlockScaled:
    """An fp8 matrix times one scale per block: DeepSeek-V3's `weight` and `weight_scale_inv`.

    The values are `weight[i, j] * scale[i // rows, j // columns]` in float32, rounded to bfloat16, the type that
    DeepSeek's own conversion writes. Leading dimensions (fused experts) have their own scales.
    """

    dtype = torch.bfloat16

    def __init__(self, weight: LazyTensor, scale: LazyTensor, block: tuple[int, int]):
        self.weight, self.scale, self.block = weight, scale, block
        self.parts = (weight, scale)
        self.shape = weight.shape

    def read(self, index: Index) -> torch.Tensor:
        *lead, rows, columns = (as_slice(part) for part in index)
        weight = self.weight[tuple([*lead, rows, columns])].read().to(torch.float32)
        scale = self.scale[tuple([*lead, covering(rows, self.block[0]), covering(columns, self.block[1])])].read()
        if scale.dtype == torch.uint8:  # raw E8M0: the exponent alone
            scale = scale.view(torch.float8_e8m0fnu)
        scale = scale.to(torch.float32)
        for dim, part, size in ((-2, rows, self.block[0]), (-1, columns, self.block[1])):
            scale = scale.repeat_interleave(size, dim).narrow(dim, part.start % size, part.stop - part.start)
        values = weight.mul_(scale).to(self.dtype)
        return values[tuple(0 if isinstance(part, int) else slice(None) for part in index)]


@dataclass(frozen=True)
class BlockFp8:
    """The encoding: fp8 weights and their scales, as one bfloat16 tensor each."""

    methods: tuple[str, ...] = ("fp8",)
    title: str = "fp8 with block scales"

    def decoded(self, tensors: Mapping[str, LazyTensor], quantization: Mapping[str, Any]) -> dict[str, LazyTensor]:
        """`tensors` with the fp8 weights as the products that they stand for.

        Raises:
            DamagedFile: a weight without scales, or scales that do not fit.
        """
        fp8 = [key for key, tensor in tensors.items() if tensor.dtype in FP8]
        scales = {key + SCALE_SUFFIX for key in fp8}
        products = {key: _block_scaled(key, tensors, quantization) for key in fp8}
        return {key: products.get(key, tensor) for key, tensor in tensors.items() if key not in scales}


def _block_scaled(key: str, tensors: Mapping[str, LazyTensor], quantization: Mapping[str, Any]) -> LazyTensor:
    scale = tensors.get(key + SCALE_SUFFIX)
    if scale is None:
        raise DamagedFile(f"{key!r} is stored as fp8 without its scales {key + SCALE_SUFFIX!r}.")
    weight = tensors[key]
    block = _block(quantization)
    if weight.ndim < 2:
        raise DamagedFile(
            f"{key!r} of shape {tuple(weight.shape)} is stored as fp8 with blocks of {block}, "
            "expected a matrix with blocks of rows x columns."
        )
    expected = (*weight.shape[:-2], *(-(-size // b) for size, b in zip(weight.shape[-2:], block, strict=True)))
    if scale.shape != expected:
        raise DamagedFile(
            f"{key + SCALE_SUFFIX!r} has shape {tuple(scale.shape)}, expected {expected} for "
            f"blocks of {block[0]} x {block[1]}."
        )
    return Stored(BlockScaled(weight, scale, block))


def _block(quantization: Mapping[str, Any]) -> tuple[int, int]:
    stated = quantization.get("weight_block_size") or (128, 128)
    sizes = [size for size in stated if isinstance(size, int) and size > 0] if isinstance(stated, list | tuple) else []
    if len(sizes) != 2 or len(stated) != 2:
        raise DamagedFile(
            f"quantization_config in config.json has the weight_block_size {stated!r}, expected two numbers, such as "
            "[128, 128]; use the published file."
        )
    return sizes[0], sizes[1]


ENCODING = BlockFp8()
