"""What a configuration says of how its checkpoint is quantized, wherever it says so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from moe_probe.errors import DamagedFile

FIELDS = ("quantization_config", "compression_config", "quantization")
NESTED = ("text_config", "language_config", "llm_config")
TWO_SIZES = re.compile(r"\d{1,9}x\d{1,9}")
# what tells a method where `quant_method` is missing
MARKS = {
    "quant_algo": "modelopt",
    "config_groups": "compressed-tensors",
    "group_size": "mlx",
    "qformat_weight": "mistral",
}


@dataclass(frozen=True)
class Quantization:
    """The quantization of a checkpoint.

    Attributes:
        method: `quant_method`; None where nothing is stated.
        fields: all that is stated.
    """

    method: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Quantization:
        """What a configuration states, at its top level or nested in that of the language model.

        Raises:
            DamagedFile: it is no object, or says no method.
        """
        for name, value in _stated(config):
            if not isinstance(value, dict):
                raise DamagedFile(f"{name} in config.json is {value!r}, expected an object; use the published file.")
            method = value.get("quant_method") or next((MARKS[mark] for mark in MARKS if mark in value), None)
            if method is not None and not isinstance(method, str):
                raise DamagedFile(f"config.json has quant_method={method!r}, expected a name; use the published file.")
            return cls(method, value)
        return cls()

    def number(self, name: str, default: int) -> int:
        """A whole number that the configuration may state."""
        value = self.fields.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise DamagedFile(f"quantization_config in config.json has {name}={value!r}, expected a whole number.")
        return value

    def block(self) -> tuple[int, int] | None:
        """`weight_block_size`: rows and columns of a block; None where none is stated.

        Raises:
            DamagedFile: it is something else.
        """
        return block_size(self.fields.get("weight_block_size"), "weight_block_size")


def _stated(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for place in (config, *(config.get(name) for name in NESTED)):
        for name in FIELDS:
            if isinstance(place, Mapping) and place.get(name):
                yield name, place[name]


def block_size(stated: Any, name: str) -> tuple[int, int] | None:
    """Two sizes that a configuration states: a list, or a text such as `128x128`."""
    if not stated:
        return None
    if isinstance(stated, str) and TWO_SIZES.fullmatch(stated):
        stated = [int(size) for size in stated.split("x")]
    sizes = [size for size in stated if isinstance(size, int) and size > 0] if isinstance(stated, list | tuple) else []
    if len(sizes) != 2 or len(stated) != 2:
        raise DamagedFile(
            f"quantization_config in config.json has the {name} {stated!r}, expected two numbers, such as [128, 128]; "
            "use the published file."
        )
    return sizes[0], sizes[1]


def matches(pattern: str, module: str) -> bool:
    """Whether an entry of an ignore list, or a target, means a module: a name, its end, `re:...`, or with `*`.

    Raises:
        DamagedFile: what follows `re:` is no regular expression.
    """
    if pattern.startswith("re:"):
        try:
            return re.match(pattern[3:], module) is not None
        except re.error as error:
            raise DamagedFile(
                f"quantization_config in config.json has {pattern!r}, which is no regular expression ({error}); use "
                "the published file."
            ) from error
    return module == pattern or module.endswith("." + pattern) or fnmatchcase(module, pattern)
