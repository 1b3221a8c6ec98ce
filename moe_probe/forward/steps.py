"""A forward pass that pauses before every decoder layer and after every MoE block, so that many can interleave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import nn

from moe_probe.forward.spill import Spill

# whose forward pass is running: hooks of one pass ignore the others that share its module (threads)
OWNER: ContextVar[object | None] = ContextVar("owner", default=None)

Seen = TypeVar("Seen")


class Forward(Generic[Seen]):
    """A call of a model that pauses at every decoder layer and after every event.

    The model's own code runs, unchanged, in a greenlet. Masks, positions and other values that the model passes from
    layer to layer stay in its frames.

    Args:
        call: the call to run.
        owner: owner of the pass.
        spill: stores hidden states between layers; None to keep them in memory.

    Attributes:
        output: the result of the call; None until it has returned.
    """

    def __init__(self, call: Callable[[], Any], owner: object, spill: Spill | None = None):
        self.call, self.owner, self.spill = call, owner, spill
        self.greenlet = greenlet(self._run)
        self.output: Any = None

    def _run(self) -> None:
        OWNER.set(self.owner)
        self.output = self.call()

    def advance(self) -> Iterator[Seen]:
        """Runs up to the start of the next layer, or to the end, and yields the events on the way."""
        vars(self.greenlet)["forward"] = self
        while not self.greenlet.dead and (handed := self.greenlet.switch()) not in ((), None):
            yield handed

    def close(self) -> None:
        """Closes the rest of the pass, and deletes temporary files."""
        if not self.greenlet.dead:
            self.greenlet.throw()
        if self.spill is not None:
            self.spill.close()


class Carrier(Protocol):
    """What carries router logits, (tokens, E), from layer to layer beside the hidden states (MoE++)."""

    logits: torch.Tensor | None


def carriers(args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Carrier]:
    """Those among the arguments of a layer or block."""
    return [
        each for each in (*args, *kwargs.values()) if not isinstance(each, torch.Tensor) and hasattr(each, "logits")
    ]


def hand_over(seen: object) -> None:
    """Called inside a `Forward`: gives way, and hands over what was seen."""
    parent = getcurrent().parent
    assert parent is not None
    parent.switch(seen)


@contextmanager
def stepping(layers: nn.ModuleList, owner: object) -> Iterator[None]:
    """Within, a `Forward` of this owner stops before each of these layers; other calls of the model run through."""

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        parent = getcurrent().parent
        if OWNER.get() is owner and parent is not None:
            parent.switch()

    def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        spill = vars(getcurrent())["forward"].spill if OWNER.get() is owner else None
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
