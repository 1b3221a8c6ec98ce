"""What a page holds, read back in Python."""

import json
import re
import zlib

import numpy as np

from moe_probe.explorer.packing import ALPHABET, from_significant, predicted_logits


def decode(dtype, text, shape=-1):
    """Integers of an `Encoded`."""
    places = np.array([ALPHABET.index(character) for character in text[:-1]], np.int64).reshape(-1, 5)
    words = (places * 85 ** np.arange(4, -1, -1)).sum(1).astype(">u4")
    content = words.tobytes()
    plain = zlib.decompress(content[: len(content) - int(text[-1])])
    kind = np.dtype(dtype)
    planes = np.frombuffer(plain, np.uint8).reshape(kind.itemsize, -1)
    return np.ascontiguousarray(planes.T).view(kind).reshape(shape)


def facts_of(page):
    (text,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', page.html, re.DOTALL)
    return json.loads(text)


def arrays_of(page):
    """By name, such as `0-3-index`."""
    return {
        name: decode(dtype, text)
        for name, dtype, text in re.findall(r'id="array-([\w-]+)" data-dtype="(\w+)">([^<]*)<', page.html)
    }


def routing_of(layer, arrays, digits):
    """Experts (rows, listed), weights (rows, k) and logits (rows, listed) of a layer, from its facts and arrays."""
    index = arrays["index"].reshape(layer["listed"], -1).T
    packed = arrays["weight"].astype(np.int64).reshape(layer["top_k"], -1).T
    codes = np.concatenate([packed[:, :1], packed[:, :1] - np.cumsum(packed[:, 1:], axis=1)], axis=1)
    weight = from_significant(codes, layer["exponent"], digits)
    stored = arrays["logits"].astype(np.int64).reshape(layer["listed"], -1).T
    ahead = np.where(stored % 2, -(stored + 1) // 2, stored // 2)
    values = ahead.copy()
    for rank in range(1, layer["listed"]):
        expected = values[:, rank - 1]
        if layer["predicted"]:
            expected = predicted_logits(values[:, : rank + 1], weight[:, : rank + 1], layer["step"])[:, rank]
        values[:, rank] = ahead[:, rank] + expected
    return index, weight, values * layer["step"]
