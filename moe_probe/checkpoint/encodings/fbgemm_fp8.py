"""Meta's fbgemm_fp8 (Llama-4-Maverick-FP8): `X.weight` with a scale per row; fused experts have one per output.

Experts are stored as (E, in, out). `gate_up_proj_scale` is (E, 1, 2 ff). `down_proj_scale` is (E, d, 1), where d counts
the outputs, which are the *columns* of the stored matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.encodings._scaled import FP8, Same, scaled
from moe_probe.checkpoint.lazy import LazyTensor, Stored

FUSED = (".gate_up_proj", ".down_proj")


@dataclass(frozen=True)
class FbgemmFp8:
    """The encoding: fp8 weights and their scales, decoded to one bfloat16 tensor each."""

    methods: tuple[str, ...] = ("fbgemm_fp8",)
    title: str = "fbgemm_fp8"
    source: str = "transformers 5.23, `integrations/fbgemm_fp8.py`."

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the product of each fp8 weight with its scales.

        Raises:
            DamagedFile: scales do not fit their weight.
        """
        if quantization.method is None:
            return
        for key, tensor in tensors.items():
            scale = tensors.get(key + "_scale")
            if tensor.kind not in FP8 or scale is None:
                continue
            if key.endswith(FUSED) and tensor.ndim == 3 and scale.numel() == tensor.shape[0] * tensor.shape[2]:
                scale = Stored(Same(scale, (tensor.shape[0], 1, tensor.shape[2])))
            bounds = [
                name for name in (key + "_scale_ub", key.removesuffix("weight") + "input_scale_ub") if name in tensors
            ]
            values = scaled(key, tensor, scale, method="fbgemm")
            yield Packed(key, (key, key + "_scale", *bounds), values)


ENCODING = FbgemmFp8()
