"""AutoRound: matrices packed like GPTQ's or like AWQ's, depending on `packing_format`.

`extra_config` overrides settings for some layers, by their names or by regular expressions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moe_probe.checkpoint.encodings import Packed, awq, gptq
from moe_probe.checkpoint.encodings._quantization import Quantization
from moe_probe.checkpoint.lazy import LazyTensor
from moe_probe.errors import CheckpointError, DamagedFile

DEFAULT = "auto_round:auto_gptq"
KERNELS = re.compile(r":(exllamav2|triton|marlin)$")  # the kernel meant to run it; the files do not depend on it
# what to add to stored zero points, by format; AWQ's format has a layout of its own
LESS = {
    "auto": 1,
    DEFAULT: 1,
    "auto_round:gptq": 1,
    "auto_round": 0,
    "auto_round:gptqmodel": 0,
}
AWQ = ("auto_round:auto_awq", "auto_round:awq")
WEIGHTS_ALONE = (None, 16, 32)  # `act_bits` of activations that are not quantized


@dataclass(frozen=True)
class AutoRoundLayers:
    """The encoding: the tensors of GPTQ without an activation order, or those of AWQ for GEMM."""

    methods: tuple[str, ...] = ("auto-round", "intel/auto-round")
    title: str = "AutoRound"
    source: str = "AutoRound, arXiv 2309.05516; auto-round 0.16, `inference/convert_model.py` and its linear layers."

    def packed(self, tensors: Mapping[str, LazyTensor], quantization: Quantization) -> Iterator[Packed]:
        """Yields the decoded weight of each layer.

        Raises:
            DamagedFile: a part is missing or does not fit.
            CheckpointError: the format is not supported, or weights are rotated.
        """
        names = [key.removesuffix("qweight") for key in tensors if key.endswith(".qweight")]
        if quantization.method is None or not names:
            return
        written = _format(quantization)
        for name in names:
            stated = _of_layer(name.removesuffix("."), quantization)
            if written in AWQ:
                yield awq.layer(name, tensors, stated)
            else:
                yield gptq.layer(name, tensors, LESS[written], stated)


ENCODING = AutoRoundLayers()


def _format(quantization: Quantization) -> str:
    """Returns `packing_format`, or `backend` in older files, without the name of a kernel.

    Raises:
        CheckpointError: the format is not supported, or weights are not plain integers.
    """
    fields = quantization.fields
    stated = fields.get("packing_format") or fields.get("backend") or DEFAULT
    written = KERNELS.sub("", str(stated))
    rotated = next((key for key in fields if key.endswith("_config") and key != "extra_config" and fields[key]), None)
    if rotated is not None:
        raise CheckpointError(
            f"The checkpoint was made by AutoRound with a {rotated}: its weights are multiplied by Hadamard or other "
            "matrices, and are not read. Use another release."
        )
    data, activations = fields.get("data_type", "int"), fields.get("act_bits")
    if data != "int" or activations not in WEIGHTS_ALONE or written not in (*LESS, *AWQ):
        raise CheckpointError(
            f"The checkpoint is packed by AutoRound as {stated!r}, data_type={data!r}, act_bits={activations!r}; "
            f"integer weights as {', '.join((*LESS, *AWQ))} can be read. Use another release."
        )
    return written


def _of_layer(module: str, quantization: Quantization) -> Quantization:
    """Returns a layer's settings, with those of the `extra_config` entry for its name, or else of the first match."""
    entries = quantization.fields.get("extra_config") or {}
    if not isinstance(entries, dict):
        raise DamagedFile(
            f"quantization_config in config.json has extra_config={entries!r}, expected an object; use the published "
            "file."
        )
    named = entries.get(module) or next((entries[key] for key in entries if _means(key, module)), {})
    fields: Mapping[str, Any] = named if isinstance(named, dict) else {}
    return replace(quantization, fields={**quantization.fields, **fields})


def _means(expression: str, module: str) -> bool:
    """Whether an expression occurs in a module's name; False for an invalid expression, which AutoRound skips."""
    try:
        return re.search(expression, module) is not None
    except re.error:
        return False
