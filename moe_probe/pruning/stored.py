"""Plans and groups as JSON files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from moe_probe.errors import Damaged
from moe_probe.files import as_path, whole_file

Kind = TypeVar("Kind")


def save_stored(value: Any, format_name: str, path: str | Path) -> Path:
    """Write a dataclass as JSON; the file appears when it is complete."""
    text = json.dumps({"format": format_name, **asdict(value)}, indent=1)
    with whole_file(as_path(path)) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return Path(path)


def read_stored(
    make: Callable[[dict[str, Any]], Kind], format_name: str, path: str | Path, what: str, writer: str
) -> Kind:
    """What `save_stored` wrote.

    Raises:
        Damaged: the file holds none.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.pop("format", None) != format_name:
            raise ValueError(f"no {format_name!r}")
        return make(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} holds no {what} ({error}); write it with {writer}.") from None
