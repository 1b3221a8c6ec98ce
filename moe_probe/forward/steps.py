"""A forward pass that stops before every decoder layer, so that many can go through the layers side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import nn

from moe_probe.forward.spill import Spill

# whose forward pass is running: hooks of one pass ignore the others that share its module (threads)
OWNER: ContextVar[object | None] = ContextVar("owner", default=None)


class Forward:
    """One batch's forward pass through a model.

    The model's own code runs, unchanged, in a greenlet that gives way before each decoder layer. Masks, positions and
    whatever the model hands from layer to layer stay in its frames meanwhile.

    Args:
        module: the model; called with `inputs`.
        inputs: keyword arguments of the call.
        owner: whose pass it is.
        spill: where hidden states wait between layers; None to leave them in memory.
    """

    def __init__(self, module: nn.Module, inputs: dict[str, Any], owner: object, spill: Spill | None = None):
        self.module, self.inputs, self.owner, self.spill = module, inputs, owner, spill
        self.greenlet = greenlet(self._run)
        self.output: Any = None

    def _run(self) -> None:
        OWNER.set(self.owner)
        self.output = self.module(**self.inputs)

    def advance(self) -> None:
        """Run up to the next layer's beginning; after the last layer, to the end."""
        self.greenlet.forward = self
        self.greenlet.switch()

    def close(self) -> None:
        """Give up what has not run, and the temporary files."""
        if not self.greenlet.dead:
            self.greenlet.throw()
        if self.spill is not None:
            self.spill.close()


@contextmanager
def stepping(layers: nn.ModuleList, owner: object) -> Iterator[None]:
    """Within, a `Forward` of this owner stops before each of these layers; other calls of the model run through."""

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if OWNER.get() is owner:
            getcurrent().parent.switch()

    def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        spill = getcurrent().forward.spill if OWNER.get() is owner else None
        if spill is None:
            return output
        if isinstance(output, torch.Tensor):
            return spill(output)
        if isinstance(output, tuple) and isinstance(output[0], torch.Tensor):
            return (spill(output[0]), *output[1:])
        return output

    handles = []
    try:
        for layer in layers:
            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(layer.register_forward_hook(after, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
