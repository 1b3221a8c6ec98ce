"""Checks that the sizes in a configuration are possible for the tensors in the files.

A configuration with larger sizes raises an error before a module is built from it, because building takes time and
memory in proportion to the sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from moe_probe.errors import DamagedFile

if TYPE_CHECKING:
    from moe_probe.checkpoint import LazyTensor

LAYERS = re.compile(r"(^|_)(layers?|blocks|depth|n_layer|layer_num)$|^num_nextn_predict_layers$")
EXPERTS = re.compile(r"(experts|expert_count|expert_num|experts_per_tok(en)?|top_?k|constant_experts|heads_number)$")
WIDTHS = re.compile(r"(hidden|intermediate|vocab|ffn|emb|key)_size$|^d_(model|ff)$|_(dim|rank|heads)$")
LENGTHS = re.compile(r"(sliding_window|_position_embeddings|_positions|window_size)$")
LONGEST = 2**31  # tokens; torch counts positions up to here
# sizes that are always allowed, since they build quickly and some fields describe parts that the files omit
HARMLESS_LAYERS, HARMLESS_EXPERTS, HARMLESS_WIDTH = 128, 4096, 2**20


def require_sizes(config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> None:
    """Raises an error if the configuration states a size that is too large for the tensors.

    Raises:
        DamagedFile: there is such a size; the message names its field.
    """
    shapes = [tensor.shape for tensor in tensors.values()]
    longest = max((max(shape, default=1) for shape in shapes), default=0)
    values = max((shape.numel() for shape in shapes), default=0)
    bounds = (
        (LAYERS, max(len(shapes), HARMLESS_LAYERS), f"{len(shapes)} tensors"),
        (EXPERTS, max(longest, len(shapes), HARMLESS_EXPERTS), f"no tensor with more than {longest} rows or columns"),
        (LENGTHS, LONGEST, "a model, and none reads so many tokens"),
        (WIDTHS, max(values, HARMLESS_WIDTH), f"no tensor with more than {values} values"),
    )
    for name, number in _numbers(config):
        for pattern, bound, holding in bounds:
            if pattern.search(name) and number > bound:
                raise DamagedFile(
                    f"The configuration has {name}={_short(number)}, but the files hold {holding}; use the "
                    "configuration that was published with them."
                )


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Yields every number in a configuration with its field's name, also from nested objects and lists."""
    waiting: list[tuple[str, Any]] = list(config.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, item) for item in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield str(name), value


def _short(number: int | float) -> str:
    return f"{number:.3g}" if isinstance(number, float) or number < 10**300 else "10**300 or more"


def positive(config: Mapping[str, Any], name: str) -> int:
    """Returns a size that a configuration must state.

    Raises:
        DamagedFile: the field is not a whole number above 0.
    """
    value = config[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DamagedFile(f"config.json has {name}={value!r}, expected a whole number above 0; use the published file.")
    return value
