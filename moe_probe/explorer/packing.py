"""Arrays to text that a page can hold: rounded to significant digits, predicted, deflated, in base 85."""

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
    """Integers as text: their dtype, and base 85 of the deflated array, all low bytes first."""

    dtype: str
    text: str


@dataclass(frozen=True)
class PackedLayer:
    """What a page holds of one layer's routing.

    Attributes:
        facts: how `weight` and `logits` are to be read: `exponent`, `step`, `predicted`.
        arrays: `index`, `weight` and `logits`, rank by rank.
    """

    facts: Mapping[str, Any]
    arrays: Mapping[str, Encoded]


def pack(
    models: Sequence[Mapping[int, RecordedLayer]], max_size: int, digits: int = DIGITS
) -> tuple[int, list[dict[int, PackedLayer]]]:
    """Packs all layers of all models into `max_size` characters, and tells the number of digits.

    Weights and logits have so many significant digits, or fewer where that many do not fit.

    Raises:
        NotFitting: one digit each does not fit.
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
    """Characters that a layer takes, with the elements that hold its arrays."""
    return sum(len(array.text) + ELEMENT for array in packed.arrays.values()) + ELEMENT


def pack_layer(layer: RecordedLayer, digits: int) -> PackedLayer:
    """One layer, rounded to so many digits.

    Weights are codes of `significant` numbers, each but the first as what it lacks to that of the rank before. Logits
    are multiples of a step, each but the first less its prediction: what the weights say (`predicted`; exact but for
    rounding where weights are a softmax), or the logit of the rank before, whichever takes less; `folded`.
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
    """Whole numbers that stand for the values rounded to so many significant digits, and the least exponent.

    0 stands for 0; a number with exponent e and digits m, such as 5.23 with e = 0 and m = 523, for
    1 + 9 * 10^(digits - 1) * (e - least exponent) + m - 10^(digits - 1), with the value's sign.

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
    """The values that codes of `significant` stand for, float64."""
    base = 10 ** (digits - 1)
    power, mantissa = np.divmod(np.abs(codes) - 1, 9 * base)
    return np.where(codes == 0, 0.0, np.sign(codes) * (mantissa + base) * 10.0 ** (power + exponent - digits + 1))


def step_of(values: np.ndarray, digits: int) -> float:
    """A power of ten: so many digits of the largest value, and of 1 where that is smaller."""
    largest = float(np.abs(values).max(initial=0))
    power = 0 if largest >= 1 or largest == 0 else int(np.floor(np.log10(largest)))
    return float(f"1e{power - digits + 1}")


def predicted_logits(values: np.ndarray, weight: np.ndarray, step: float) -> np.ndarray:
    """What each multiple of the step (rows, listed) is expected to be, as the page does it too.

    Of a chosen expert: the first one's, plus the logarithm of how their weights (rows, k) are to each other. Of others,
    and where weights are not positive: that of the rank before.
    """
    expected = np.concatenate([np.zeros_like(values[:, :1]), values[:, :-1]], axis=1)
    known = (weight > 0) & (weight[:, :1] > 0)
    ratio = np.divide(weight, weight[:, :1], where=known, out=np.ones_like(weight))
    of_weights = values[:, :1] + np.floor(np.log(ratio) / step + 0.5).astype(np.int64)
    k = weight.shape[1]
    expected[:, 1:k] = np.where(known, of_weights, expected[:, :k])[:, 1:]
    return expected


def folded(values: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ..., so that high bytes of small numbers are 0."""
    return np.where(values < 0, -2 * values - 1, 2 * values)


def encode(values: np.ndarray) -> Encoded:
    """The smallest dtype that holds the integers, and the array's text, row-major."""
    least, most = int(values.min(initial=0)), int(values.max(initial=0))
    dtype = next(d for d in INTEGERS if np.iinfo(d).min <= least and most <= np.iinfo(d).max)
    flat = np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<")).reshape(-1)
    planes = flat.view(np.uint8).reshape(len(flat), flat.itemsize).T
    return Encoded(np.dtype(dtype).name, base85(deflated(planes.tobytes())))


def deflated(content: bytes) -> bytes:
    """Noise, for the greater part: Huffman codes rather than repetitions."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    return deflate.compress(content) + deflate.flush()


def base85(content: bytes) -> str:
    """Five characters of `ALPHABET` for four bytes, the highest first; last, how many zero bytes fill up the end."""
    filling = -len(content) % 4
    words = np.frombuffer(content + bytes(filling), ">u4").astype(np.uint32)
    places = np.empty((len(words), 5), np.uint8)
    for place in range(4, -1, -1):
        words, places[:, place] = np.divmod(words, 85)
    return np.frombuffer(ALPHABET.encode("ascii"), np.uint8)[places].tobytes().decode("ascii") + str(filling)
