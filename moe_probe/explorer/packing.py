"""Arrays to text that a page can hold: rounded to a step, deflated, in base64."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from rich.filesize import decimal

from moe_probe.errors import NotFitting
from moe_probe.explorer.recorded import RecordedLayer

STEPS = tuple(float(f"{digit}e{power}") for power in range(-5, 1) for digit in (1, 2, 5))
LARGEST_WEIGHT_STEP = 0.005


@dataclass(frozen=True)
class Packed:
    """What a page holds of the routing.

    Attributes:
        logit_step, weight_step: values are multiples of these.
        layers: by layer and array (`logits`, `index`, `weight`): dtype and base64 of deflated integers, row-major.
    """

    logit_step: float
    weight_step: float
    layers: dict[int, dict[str, tuple[str, str]]]

    @property
    def size(self) -> int:
        """Characters."""
        return sum(len(text) for arrays in self.layers.values() for _, text in arrays.values())


def pack(layers: Mapping[int, RecordedLayer], max_size: int) -> Packed:
    """Everything, as finely as it fits into `max_size` characters.

    Steps are 1, 2 or 5 times a power of ten; weights are ten times finer than logits, and never coarser than 0.005.

    Raises:
        NotFitting: it does not fit at all.
    """
    for step in STEPS:
        weight_step = min(float(f"{step / 10:g}"), LARGEST_WEIGHT_STEP)
        if estimate(layers, step, weight_step) < 1.05 * max_size:
            packed = Packed(step, weight_step, dict(_layers(layers, step, weight_step)))
            if packed.size <= max_size:
                return packed
    rows = sum(len(layer.index) for layer in layers.values())
    raise NotFitting(
        f"The routing ({rows:,} rows in {len(layers)} layers) does not fit into the {decimal(max(0, max_size))} that "
        "max_bytes leaves for it; pass fewer texts, layers=, or a larger max_bytes."
    )


def _layers(
    layers: Mapping[int, RecordedLayer], step: float, weight_step: float
) -> Iterator[tuple[int, dict[str, tuple[str, str]]]]:
    for number, layer in layers.items():
        yield (
            number,
            {
                "logits": encode(rounded(layer.logits, step)),
                "index": encode(layer.index),
                "weight": encode(rounded(layer.weight, weight_step)),
            },
        )


def rounded(values: np.ndarray, step: float) -> np.ndarray:
    """Whole multiples of `step`, int32."""
    return np.rint(values / np.float64(step)).astype(np.int32)


def encode(values: np.ndarray) -> tuple[str, str]:
    """The smallest signed dtype that holds the integers, and base64 of the deflated array."""
    least, most = int(values.min()), int(values.max())
    dtype = next(d for d in (np.int8, np.int16, np.int32) if np.iinfo(d).min <= least and most <= np.iinfo(d).max)
    deflated = zlib.compress(np.ascontiguousarray(values, dtype).tobytes(), 6)
    return np.dtype(dtype).name, base64.b64encode(deflated).decode("ascii")


def estimate(layers: Mapping[int, RecordedLayer], step: float, weight_step: float) -> float:
    """About how many characters it takes, from the entropy of the integers."""
    bits = 0.0
    for layer in layers.values():
        arrays = (rounded(layer.logits, step), layer.index, rounded(layer.weight, weight_step))
        bits += sum(values.size * _entropy(values) for values in arrays)
    return bits / 6  # base64: six bits a character


def _entropy(values: np.ndarray, sample: int = 200_000) -> float:
    """Bits per value, of a sample."""
    flat = values.ravel()
    _, counts = np.unique(flat[:: max(1, flat.size // sample)], return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())
