"""Kinds of intervention, one file each: `model.under(Zero(layer=5, experts=[3]))` is another model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType

from moe_probe.registry import Registry
from moe_probe.routing import Intervention


def _kind(module: ModuleType, name: str) -> type[Intervention]:
    own = [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module.__name__]
    return next(each for each in own if issubclass(each, Intervention))


HELPERS = ("chance", "choosing", "where")  # modules that are no kind
KINDS: Registry[type[Intervention]] = Registry(
    "moe_probe.intervene", "interventions", "intervention", _kind, besides=HELPERS
)
_CLASSES = {"TopK" if name == "top_k" else "".join(part.title() for part in name.split("_")): name for name in KINDS}


def names() -> Mapping[str, type[Intervention]]:
    """Every kind of intervention by its name, those of other packages too (entry points `moe_probe.interventions`)."""
    return KINDS


def __getattr__(name: str) -> type[Intervention]:
    if name in _CLASSES:
        return KINDS[_CLASSES[name]]
    raise AttributeError(f"module 'moe_probe.intervene' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["names", *_CLASSES])
