"""Imports on first use: names that a package offers, and packages that an extra installs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from moe_probe.errors import MissingPackage


class Deferred(Mapping[str, Any]):
    """The names that a package imports under `if TYPE_CHECKING:`; each is imported on first use.

    Args:
        package: its `__name__`.
        file: its `__file__`.

    Examples:
        >>> import moe_probe.checkpoint
        >>> Deferred("moe_probe.checkpoint", moe_probe.checkpoint.__file__)["LazyTensor"].__name__
        'LazyTensor'
    """

    def __init__(self, package: str, file: str):
        self.package, self.file = package, Path(file)

    @cached_property
    def _places(self) -> dict[str, tuple[str, str]]:
        """The module of each name, and its name there, by the package's name for it."""
        blocks = (node for node in ast.parse(self.file.read_text("utf-8")).body if isinstance(node, ast.If))
        imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
        return {
            alias.asname or alias.name: (str(node.module), alias.name)
            for node in imports
            for alias in node.names
            if node.module is not None and node.module.startswith("moe_probe.")
        }

    def __getitem__(self, name: str) -> Any:
        module, attribute = self._places[name]
        return getattr(import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def attribute(self, name: str) -> Any:
        """Returns one of these names, or a module of the package; serves as the package's `__getattr__`.

        Raises:
            AttributeError: the package has neither.
        """
        if name in self:
            setattr(sys.modules[self.package], name, self[name])
            return self[name]
        try:
            if not name.startswith("_"):
                return import_module(f"{self.package}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{self.package}.{name}":
                raise
        raise AttributeError(f"module {self.package!r} has no attribute {name!r}")


@contextmanager
def needed(package: str, extra: str, what: str) -> Iterator[None]:
    """A context in which to import a package that an extra of moe_probe installs.

    Args:
        package: name of the package.
        extra: the extra that installs it.
        what: the things that need it, in the plural; the message begins with them.

    Raises:
        MissingPackage: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != package:
            raise
        raise MissingPackage(
            f'{what} need the package {package}, which is not installed; run pip install "moe-probe[{extra}]".'
        ) from error


class Late(ModuleType):
    """A module that is imported when an attribute of it is first used.

    Examples:
        >>> Late("json").dumps([])
        '[]'
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)
        return value


torch: ModuleType = Late("torch")  # in rooms that describe tensors of files without reading them


class Extra(ModuleType):
    """A module of a package that an extra installs, imported when an attribute of it is first used.

    Examples:
        >>> Extra("json", "trace", "Routing traces").dumps([])
        '[]'
    """

    def __init__(self, module: str, extra: str, what: str):
        super().__init__(module)
        self._module, self._extra, self._what = module, extra, what

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        with needed(self._module.partition(".")[0], self._extra, self._what):
            return getattr(import_module(self._module), name)
