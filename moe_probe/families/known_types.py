"""The model types that transformers knows, found without importing it."""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

MAPPING = "CONFIG_MAPPING_NAMES"  # maps model type to configuration class; a literal in one of these files
FILES = ("models/auto/auto_mappings.py", "models/auto/configuration_auto.py")


def is_known(model_type: object) -> bool:
    """Whether transformers has a configuration class for a model type, including registered ones."""
    auto = sys.modules.get("transformers.models.auto.configuration_auto")
    return model_type in (auto.CONFIG_MAPPING if auto is not None else _published())


@cache
def _published() -> frozenset[str]:
    """Returns the model types that transformers ships with."""
    spec = find_spec("transformers")
    folders = (spec.submodule_search_locations if spec else None) or ()
    files = (Path(folder) / name for folder in folders for name in FILES)
    return frozenset(name for file in files if file.is_file() for name in _keys(file))


def _keys(file: Path) -> set[str]:
    """Returns the strings that are keys, or first in a pair, in statements that fill the mapping."""
    statements = (node for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.Assign | ast.Expr))
    filling = (node for node in statements if any(map(_is_mapping, ast.walk(node))))
    keys: set[str] = set()
    for node in (inner for statement in filling for inner in ast.walk(statement)):
        first = node.keys if isinstance(node, ast.Dict) else node.elts[:1] if isinstance(node, ast.Tuple) else []
        keys |= {each.value for each in first if isinstance(each, ast.Constant) and isinstance(each.value, str)}
    return keys


def _is_mapping(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == MAPPING
