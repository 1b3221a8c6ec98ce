"""Mistral's own fp8: `X.weight` times one number, `X.qscale_weight`; `X.qscale_act` is the scale of the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.encodings._scaled import FP8, scaled
from moe_probe.checkpoint.lazy import LazyTensor
from moe_probe.errors import DamagedFile


@dataclass(frozen=True)
class MistralFp8:
    """The encoding: fp8 weights and their scales, decoded to one bfloat16 tensor each."""

    methods: tuple[str, ...] = ("mistral",)
    title: str = "Mistral's fp8"
    source: str = "vLLM, `models/mistral_large_3.py` (names and suffixes)."

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the product of each fp8 weight with its scale.

        Raises:
            DamagedFile: a scale has no fp8 weight, or does not fit it.
        """
        for key in tensors:
            module = key.removesuffix("qscale_weight")
            if module == key:
                continue
            name = module + "weight"
            if name not in tensors or tensors[name].kind not in FP8:
                raise DamagedFile(f"{key!r} has no fp8 matrix {name!r} beside it; download the checkpoint again.")
            inputs = [module + "qscale_act"] if module + "qscale_act" in tensors else []
            yield Packed(name, (name, key, *inputs), scaled(name, tensors[name], tensors[key], method="Mistral"))


ENCODING = MistralFp8()
