"""Repairs released configurations that transformers rejects, and warns about each repair."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN

Config = TypeVar("Config")
REFUSED = re.compile(r"field '(\w+)'.*?expected (bool|int|float|str), got (\w+)", re.DOTALL)
MOST = 16  # repaired fields of one configuration
# other names of activations, and those of transformers
ACTIVATIONS = {"swiglu": "silu", "swish": "silu", "geglu": "gelu", "gelu_tanh": "gelu_pytorch_tanh",
               "relu_squared": "relu2"}  # fmt: skip


def repaired(build: Callable[[dict[str, Any]], Config], fields: Mapping[str, Any]) -> Config:
    """Returns `build(fields)`, with values of a wrong type converted to the stated one where the meaning is certain.

    An int becomes a bool (released Llama 4: `attn_temperature_tuning` is 4), a float without fraction an int, and an
    int a float. Activations may have another name (`swiglu` is silu and a gate). A warning lists the repairs.

    Raises:
        StrictDataclassError: a field cannot be repaired.
    """
    current = copy.deepcopy(dict(fields))
    words: list[str] = []
    _rename_activations(current, words)
    for _ in range(MOST):
        try:
            config = build(copy.deepcopy(current))
            break
        except StrictDataclassError as error:
            match = REFUSED.search(str(error))
            if match is None or not _replace(current, match[1], match[2], words):
                raise
    else:
        config = build(current)
    if words:
        warnings.warn(f"config.json is read with {', '.join(words)}.", stacklevel=3)
    return config


def _rename_activations(fields: dict[str, Any], words: list[str]) -> None:
    for name, value in fields.items():
        if isinstance(value, dict):
            _rename_activations(value, words)
        elif name in ("hidden_act", "hidden_activation") and value not in ACT2FN and value in ACTIVATIONS:
            fields[name] = ACTIVATIONS[value]
            words.append(f"{name}={value!r} as {ACTIVATIONS[value]!r}")


def _replace(fields: dict[str, Any], name: str, kind: str, words: list[str]) -> bool:
    """Converts a field to a type, wherever it is nested; returns whether any value was converted."""
    done = False
    for key, value in fields.items():
        if isinstance(value, dict):
            done |= _replace(value, name, kind, words)
        elif key == name:
            meant = _meant(value, kind)
            if meant is not None:
                fields[key], done = meant, True
                words.append(f"{name}={value!r} as {meant!r}")
    return done


def _meant(value: Any, kind: str) -> bool | int | float | None:
    if kind == "bool" and isinstance(value, int) and not isinstance(value, bool):
        return bool(value)
    if kind == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return None
