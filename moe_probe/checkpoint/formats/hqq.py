"""HQQ's `qmodel.pt` with a config.json: a dict from each module to its codes and their metadata, or to a plain weight.

Tensors keep their names (`X.W_q`, `X.scale`, `X.zero`). The metadata of the layers goes to `quantization_config`, where
the encoding `hqq` finds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_probe.checkpoint.folder import Opened, configuration, inside, present
from moe_probe.checkpoint.formats.torch import TorchFile
from moe_probe.errors import DamagedFile

NAME = "qmodel.pt"
METHOD = "hqq"


class HqqFile(TorchFile):
    """The file `qmodel.pt`: its tensors by `module.role`, and the metadata of its packed layers."""

    def named(self, content: Any) -> Any:
        if not isinstance(content, dict) or not content or not all(isinstance(part, dict) for part in content.values()):
            raise DamagedFile(f"{self.path} holds no modules, which every model of HQQ has; download it again.")
        return dict(pair for name, module in content.items() for pair in _tensors(str(name), module))

    def layers(self) -> dict[str, dict[str, Any]]:
        """Returns the metadata of each packed layer, by module: numbers, strings and lists of sizes."""
        modules: Mapping[str, Any] = self.unpickle() if self.headers is None else self.headers
        metas = ((name, module.get("meta")) for name, module in modules.items() if "W_q" in module)
        return {str(name): _said(meta) for name, meta in metas if isinstance(meta, Mapping)}


def _tensors(prefix: str, parts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields tensors, or their headers, with their keys `module.role`."""
    for name, value in parts.items():
        if hasattr(value, "shape"):
            yield f"{prefix}.{name}", value
        elif isinstance(value, Mapping):
            yield from _tensors(prefix if name == "meta" else f"{prefix}.{name}", value)


def _said(meta: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, value in meta.items():
        if isinstance(value, Mapping):
            said[name] = _said(value)
        elif isinstance(value, tuple | list):
            said[name] = [int(size) for size in value]
        elif isinstance(value, str | int | float | None):
            said[name] = value
    return said


@dataclass(frozen=True)
class Hqq:
    """The format of `qmodel.pt`."""

    preference: int = 6
    expects: str = f"config.json with HQQ's {NAME}"

    def open(self, folder: Path) -> Opened | None:
        """Opens a folder; returns None if it has no `qmodel.pt`.

        Raises:
            MissingFiles: config.json is missing.
            DamagedFile: the file is damaged, or holds something else.
            UnsafeFile: the pickle names code to run.
        """
        if not present(folder, NAME):
            return None
        config, file = configuration(folder), HqqFile(inside(folder, NAME))
        tensors = file.tensors()
        config["quantization_config"] = {"quant_method": METHOD, "layers": file.layers()}
        return Opened(config, tensors, [file.path])


FORMAT = Hqq()
