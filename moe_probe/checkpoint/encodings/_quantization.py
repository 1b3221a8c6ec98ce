"""Quantization settings, from any place in a configuration that may hold them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from moe_probe.errors import DamagedFile, reason

FIELDS = ("quantization_config", "compression_config", "quantization")
NESTED = ("text_config", "language_config", "llm_config")
TWO_SIZES = re.compile(r"\d{1,9}x\d{1,9}")
# fields that identify the method if `quant_method` is missing
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
        method: `quant_method`, or the method that other fields imply; None if the configuration states none.
        fields: all quantization settings of the configuration.
    """

    method: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Quantization:
        """Returns the settings at the top level of a configuration, or nested in that of the language model.

        Raises:
            DamagedFile: the settings are not an object, or `quant_method` is not a string.
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
        """Returns an integer setting, or `default` if the configuration does not state it."""
        value = self.fields.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise DamagedFile(f"quantization_config in config.json has {name}={value!r}, expected a whole number.")
        return value

    def block(self) -> tuple[int, int] | None:
        """Returns `weight_block_size`, the rows and columns of a block, or None if it is not stated.

        Raises:
            DamagedFile: `weight_block_size` is not two numbers.
        """
        return block_size(self.fields.get("weight_block_size"), "weight_block_size")


def _stated(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for place in (config, *(config.get(name) for name in NESTED)):
        for name in FIELDS:
            if isinstance(place, Mapping) and place.get(name):
                yield name, place[name]


def block_size(stated: Any, name: str) -> tuple[int, int] | None:
    """Returns two sizes that a configuration states as a list or as a string such as `128x128`; None if it does not."""
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
    """Whether an entry of an ignore list, or a target, matches a module: by name, its end, `re:...`, or with `*`.

    Raises:
        DamagedFile: the text after `re:` is not a regular expression.
    """
    if pattern.startswith("re:"):
        try:
            return re.match(pattern[3:], module) is not None
        except re.error as error:
            raise DamagedFile(
                f"quantization_config in config.json has {pattern!r}, which is no regular expression "
                f"({reason(error)}); use the published file."
            ) from error
    return module == pattern or module.endswith("." + pattern) or fnmatchcase(module, pattern)
