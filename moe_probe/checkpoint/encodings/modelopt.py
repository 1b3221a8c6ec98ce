"""NVIDIA's modelopt: NVFP4 (`X.weight` uint8, `X.weight_scale`, `X.weight_scale_2`) and fp8 (`X.weight_scale`).

The configuration is `hf_quant_config.json`, or `quantization_config` in config.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moe_probe.checkpoint.encodings import Packed
from moe_probe.checkpoint.encodings._fp4 import Fp4
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.encodings._scaled import FP8, scaled
from moe_probe.checkpoint.lazy import LazyTensor, Size, Stored
from moe_probe.errors import CheckpointError, DamagedFile

GROUP = 16
ACTIVATIONS = ("input_scale", "output_scale", "k_scale", "v_scale", "pre_quant_scale")


@dataclass(frozen=True)
class Modelopt:
    """The encoding: 4-bit and 8-bit floats with scales, decoded to one bfloat16 tensor each."""

    methods: tuple[str, ...] = ("modelopt", "modelopt_fp4")
    title: str = "modelopt NVFP4 and fp8"
    source: str = (
        "NVIDIA TensorRT Model Optimizer's `hf_quant_config.json`; the packing is that of compressed-tensors' NVFP4."
    )

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the decoded weight of each layer.

        Raises:
            DamagedFile: scales are missing or do not fit.
            CheckpointError: a layer scales its inputs first, so that its weight alone does not determine its output.
        """
        if quantization.method is None:
            return
        for key, tensor in tensors.items():
            if tensor.kind in FP8 and key + "_scale" in tensors and key + "_scale_2" not in tensors:
                values = scaled(key, tensor, tensors[key + "_scale"], block=quantization.block(), method="modelopt")
                yield Packed(key, (key, key + "_scale", *_activations(key, tensors)), values)
            elif key + "_scale_2" in tensors:
                yield _nvfp4(key, tensors)


ENCODING = Modelopt()


def _activations(key: str, tensors: Mapping[str, LazyTensor]) -> list[str]:
    stem = key.removesuffix("weight")
    keys = [stem + name for name in ACTIVATIONS if stem + name in tensors] if stem != key else []
    keys += [key + "_" + name for name in ACTIVATIONS if key + "_" + name in tensors]
    scaled_before = next((name for name in keys if name.endswith("pre_quant_scale")), None)
    if scaled_before is not None:
        raise CheckpointError(
            f"{scaled_before!r} scales the inputs of a layer before its weight, which is not read; use another release."
        )
    return keys


def _nvfp4(key: str, tensors: Mapping[str, LazyTensor]) -> Packed:
    codes, overall = tensors[key], tensors[key + "_scale_2"]
    scale = tensors.get(key + "_scale")
    wanted = (*codes.shape[:-1], codes.shape[-1] * 2 // GROUP)
    if scale is None or scale.shape != wanted or codes.kind != "uint8":
        raise DamagedFile(
            f"{key!r} ({codes.kind}, {tuple(codes.shape)}) is stored as NVFP4, but its scales {key + '_scale'!r} are "
            f"{'missing' if scale is None else tuple(scale.shape)}, expected {wanted}; download it again."
        )
    if overall.numel() not in (1, Size(codes.shape[:-2]).numel()):
        raise DamagedFile(f"{key + '_scale_2'!r} has shape {tuple(overall.shape)}, expected one number a matrix.")
    parts = (key, key + "_scale", key + "_scale_2", *_activations(key, tensors))
    return Packed(key, parts, Stored(Fp4("NVFP4 (modelopt)", codes, scale, overall)))
