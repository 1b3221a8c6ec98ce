"""A forward pass that stops before every decoder layer, so that many can go through the layers side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import nn

from moe_probe.dynamic.spill import Spill


class Forward:
    """One batch's forward pass through a model.

    The model's own code runs, unchanged, in a greenlet that gives way before each decoder layer. Masks, positions and
    whatever the model hands from layer to layer stay in its frames meanwhile.

    Args:
        module: the model; called with `inputs`.
        inputs: keyword arguments of the call.
        spill: where hidden states wait between layers; None to leave them in memory.
    """

    def __init__(self, module: nn.Module, inputs: dict[str, Any], spill: Spill | None = None):
        self.module, self.inputs, self.spill = module, inputs, spill
        self.greenlet = greenlet(self._run)
        self.output: Any = None

    def _run(self) -> None:
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
def stepping(layers: nn.ModuleList) -> Iterator[None]:
    """Within, a `Forward` through these layers stops before each; other calls of the model run through."""

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        current = getcurrent()
        if isinstance(getattr(current, "forward", None), Forward):
            current.parent.switch()

    def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        forward = getattr(getcurrent(), "forward", None)
        if not isinstance(forward, Forward) or forward.spill is None:
            return output
        if isinstance(output, torch.Tensor):
            return forward.spill(output)
        if isinstance(output, tuple) and isinstance(output[0], torch.Tensor):
            return (forward.spill(output[0]), *output[1:])
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
