"""A model with some fields of its configuration changed: an intervention, with the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from moe_probe.model import MoEModel, load


@contextmanager
def altered(model: MoEModel, changes: Mapping[str, Any]) -> Iterator[MoEModel]:
    """Within, a model whose configuration has the changes; a module in memory is shared, and left as it was."""
    other = model
    if model.checkpoint is not None:
        config = {**model.checkpoint.config, **changes}
        options = {"device": model.device, "dtype": model.dtype, "tokenizer": model.tokenizer_source}
        other = load(model.checkpoint.path, config=config, **options)
    if "module" not in vars(model):
        yield other
        return
    vars(other)["module"] = model.module
    before = {name: getattr(model.module.config, name) for name in changes}
    try:
        model.module.config.update(changes)
        yield other
    finally:
        model.module.config.update(before)
