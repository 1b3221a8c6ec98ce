"""Finds members of one kind by name: files of a folder, and entry points of other packages."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from moe_probe.errors import NoSuchName

Member = TypeVar("Member")


class Registry(Mapping[str, Member]):
    """The members of one kind, by name; a module is imported when its member is first used.

    Each module of the package is one member, named like its file. Other packages add members through the entry point
    group `moe_probe.<group>`: an entry point's name is the member's, its value a module, or the member itself.

    Args:
        package: the folder, as a dotted name.
        group: the kind, as in `moe_probe.<group>`.
        kind: what a member is called in errors.
        pick: takes the member out of its module; by default the module is the member.
        besides: modules of the package that are not members; those that begin with `_` never are.

    Examples:
        >>> from moe_probe.registry import Registry
        >>> sorted(Registry("moe_probe.static.analyses", "static", "static analysis"))[:2]
        ['gate_regression', 'gate_similarity']
    """

    def __init__(
        self,
        package: str,
        group: str,
        kind: str,
        pick: Callable[[ModuleType, str], Member] = lambda module, _: module,
        besides: Sequence[str] = (),
    ):
        self.package, self.group, self.kind, self.pick, self.besides = package, group, kind, pick, besides
        self._picked: dict[str, Member] = {}

    @cached_property
    def _places(self) -> dict[str, EntryPoint | str]:
        bundled = {
            info.name: f"{self.package}.{info.name}"
            for info in pkgutil.iter_modules(import_module(self.package).__path__)
        }
        added = {
            point.name: point for point in entry_points(group=f"moe_probe.{self.group}") if point.name not in bundled
        }
        hidden = {name for name in bundled if name.startswith("_") or name in self.besides}
        return {name: place for name, place in sorted((bundled | added).items()) if name not in hidden}

    def __getitem__(self, name: str) -> Member:
        """The member called `name`.

        Raises:
            NoSuchName: there is none; the message lists those that there are.
        """
        if name not in self._places:
            raise NoSuchName.among(self.kind, name, self)
        if name not in self._picked:
            place = self._places[name]
            member = import_module(place) if isinstance(place, str) else place.load()
            self._picked[name] = self.pick(member, name) if isinstance(member, ModuleType) else member
        return self._picked[name]

    def source(self, name: str) -> ast.Module | None:
        """The syntax tree of a member's file, without importing it; None for a member of another package."""
        if not isinstance(self._places[name], str):
            return None
        places = (Path(folder) / name for folder in import_module(self.package).__path__)
        files = (file for place in places for file in (place.with_suffix(".py"), place / "__init__.py"))
        return ast.parse(next(file for file in files if file.is_file()).read_text("utf-8"))

    def stated(self, name: str, word: str, default: Any = None) -> Any:
        """The value that a member's file sets as a literal, `word = 1` or `Kind(word=1)`, without importing it.

        Args:
            name: of the member.
            word: name of an attribute of the member or its class, or of an argument in the call that makes it.
            default: returned if the file sets none.
        """
        source = self.source(name)
        if source is None:
            return getattr(self[name], word, default)
        for node in ast.walk(source):
            if isinstance(node, ast.Assign):
                says = word in (getattr(target, "id", None) for target in node.targets)
            else:
                says = isinstance(node, ast.keyword) and node.arg == word
            value = getattr(node, "value", None)
            if says and isinstance(value, ast.Constant):
                return value.value
        return default

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
