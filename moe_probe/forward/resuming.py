"""Passes that start at a later layer, so that edited runs do not repeat what they share with the unedited run.

A pass that starts at layer l is the model's own forward pass, in which the layers before l, and the modules of layer l
that run before its MoE block (attention), return the outputs of the unedited run; the experts of layer l run only on
the rows with other choices or weights. So masks, positions and the head are the model's own, and every family runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from moe_probe.forward.capture import capture
from moe_probe.forward.execution import Runner, borrowed
from moe_probe.forward.ran import Ran
from moe_probe.forward.sharing import Base, Left, Run, Tail
from moe_probe.forward.sites import expert_call, find_sites
from moe_probe.forward.spill import Spill
from moe_probe.forward.steps import OWNER, carriers, stepping
from moe_probe.model import MoEModel
from moe_probe.routing import Call, Intervention
from moe_probe.texts.corpus import Batch, Tokens


class Watching(Intervention):
    """Passes each call to its observers, and changes nothing."""

    stage = 10

    def __init__(self, see: Callable[[Call], None]):
        self.see = see

    def acts_in(self, moe_layers: Any) -> frozenset[int]:
        return frozenset(moe_layers)

    def route(self, call: Call) -> Call:
        self.see(call)
        return call


def before_block(layer: nn.Module, block: nn.Module) -> list[tuple[str, nn.Module]]:
    """Parts of a decoder layer with matrices of their own, such as attention, but for that with the MoE block."""
    if layer is block:
        return []
    parts = [(name, part) for name, part in layer.named_children() if block not in part.modules()]
    return [(name, part) for name, part in parts if any(each.ndim > 1 for each in part.parameters())]


def is_hidden(output: Any, batch: Batch) -> bool:
    """Whether a module gave values of a batch's places, (documents, places, ...), alone or first in a tuple."""
    first = output[0] if isinstance(output, tuple) and output else output
    return isinstance(first, torch.Tensor) and first.ndim > 2 and tuple(first.shape[:2]) == batch.shape


def same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same values in the same place."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


@contextmanager
def standing_in(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """A context in which `function(forward, *arguments)` replaces a module's `forward(*arguments)`."""
    before = vars(module).get("forward")
    module.forward = partial(function, module.forward)
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


class Resuming:
    """Runs of one model, unedited and edited ones, that share layers.

    Args:
        model: the model, whose own interventions act in every run.
        layerwise: whether to read one layer at a time instead of loading the model.
        own: the model's interventions, with the knowledge of other runs that they need.
        starts: layers at which edited runs start.

    Attributes:
        layers: number of decoder layers.
    """

    def __init__(
        self, model: MoEModel, layerwise: bool, own: Sequence[Intervention] = (), starts: Collection[int] = ()
    ):
        self.model, self.runner, self.own = model, Runner(model, layerwise, head=True), own
        self.layers = model.num_layers
        self.starts = frozenset(starts)
        self.run: Run | None = None
        self._call: Call | None = None
        self._acting: Sequence[tuple[Intervention, torch.Tensor | None]] = ()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """A context in which the model is borrowed and watched."""
        self.sites = find_sites(self.runner.module)
        sites = self.sites.values()
        with ExitStack() as stack:
            stack.enter_context(borrowed(self.runner.module))
            stack.enter_context(stepping(self.runner.layers, self))
            stack.enter_context(self._skipping())
            edits = partial(self._interventions, [*self.own, Watching(self._see)])
            watching = capture(sites, None, self, self.model.config, edits, self._tokens, self._only)
            self.watched = stack.enter_context(watching)
            yield

    def _interventions(self, always: Sequence[Intervention]) -> list[Intervention]:
        return [*always, *(edit for edit, _ in self._acting)]

    def _only(self, intervention: Intervention) -> torch.Tensor | None:
        return next((mask for edit, mask in self._acting if edit is intervention), None)

    def _tokens(self) -> Tokens:
        return Tokens.none() if self.run is None else self.run.tokens

    def _see(self, call: Call) -> None:
        assert self.run is not None
        self._call = call
        self.run.see(call)

    @contextmanager
    def _skipping(self) -> Iterator[None]:
        """A context in which layers that a run shares with its base return the base's outputs."""
        with ExitStack() as stack:
            for index, layer in enumerate(self.runner.layers):
                stack.enter_context(standing_in(layer, partial(self._forward, index)))
                if index in self.starts:
                    stack.enter_context(standing_in(self.sites[index].experts, partial(self._experts, index)))
                    for name, part in before_block(layer, self.sites[index].block):
                        stack.enter_context(standing_in(part, partial(self._part, index, name)))
            yield

    def _experts(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The experts of a layer where runs begin: rows that are called as in the base give back what it left."""
        run, call = self.run, self._call
        rows = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        if OWNER.get() is not self or run is None or call is None or rows.ndim != 2 or not same_memory(rows, call.rows):
            return forward(*args, **kwargs)
        self._call = None
        if isinstance(run, Tail) and run.start == index and index in run.base.ran:
            before = run.base.ran[index].of_documents(run.rows, run.base.batch.shape, run.places)
            return before.again(forward, args, kwargs)
        output = forward(*args, **kwargs)
        if isinstance(run, Base) and output.shape == rows.shape:
            run.ran[index] = Ran(*expert_call(args, kwargs)[1:], output)
        return output

    def _part(self, index: int, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A module beside the MoE block: what it gives before the block is the same in all runs that begin there."""
        run = self.run
        if OWNER.get() is self and isinstance(run, Tail) and run.start == index and name in run.base.inside[index]:
            return run.base.inside[index][name].of_rows(run.rows, run.places).output
        output = forward(*args, **kwargs)
        if OWNER.get() is self and isinstance(run, Base) and index not in run.index and is_hidden(output, run.batch):
            run.inside.setdefault(index, {})[name] = Left(run.batch.shape, output, [])
        return output

    def _forward(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        run = self.run
        if OWNER.get() is not self or run is None:
            return forward(*args, **kwargs)
        if index < run.start:
            return self._skip(index, run, args, kwargs)
        output = forward(*args, **kwargs)
        if isinstance(run, Base):
            run.inside.setdefault(index, {})
            run.left[index] = Left(run.batch.shape, output, [each.logits for each in carriers(args, kwargs)])
        return output

    def _skip(self, index: int, run: Run, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        assert isinstance(run, Tail)
        assert run.entering is not None
        if index in self.watched:  # the layer may be the block itself
            self.watched[index].abandon()
        for carrier, logits in zip(carriers(args, kwargs), run.entering.carried, strict=True):
            carrier.logits = logits
        return run.entering.output

    def begin(self, run: Run, spill: Spill | None = None) -> None:
        """Starts a pass, which waits before the first layer that it runs."""
        self.run = run
        run.forward = self.runner.start(run.batch, self, spill)
        for _ in range(run.start):
            self.advance(run)
        if isinstance(run, Tail):
            run.entering = None

    def advance(self, run: Run) -> None:
        """Runs a pass up to the next layer, or to its end."""
        self.run, self._acting = run, run.acting
        for _ in run.forward.advance():
            pass

    def finish(self, run: Run) -> None:
        """Runs a pass to its end."""
        for _ in range(run.start, self.layers):
            self.advance(run)

    def each_layer(self) -> Iterator[int]:
        """Indices of the layers, each while its weights are in memory."""
        return self.runner.each_layer(self.layers)
