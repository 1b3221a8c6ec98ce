"""Quantized storage, dequantized as it is read.

A checkpoint with quantized tensors is shown as if it held the plain ones: `fp8` weights with block scales under their
own name (the `_scale_inv` entries disappear), MXFP4 pairs `X_blocks` / `X_scales` as one tensor `X`. A slice of such a
tensor reads and dequantizes only the rows that it needs. int8 matrices with grouped scales are Grok-1's.
"""

from __future__ import annotations

import torch

from moe_probe.checkpoint.lazy import Index, LazyTensor, Permuted, Stored
from moe_probe.errors import CheckpointError

FP8 = {torch.float8_e4m3fn, torch.float8_e5m2}
SCALES_SUFFIX = "_scales"  # of MXFP4 blocks, and of int8 matrices that `convert` kept
SCALE_SUFFIX = "_scale_inv"
# the 16 values of a 4-bit float (1 sign, 2 exponent, 1 mantissa bit): OCP Microscaling Formats v1.0, section 5.3.3
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
MXFP4_BLOCK = 32
E8M0_BIAS = 127


class BlockScaled:
    """An fp8 matrix times one scale per block: DeepSeek-V3's `weight` and `weight_scale_inv`.

    The values are `weight[i, j] * scale[i // rows, j // columns]` in float32, rounded to bfloat16, the type that
    DeepSeek's own conversion writes. Leading dimensions (fused experts) have their own scales.
    """

    dtype = torch.bfloat16

    def __init__(self, weight: LazyTensor, scale: LazyTensor, block: tuple[int, int]):
        self.weight, self.scale, self.block = weight, scale, block
        self.shape = weight.shape

    def read(self, index: Index) -> torch.Tensor:
        *lead, rows, columns = (_as_slice(part) for part in index)
        weight = self.weight[tuple([*lead, rows, columns])].read().to(torch.float32)
        scale = self.scale[tuple([*lead, _blocks(rows, self.block[0]), _blocks(columns, self.block[1])])].read()
        if scale.dtype == torch.uint8:  # raw E8M0: the exponent alone
            scale = scale.view(torch.float8_e8m0fnu)
        scale = scale.to(torch.float32)
        for dim, part, size in ((-2, rows, self.block[0]), (-1, columns, self.block[1])):
            scale = scale.repeat_interleave(size, dim).narrow(dim, part.start % size, part.stop - part.start)
        values = weight.mul_(scale).to(self.dtype)
        return values[tuple(0 if isinstance(part, int) else slice(None) for part in index)]


def _as_slice(part: int | slice) -> slice:
    return slice(part, part + 1) if isinstance(part, int) else part


def _blocks(part: int | slice, size: int) -> slice:
    part = _as_slice(part)
    return slice(part.start // size, -(-part.stop // size))


class Mxfp4:
    """gpt-oss's packed experts: `blocks` (E, rows, groups, 16) uint8, `scales` (E, rows, groups) uint8.

    Each byte holds two 4-bit floats, the low one first; each group of 32 shares the exponent `scale - 127`.
    Dequantized shape (E, rows, groups * 32), bfloat16 (exact: no rounding takes place).
    """

    dtype = torch.bfloat16

    def __init__(self, blocks: LazyTensor, scales: LazyTensor):
        self.blocks, self.scales = blocks, scales
        self.shape = torch.Size([*blocks.shape[:-2], blocks.shape[-2] * MXFP4_BLOCK])

    def read(self, index: Index) -> torch.Tensor:
        *lead, columns = index
        groups = _blocks(columns, MXFP4_BLOCK)
        packed = self.blocks[tuple([*lead, groups])].read()
        exponent = self.scales[tuple([*lead, groups])].read().to(torch.int32) - E8M0_BIAS
        values = torch.tensor(FP4_VALUES, dtype=self.dtype)
        pairs = torch.stack([values[(packed & 0xF).int()], values[(packed >> 4).int()]], dim=-1)
        flat = torch.ldexp(pairs.flatten(-2), exponent.unsqueeze(-1)).to(self.dtype).flatten(-2)
        if isinstance(columns, int):
            return flat[..., columns % MXFP4_BLOCK]
        offset = columns.start % MXFP4_BLOCK
        return flat[..., offset : offset + columns.stop - columns.start]


class GroupScaled:
    """An int8 matrix (..., K, N) times scales (..., G, N): group g scales the rows g K/G to (g+1) K/G - 1.

    The product is rounded to the scales' dtype, bfloat16 in the release.

    Attributes:
        weight, scales: the stored tensors.
    """

    def __init__(self, weight: LazyTensor, scales: LazyTensor):
        self.weight, self.scales = weight, scales
        self.shape, self.dtype = weight.shape, scales.dtype
        self.rows_per_group = weight.shape[-2] // scales.shape[-2]

    def read(self, index: Index) -> torch.Tensor:
        *lead, rows, columns = (slice(part, part + 1) if isinstance(part, int) else part for part in index)
        size = self.rows_per_group
        groups = slice(rows.start // size, -(-rows.stop // size))
        values = self.weight[(*lead, rows, columns)].read().to(self.dtype)
        scales = self.scales[(*lead, groups, columns)].read()
        for group in range(groups.start, groups.stop):
            first, last = max(group * size, rows.start), min((group + 1) * size, rows.stop)
            part = values[..., first - rows.start : last - rows.start, :]
            part *= scales[..., group - groups.start, None, :]
        return values[tuple(0 if isinstance(part, int) else slice(None) for part in index)]


def grouped_int8(tensor: LazyTensor) -> tuple[LazyTensor, LazyTensor] | None:
    """The stored int8 matrix and scales of an (out, in) matrix that they are multiplied for; None for other tensors.

    Returns:
        int8 (out, in) and scales (out, groups).
    """
    if not isinstance(tensor, Permuted) or tensor.ndim != 2 or not isinstance(tensor.base, Stored):
        return None
    scaled, index = tensor.base.source, tensor.base.index
    if not isinstance(scaled, GroupScaled) or tensor.base.shape != scaled.shape[-2:]:
        return None
    return scaled.weight[index[:-2]].T, scaled.scales[index[:-2]].T


def dequantized(tensors: dict[str, LazyTensor], config: dict) -> dict[str, LazyTensor]:
    """`tensors` with every quantized entry replaced by its lazy plain one.

    `config` is the checkpoint's `config.json`: the fp8 block comes from `quantization_config.weight_block_size`.

    Raises:
        CheckpointError: an fp8 weight without scales, scales that do not fit, or a quantization that is not known.
    """
    quantization = config.get("quantization_config") or {}
    method = quantization.get("quant_method")
    if method not in (None, "fp8", "mxfp4"):
        raise CheckpointError(
            f"The checkpoint is quantized with {method!r}; fp8 with block scales and mxfp4 can be read. Use the "
            "unquantized release, or dequantize it with transformers and save it."
        )
    out: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        base = key.removesuffix(SCALE_SUFFIX)
        if base != key and base in tensors and tensors[base].dtype in FP8:
            continue
        if tensor.dtype in FP8:
            out[key] = _block_scaled(key, tensors, quantization)
        elif key.endswith("_blocks") and (method == "mxfp4" or key.removesuffix("_blocks") + "_scales" in tensors):
            name = key.removesuffix("_blocks")
            out[name] = _mxfp4(name, tensors)
        elif tensor.dtype is torch.int8 and key + SCALES_SUFFIX in tensors:
            out[key] = Stored(GroupScaled(tensor.T, tensors[key + SCALES_SUFFIX].T)).T
        elif not _is_scales(key, tensors):
            out[key] = tensor
    return out


def _is_scales(key: str, tensors: dict[str, LazyTensor]) -> bool:
    base = key.removesuffix(SCALES_SUFFIX)
    return base != key and (base + "_blocks" in tensors or (base in tensors and tensors[base].dtype is torch.int8))


def _mxfp4(name: str, tensors: dict[str, LazyTensor]) -> LazyTensor:
    blocks, scales = tensors[name + "_blocks"], tensors.get(name + "_scales")
    if scales is None:
        raise CheckpointError(f"{name + '_blocks'!r} is stored as MXFP4 without its scales {name + '_scales'!r}.")
    if blocks.ndim < 3 or blocks.shape[-1] * 2 != MXFP4_BLOCK or scales.shape != blocks.shape[:-1]:
        raise CheckpointError(
            f"{name + '_blocks'!r} and {name + '_scales'!r} have shapes {tuple(blocks.shape)} and "
            f"{tuple(scales.shape)}, expected (..., rows, groups, {MXFP4_BLOCK // 2}) and (..., rows, groups)."
        )
    plain = Stored(Mxfp4(blocks, scales))
    return Permuted(plain, (*range(plain.ndim - 2), plain.ndim - 1, plain.ndim - 2))


def _block_scaled(key: str, tensors: dict[str, LazyTensor], quantization: dict) -> LazyTensor:
    scale = tensors.get(key + SCALE_SUFFIX)
    if scale is None:
        raise CheckpointError(f"{key!r} is stored as fp8 without its scales {key + SCALE_SUFFIX!r}.")
    weight = tensors[key]
    block = tuple(quantization.get("weight_block_size") or (128, 128))
    if weight.ndim < 2 or len(block) != 2:
        raise CheckpointError(
            f"{key!r} of shape {tuple(weight.shape)} is stored as fp8 with blocks of {block}, "
            "expected a matrix with blocks of rows x columns."
        )
    expected = (*weight.shape[:-2], *(-(-size // b) for size, b in zip(weight.shape[-2:], block, strict=True)))
    if scale.shape != expected:
        raise CheckpointError(
            f"{key + SCALE_SUFFIX!r} has shape {tuple(scale.shape)}, expected {expected} for "
            f"blocks of {block[0]} x {block[1]}."
        )
    return Stored(BlockScaled(weight, scale, block))
