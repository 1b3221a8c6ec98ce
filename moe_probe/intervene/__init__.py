"""Kinds of intervention, one file each: `model.under(Zero(layer=5, experts=[3]))` is another model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from moe_probe.registry import Registry
from moe_probe.routing import Intervention


def _kind(module: ModuleType, name: str) -> type[Intervention]:
    classes = [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module.__name__]
    return next(each for each in classes if issubclass(each, Intervention))


HELPERS = ("applying", "chance", "choosing", "measured", "referring", "where")  # modules that are no kind
FUNCTIONS = {
    "Where": "where",
    "applied": "applying",
    "reference": "referring",
    "ablate": "measured.ablation",
    "agreement": "measured.agreeing",
    "attribution": "measured.attributing",
    "claims": "measured.claims",
    "effect": "measured.effects",
    "search": "measured.searching",
}
KINDS: Registry[type[Intervention]] = Registry(
    "moe_probe.intervene", "interventions", "intervention", _kind, besides=HELPERS
)
_CLASSES = {"TopK" if name == "top_k" else "".join(part.title() for part in name.split("_")): name for name in KINDS}


def names() -> Mapping[str, type[Intervention]]:
    """All kinds of intervention by name, including those of other packages (entry points `moe_probe.interventions`)."""
    return KINDS


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return KINDS[_CLASSES[name]]
    if name in FUNCTIONS:
        return getattr(import_module(f"moe_probe.intervene.{FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'moe_probe.intervene' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["names", *FUNCTIONS, *_CLASSES])
