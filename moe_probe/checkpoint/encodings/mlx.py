"""MLX: `X.weight` uint32 (..., out, in bits / 32), `X.scales` and `X.biases` (..., out, groups).

Codes are packed without gaps from the lowest bit on. The configuration states the group size and bits of most layers,
and overrides them for some under their names. In the modes mxfp4, nvfp4 and mxfp8, codes are floats, and there are no
biases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._bits import WORD, Bytes, Viewed, period, unpacked
from moe_probe.checkpoint.encodings._fp4 import Fp4
from moe_probe.checkpoint.encodings._matrix import PackedMatrix
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.encodings._scaled import Scaled
from moe_probe.checkpoint.lazy import Index, LazyTensor, Stored
from moe_probe.checkpoint.slices import covering
from moe_probe.errors import CheckpointError, DamagedFile

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

BITS = (2, 3, 4, 5, 6, 8)
FLOATS = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}  # bits per code and codes per group, by mode


class Affine(PackedMatrix):
    """Values `scale * code + bias` per group, in float32, rounded to the scales' dtype."""

    def __init__(self, codes: LazyTensor, scales: LazyTensor, biases: LazyTensor, bits: int, group: int):
        self.codes, self.scales, self.biases, self.bits, self.group = codes, scales, biases, bits, group
        shape = (*codes.shape[:-1], scales.shape[-1] * group)
        super().__init__(
            f"int{bits} in groups of {group} (MLX)", [codes, scales, biases], shape, scales.kind, (1, group)
        )

    def decode(self, lead: Index, rows: slice, columns: slice) -> torch.Tensor:
        codes_each, words_each = period(self.bits)
        periods = covering(columns, codes_each)
        words = slice(periods.start * words_each, periods.stop * words_each)
        codes = unpacked(self.codes[(*lead, rows, words)].read(), self.bits, -1)
        start = columns.start - periods.start * codes_each
        codes = codes[..., start : start + columns.stop - columns.start].unflatten(-1, (-1, self.group))
        place = (*lead, rows, covering(columns, self.group))
        scales, biases = (part[place].read().to(torch.float32).unsqueeze(-1) for part in (self.scales, self.biases))
        return codes.to(torch.float32).mul_(scales).add_(biases).flatten(-2).to(self.dtype)


@dataclass(frozen=True)
class MlxLayers:
    """The encoding: codes, scales and biases, decoded to one tensor each."""

    methods: tuple[str, ...] = ("mlx",)
    title: str = "MLX"
    source: str = "MLX 0.32, `mlx.core.dequantize`; mlx-lm, `utils.py`."

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the decoded weight of each layer.

        Raises:
            DamagedFile: a part is missing or does not fit.
            CheckpointError: the mode is not supported.
        """
        if quantization.method is None:
            return
        for key, tensor in tensors.items():
            module = key.removesuffix(".weight")
            if module != key and tensor.kind == "uint32" and module + ".scales" in tensors:
                stated = quantization.fields.get(module)
                yield _layer(module, tensors, {**quantization.fields, **(stated if isinstance(stated, dict) else {})})


ENCODING = MlxLayers()


def _layer(module: str, tensors: Mapping[str, LazyTensor], fields: Mapping[str, Any]) -> Packed:
    key, mode = module + ".weight", fields.get("mode", "affine")
    codes, scales, biases = tensors[key], tensors[module + ".scales"], tensors.get(module + ".biases")
    if mode == "affine" and biases is not None:
        stated = fields.get("group_size")
        group = stated if isinstance(stated, int) else 0
        columns = scales.shape[-1] * group
        bits = codes.shape[-1] * WORD / columns if columns else 0
        if (
            bits not in BITS
            or bits != fields.get("bits", bits)
            or codes.shape[:-1] != scales.shape[:-1]
            or scales.shape != biases.shape
        ):
            raise DamagedFile(
                f"{key!r}, its scales and biases have shapes {tuple(codes.shape)}, {tuple(scales.shape)} and "
                f"{tuple(biases.shape)}, which do not fit {fields.get('bits')} bits in groups of {group}; use "
                "the published config.json."
            )
        values = Stored(Affine(codes, scales, biases, int(bits), group))
        return Packed(key, (key, module + ".scales", module + ".biases"), values)
    if mode not in FLOATS or biases is not None:
        raise CheckpointError(
            f"{key!r} is packed by MLX in the mode {mode!r}; affine, {', '.join(FLOATS)} can be read."
        )
    return Packed(key, (key, module + ".scales"), _floats(key, str(mode), codes, scales, fields))


def _floats(key: str, mode: str, codes: LazyTensor, scales: LazyTensor, fields: Mapping[str, Any]) -> LazyTensor:
    """Returns the decoded tensor of 4-bit or 8-bit floats with a scale per group, unread."""
    bits, group = FLOATS[mode]
    stated = fields.get("bits", bits), fields.get("group_size", group)
    if stated != (bits, group) or scales.shape != (*codes.shape[:-1], codes.shape[-1] * WORD // bits // group):
        raise DamagedFile(
            f"{key!r} and its scales have shapes {tuple(codes.shape)} and {tuple(scales.shape)}, with {stated[0]} bits "
            f"in groups of {stated[1]}; {mode} has {bits} bits in groups of {group}. Use the published config.json."
        )
    packed, form = Stored(Bytes(codes)), f"{mode.upper()} (MLX)"
    if mode == "mxfp8":
        return Stored(Scaled(form, Stored(Viewed(packed, "float8_e4m3fn")), scales, (1, group)))
    return Stored(Fp4(form, packed, Stored(Viewed(scales, "float8_e4m3fn")) if mode == "nvfp4" else scales))
