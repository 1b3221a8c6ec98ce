"""Interventions that change the model's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_probe.errors import NoSuchName
from moe_probe.model import MoEModel
from moe_probe.routing import Intervention


class Config(Intervention):
    """Replaces fields of the configuration that the model's code reads while it runs.

    Args:
        fields: new values of fields, by name.

    Examples:
        >>> Config(moe_gate_residual=False)
        Config(moe_gate_residual=False)
    """

    def __init__(self, **fields: Any):
        self.config: Mapping[str, Any] = fields

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in self.config.items())})"

    def check(self, model: MoEModel) -> None:
        known = model.config.to_dict()
        for name in self.config:
            if name not in known:
                raise NoSuchName.among(f"field of the configuration of {model.name}", name, known)
