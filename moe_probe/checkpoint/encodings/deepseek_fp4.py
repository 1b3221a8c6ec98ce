"""DeepSeek-V4's experts: `X.weight` int8 (out, in / 2), two 4-bit floats a byte, and `X.scale` E8M0 (out, in / 32)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._fp4 import Fp4
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.lazy import LazyTensor, Stored
from moe_probe.errors import DamagedFile

GROUP = 32


@dataclass(frozen=True)
class DeepseekFp4:
    """The encoding: bytes of two codes, and exponents as scales, decoded to one bfloat16 matrix each (exact)."""

    methods: tuple[str, ...] = ("fp8",)
    title: str = "DeepSeek-V4's fp4"
    source: str = "transformers 5.23, `integrations/finegrained_fp8.py`; OCP Microscaling Formats v1.0, section 5.3.3."

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the decoded matrices of 4-bit floats.

        Raises:
            DamagedFile: exponents do not fit their matrix.
        """
        for key, tensor in tensors.items():
            scale = key.removesuffix("weight") + "scale"
            if tensor.kind in ("int8", "uint8") and key.endswith(".weight") and scale in tensors:
                if tensors[scale].kind not in ("float8_e8m0fnu", "uint8"):
                    continue
                if (*tensor.shape[:-1], tensor.shape[-1] * 2 // GROUP) != tensors[scale].shape:
                    raise DamagedFile(
                        f"{key!r} of shape {tuple(tensor.shape)} is stored as fp4 with scales of shape "
                        f"{tuple(tensors[scale].shape)}, expected one for each {GROUP} values; download it again."
                    )
                values = Fp4("fp4 in groups of 32 with E8M0 scales", tensor, tensors[scale])
                yield Packed(key, (key, scale), Stored(values))


ENCODING = DeepseekFp4()
