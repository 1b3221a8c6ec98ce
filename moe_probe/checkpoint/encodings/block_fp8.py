"""fp8 matrices with scales, as DeepSeek-V3, Qwen and AutoFP8 publish them: `X.weight` and its scales.

`weight_scale_inv` has one scale per block; `weight_scale` has one in total or one per row. Both multiply the codes,
despite the name of the first. DeepSeek-V4's scales are `X.scale`, exponents only (E8M0); its experts are fp4: see
`deepseek_fp4`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.encodings._scaled import FP8, first, scaled
from moe_probe.checkpoint.lazy import LazyTensor
from moe_probe.errors import DamagedFile

BLOCK = (128, 128)


@dataclass(frozen=True)
class BlockFp8:
    """The encoding: fp8 weights and their scales, decoded to one bfloat16 tensor each."""

    methods: tuple[str, ...] = ("fp8",)
    title: str = "fp8 with block, row or tensor scales"
    source: str = "transformers 5.23, `integrations/finegrained_fp8.py`; DeepSeek-V3, arXiv 2412.19437, section 3.3."

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the product of each fp8 weight with its scales.

        Raises:
            DamagedFile: a weight has no scales, or scales do not fit.
        """
        for key, tensor in tensors.items():
            if tensor.kind in FP8 and (quantization.method or key + "_scale_inv" in tensors):
                yield _product(key, tensors, quantization)


def _product(key: str, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Packed:
    module = key.removesuffix("weight")
    scale = first(tensors, [key + "_scale_inv", key + "_scale", module + "scale" if module != key else key + ".scale"])
    if scale is None:
        raise DamagedFile(f"{key!r} is stored as fp8 without its scales {key + '_scale_inv'!r}.")
    block = quantization.block()
    if scale.endswith("_scale_inv") and block is None and tensors[scale].ndim > 1:
        block = BLOCK
    activations = [name for name in (module + "input_scale", key + "_input_scale", module + "activation_scale_inv",
                                     module + "activation_scale") if name in tensors]  # fmt: skip
    return Packed(key, (key, scale, *activations), scaled(key, tensors[key], tensors[scale], block=block))


ENCODING = BlockFp8()
