"""Packs arrays as text for a page: rounded to significant digits, predicted, deflated, and encoded in base 85."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.filesize import decimal

from moe_probe.errors import NotFitting
from moe_probe.explorer.recorded import RecordedLayer
from moe_probe.options import DIGITS

MOST_DIGITS = 6  # that float32 holds
# 85 characters that stand for themselves in a script element, and in an attribute's text
ALPHABET = (
    "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" + "!#$%()*+-;=?@^_`{|}~,.:"  # no < > & quotes
)
ELEMENT = 100  # characters around an array, or of what tells how to read a layer
INTEGERS = (np.uint8, np.int8, np.uint16, np.int16, np.int32)


class Encoded(NamedTuple):
    """Integers as text: their dtype, and the deflated array in base 85, all low bytes first."""

    dtype: str
    text: str


@dataclass(frozen=True)
class PackedLayer:
    """One layer's routing on a page.

    Attributes:
        facts: how to decode `weight` and `logits`: `exponent`, `step`, `predicted`.
        arrays: `index`, `weight` and `logits`, rank by rank.
    """

    facts: Mapping[str, Any]
    arrays: Mapping[str, Encoded]


def pack(
    models: Sequence[Mapping[int, RecordedLayer]], max_size: int, digits: int = DIGITS
) -> tuple[int, list[dict[int, PackedLayer]]]:
    """Packs all layers of all models into `max_size` characters; returns them with the number of digits.

    Weights and logits have `digits` significant digits, or fewer if those do not fit.

    Raises:
        NotFitting: even one digit does not fit.
    """
    for fewer in range(digits, 0, -1):
        packed = [{index: pack_layer(layer, fewer) for index, layer in layers.items()} for layers in models]
        if sum(size(layer) for layers in packed for layer in layers.values()) <= max_size:
            return fewer, packed
    rows = sum(len(layer.index) for layers in models for layer in layers.values())
    raise NotFitting(
        f"The routing ({rows:,} rows in {sum(map(len, models))} layers) does not fit into the "
        f"{decimal(max(0, max_size))} that max_bytes leaves for it; pass fewer texts, layers=, a smaller runners_up=, "
        "or a larger max_bytes."
    )


def size(packed: PackedLayer) -> int:
    """Number of characters of a layer, with the elements that hold its arrays."""
    return sum(len(array.text) + ELEMENT for array in packed.arrays.values()) + ELEMENT


def pack_layer(layer: RecordedLayer, digits: int) -> PackedLayer:
    """Packs one layer, rounded to `digits` significant digits.

    Weights are codes of `significant` numbers; each after the first is stored as its difference from that of the
    previous rank. Logits are multiples of a step; each after the first is stored as its difference from a prediction:
    from the weights (`predicted`, exact up to rounding if weights are a softmax), or the logit of the previous rank,
    whichever takes less space. Differences are `folded`.
    """
    codes, exponent = significant(layer.weight, digits)
    step = step_of(layer.logits, digits)
    values = np.rint(layer.logits.astype(np.float64) / step).astype(np.int64)
    before = np.diff(values, axis=1, prepend=0)
    ahead = values - predicted_logits(values, from_significant(codes, exponent, digits), step)
    by_weights = bool(np.abs(ahead).sum() < np.abs(before).sum())
    return PackedLayer(
        {"exponent": exponent, "step": step, "predicted": by_weights},
        {
            "index": encode(layer.index.T),
            "weight": encode(np.concatenate([codes[:, :1], -np.diff(codes, axis=1)], axis=1).T),
            "logits": encode(folded(ahead if by_weights else before).T),
        },
    )


def significant(values: np.ndarray, digits: int) -> tuple[np.ndarray, int]:
    """Codes (whole numbers) of the values rounded to `digits` significant digits, and the smallest exponent.

    0 has the code 0. A number with exponent e and digits m, such as 5.23 with e = 0 and m = 523, has the code
    1 + 9 * 10^(digits - 1) * (e - smallest exponent) + m - 10^(digits - 1), with the value's sign.

    Examples:
        >>> codes, exponent = significant(np.array([0.0523, 0.0, 5.23]), 3)
        >>> codes.tolist(), exponent
        ([424, 0, 2224], -2)
    """
    exact = np.abs(values.astype(np.float64))
    base = 10 ** (digits - 1)
    power = np.floor(np.log10(exact, where=exact > 0, out=np.zeros_like(exact))).astype(np.int64)
    mantissa = np.rint(exact / 10.0 ** (power - digits + 1)).astype(np.int64)
    over = mantissa >= 10 * base
    power, mantissa = power + over, np.where(over, base, mantissa)
    least = int(power[exact > 0].min(initial=0))
    codes = 1 + 9 * base * (power - least) + mantissa - base
    return np.where(exact > 0, np.sign(values).astype(np.int64) * codes, 0), least


def from_significant(codes: np.ndarray, exponent: int, digits: int) -> np.ndarray:
    """The values of codes of `significant`, float64."""
    base = 10 ** (digits - 1)
    power, mantissa = np.divmod(np.abs(codes) - 1, 9 * base)
    return np.where(codes == 0, 0.0, np.sign(codes) * (mantissa + base) * 10.0 ** (power + exponent - digits + 1))


def step_of(values: np.ndarray, digits: int) -> float:
    """A power of ten that gives `digits` significant digits to the larger of 1 and the largest value."""
    largest = float(np.abs(values).max(initial=0))
    power = 0 if largest >= 1 or largest == 0 else int(np.floor(np.log10(largest)))
    return float(f"1e{power - digits + 1}")


def predicted_logits(values: np.ndarray, weight: np.ndarray, step: float) -> np.ndarray:
    """Predictions of the multiples of the step (rows, listed); the page computes the same ones.

    For a chosen expert: that of the first one, plus the logarithm of the ratio of their weights (rows, k). For others,
    and for weights that are not positive: that of the previous rank.
    """
    expected = np.concatenate([np.zeros_like(values[:, :1]), values[:, :-1]], axis=1)
    known = (weight > 0) & (weight[:, :1] > 0)
    ratio = np.divide(weight, weight[:, :1], where=known, out=np.ones_like(weight))
    of_weights = values[:, :1] + np.floor(np.log(ratio) / step + 0.5).astype(np.int64)
    k = weight.shape[1]
    expected[:, 1:k] = np.where(known, of_weights, expected[:, :k])[:, 1:]
    return expected


def folded(values: np.ndarray) -> np.ndarray:
    """Maps 0, -1, 1, -2, 2, ... to 0, 1, 2, 3, 4, ..., so that high bytes of small numbers are 0."""
    return np.where(values < 0, -2 * values - 1, 2 * values)


def encode(values: np.ndarray) -> Encoded:
    """Encodes integers in the smallest dtype that holds them, row-major."""
    least, most = int(values.min(initial=0)), int(values.max(initial=0))
    dtype = next(d for d in INTEGERS if np.iinfo(d).min <= least and most <= np.iinfo(d).max)
    flat = np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<")).reshape(-1)
    planes = flat.view(np.uint8).reshape(len(flat), flat.itemsize).T
    return Encoded(np.dtype(dtype).name, base85(deflated(planes.tobytes())))


def deflated(content: bytes) -> bytes:
    """Deflates mostly random bytes: with Huffman codes only, without searching for repetitions."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    return deflate.compress(content) + deflate.flush()


def base85(content: bytes) -> str:
    """Encodes four bytes as five characters of `ALPHABET`, the highest first; the last one counts padding bytes."""
    filling = -len(content) % 4
    words = np.frombuffer(content + bytes(filling), ">u4").astype(np.uint32)
    places = np.empty((len(words), 5), np.uint8)
    for place in range(4, -1, -1):
        words, places[:, place] = np.divmod(words, 85)
    return np.frombuffer(ALPHABET.encode("ascii"), np.uint8)[places].tobytes().decode("ascii") + str(filling)
