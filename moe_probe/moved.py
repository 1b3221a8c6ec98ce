"""Modules under their names of version 0.1: importing one warns where the module is now."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

PACKAGE = "moe_probe."
MODULES = {
    "arguments": "options",
    "checkpoint.fairseq_files": "checkpoint.formats.fairseq",
    "checkpoint.grok_files": "checkpoint.formats.grok",
    "checkpoint.quantized": "checkpoint.encodings",
    "checkpoint.safetensors_files": "checkpoint.formats.safetensors",
    "checkpoint.torch_files": "checkpoint.formats.torch",
    "cli.compare": "cli.commands.compare",
    "cli.convert": "cli.commands.convert",
    "cli.demo": "cli.commands.demo",
    "cli.dynamic": "cli.commands.dynamic",
    "cli.explore": "cli.commands.explore",
    "cli.figures": "cli.commands.figures",
    "cli.generate": "cli.commands.generate",
    "cli.info": "cli.commands.info",
    "cli.reproduce": "cli.commands.reproduce",
    "cli.static": "cli.commands.static",
    "dynamic.baseline": "forward.dense",
    "dynamic.bootstrap": "statistics.bootstrap",
    "dynamic.capacity": "statistics.capacity",
    "dynamic.capture": "forward.capture",
    "dynamic.choices": "comparisons.side_by_side",
    "dynamic.corpus": "texts.corpus",
    "dynamic.engine": "forward.running",
    "dynamic.generation": "forward.writing",
    "dynamic.labelled": "statistics.by_label",
    "dynamic.over_checkpoints": "comparisons",
    "dynamic.pictures": "texts.pictures",
    "dynamic.resume": "dynamic.saved_states",
    "dynamic.run": "dynamic.functions",
    "dynamic.scores": "forward.affinity",
    "dynamic.sites": "forward.sites",
    "dynamic.spill": "forward.spill",
    "dynamic.steps": "forward.steps",
    "dynamic.tagging": "texts.tagging",
    "dynamic.tally": "statistics.states",
    "dynamic.trace": "traces.reading",
    "dynamic.weights": "forward.streaming",
    "dynamic.words": "texts.words",
    "explorer.explore": "explorer.building",
    "figures.kinds": "figures.recipes",
    "figures.reproduce": "figures.making",
    "figures.reproduction": "figures.album",
    "static.gate_regression": "static.analyses.gate_regression",
    "static.gate_similarity": "static.analyses.gate_similarity",
    "static.pca": "static.analyses.pca",
    "static.router_spectrum": "static.analyses.router_spectrum",
    "static.similarity": "static.analyses.similarity",
    "static.weight_drift": "static.analyses.weight_drift",
    "tables": "cli.tables",
    "whole_files": "files",
}


class Alias(ModuleType):
    """A module under its old name; it can be called if a function of the package has that name too."""

    def __init__(self, name: str, module: ModuleType):
        super().__init__(name, module.__doc__)
        vars(self)["_module"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_module"], name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*arguments, **options)


class Moved:
    """Finds modules by their old names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for a name that has moved; None for any other."""
        return ModuleSpec(fullname, cast("Loader", self)) if fullname.removeprefix(PACKAGE) in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An alias of the module under its new name."""
        new = PACKAGE + MODULES[spec.name.removeprefix(PACKAGE)]
        warnings.warn(f"{spec.name} is now {new}.", DeprecationWarning, stacklevel=2)
        return Alias(spec.name, import_module(new))

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing: the module ran under its new name."""


def install() -> None:
    """Makes old names importable."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.append(Moved())
