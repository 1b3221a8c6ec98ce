"""Dataclasses that are stored as JSON files, such as plans and groups."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

from moe_probe.errors import Damaged
from moe_probe.files import as_path, whole_file


class StoredAsJson(ABC):
    """A dataclass that is stored in a JSON file.

    Attributes:
        format: name of the format in the file.
        what: content of the file, in errors.
    """

    format: ClassVar[str]
    what: ClassVar[str]

    def save(self, path: str | Path) -> Path:
        """Writes the object as JSON; the file appears when it is complete."""
        text = json.dumps({"format": self.format, **asdict(self)}, indent=1)  # type: ignore[call-overload]
        with whole_file(as_path(path)) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            Damaged: the file holds something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.pop("format", None) != cls.format:
                raise ValueError(f"no {cls.format!r}")
            return cls.of(content)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise Damaged(f"{path} holds no {cls.what} ({error}); write it with {cls.__name__}.save.") from None

    @classmethod
    @abstractmethod
    def of(cls, content: dict[str, Any]) -> Self:
        """Returns the saved object from the file's content; any error means that the file is damaged."""
