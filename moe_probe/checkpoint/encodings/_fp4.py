"""4-bit floats, two per byte, times one scale per group."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from moe_probe.checkpoint.encodings._matrix import PackedMatrix
from moe_probe.checkpoint.lazy import Index, LazyTensor, Size
from moe_probe.checkpoint.slices import covering

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

# the 16 values of a 4-bit float (1 sign, 2 exponent, 1 mantissa bit): OCP Microscaling Formats v1.0, section 5.3.3
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
E8M0_BIAS = 127


class Fp4(PackedMatrix):
    """Codes (..., rows, columns / 2), the low one first, times scales (..., rows, groups) and an overall scale.

    Scales are floats, or bytes that are exponents (E8M0). The product of scale and overall scale is computed first, in
    float32, as in the formats' own packages; the values are bfloat16.

    Attributes:
        codes, scales: the stored tensors.
        overall: the overall scale: one number, or one per matrix.
        divided: whether scales are divided by `overall` instead of multiplied.
    """

    def __init__(
        self, form: str, codes: LazyTensor, scales: LazyTensor, overall: LazyTensor | None = None, divided: bool = False
    ):
        self.codes, self.scales, self.overall, self.divided = codes, scales, overall, divided
        shape = Size([*codes.shape[:-1], codes.shape[-1] * 2])
        parts = [codes, scales, *([] if overall is None else [overall])]
        super().__init__(form, parts, shape, "bfloat16", (1, shape[-1] // scales.shape[-1]))

    def decode(self, lead: Index, rows: slice, columns: slice) -> torch.Tensor:
        packed = self.codes[(*lead, rows, slice(columns.start // 2, columns.stop // 2))].read().view(torch.uint8)
        scales = self.scales[(*lead, rows, covering(columns, self.unit[1]))].read()
        values = _values()[packed.int()].flatten(-2).unflatten(-1, (-1, self.unit[1]))
        if self.scales.kind in ("uint8", "float8_e8m0fnu"):
            exponents = scales.view(torch.uint8).to(torch.int32) - E8M0_BIAS
            return torch.ldexp(values, exponents.unsqueeze(-1)).to(self.dtype).flatten(-2)
        scales = scales.to(torch.float32)
        if self.overall is not None:
            overall = self._overall(lead)
            scales = scales / overall if self.divided else scales * overall
        return (values.to(torch.float32) * scales.unsqueeze(-1)).flatten(-2).to(self.dtype)

    def _overall(self, lead: Index) -> torch.Tensor:
        assert self.overall is not None
        numbers = self.overall.read().to(torch.float32)
        if numbers.numel() == 1:
            return numbers.reshape(())
        return numbers.reshape(*self.shape[:-2], 1, 1)[lead]


@cache
def _values() -> torch.Tensor:
    """Returns the two values of each byte, bfloat16 (256, 2)."""
    pairs = [[FP4_VALUES[byte & 15], FP4_VALUES[byte >> 4]] for byte in range(256)]
    return torch.tensor(pairs, dtype=torch.bfloat16)
