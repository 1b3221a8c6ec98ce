"""Passes that begin in the middle: what an edited run shares with the unedited one is never run again.

A pass that begins at layer l is the model's own forward, in which the layers before l, and the modules of layer l that
run before its MoE block (attention), give back what the unedited run left there; the experts of layer l run on the rows
whose choices or weights are others. So masks, positions and the head are the model's own, and every family runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from moe_probe.forward.capture import capture
from moe_probe.forward.execution import Runner, borrowed
from moe_probe.forward.ran import Ran, of_documents
from moe_probe.forward.sites import expert_call, find_sites
from moe_probe.forward.spill import Spill
from moe_probe.forward.steps import OWNER, Forward, carriers, stepping
from moe_probe.model import MoEModel
from moe_probe.routing import Call, Intervention
from moe_probe.texts.corpus import Batch, Tokens


@dataclass
class Left:
    """What a layer, or a module of it, left for the next one.

    Attributes:
        shape: documents and places.
        output: a tensor (documents, places, ...) or (documents x places, ...), or a tuple of such tensors and of what
            does not depend on the documents. Another tensor, such as attention weights, is not kept.
        carried: router logits that go to the next layer beside them (MoE++), (documents x places, E).
    """

    shape: tuple[int, int]
    output: Any
    carried: list[torch.Tensor | None]

    def of_rows(self, rows: torch.Tensor, places: int) -> Left:
        """That of some of the documents, and of their first places."""
        several = isinstance(self.output, tuple)
        parts = [self._part(each, rows, places) for each in (self.output if several else [self.output])]
        carried = [None if each is None else of_documents(each, rows, self.shape, places) for each in self.carried]
        return Left((len(rows), places), tuple(parts) if several else parts[0], carried)

    def _part(self, value: Any, rows: torch.Tensor, places: int) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if tuple(value.shape[:2]) == self.shape:
            return value[rows.to(value.device), :places]
        if value.ndim and len(value) == self.shape[0] * self.shape[1]:
            return of_documents(value, rows, self.shape, places)
        return None


@dataclass(frozen=True)
class Expected:
    """What a run expects of each next token.

    Attributes:
        log_probability, probability: (documents, places, vocabulary), float32.
        best: the most likely token, (documents, places).
    """

    log_probability: torch.Tensor
    probability: torch.Tensor
    best: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor) -> Expected:
        """What logits (documents, places, vocabulary) say."""
        log_probability = logits.float().log_softmax(-1)
        return cls(log_probability, log_probability.exp(), logits.argmax(-1))


@dataclass(eq=False)
class Base:
    """The unedited run of a batch, and what it left.

    Attributes:
        batch: its documents.
        left: by layer, as long as it is wanted.
        inside: what modules of a layer gave before its MoE block, by layer and name, as long as it is wanted.
        ran: the call of a layer's experts, as long as it is wanted.
        index, weights: choices by MoE layer, (rows, k), padding too.
        expected: of the next token, as long as it is wanted.
        forward: the pass.
    """

    batch: Batch
    forward: Forward = field(init=False)
    left: dict[int, Left] = field(default_factory=dict)
    inside: dict[int, dict[str, Left]] = field(default_factory=dict)
    ran: dict[int, Ran] = field(default_factory=dict)
    index: dict[int, torch.Tensor] = field(default_factory=dict)
    weights: dict[int, torch.Tensor] = field(default_factory=dict)
    expected: Expected | None = None
    start = 0
    acting: Sequence[tuple[Intervention, torch.Tensor | None]] = ()

    def __post_init__(self) -> None:
        self.tokens = self.batch.places()

    def see(self, call: Call) -> None:
        """Keep a layer's choices."""
        self.index[call.layer.index], self.weights[call.layer.index] = call.index, call.weights


@dataclass(frozen=True)
class Variant:
    """One way in which the model is edited.

    Attributes:
        edits: what acts.
        replayed: MoE layers in which choices and weights are those of the unedited run.
    """

    edits: tuple[Intervention, ...]
    replayed: frozenset[int] = frozenset()


@dataclass(eq=False)
class Tail:
    """An edited run of some documents of a batch, from one layer on; each of its rows is a document under one variant.

    Attributes:
        base: the unedited run.
        start: the first layer that is run.
        rows: of each row, the document's place in the base's batch.
        variants: of each row.
        index: choices by MoE layer, (rows, k), padding too.
    """

    base: Base
    start: int
    rows: torch.Tensor
    variants: Sequence[Variant]
    forward: Forward = field(init=False)
    index: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batch = Batch(tuple(self.base.batch.documents[row] for row in self.rows.tolist()))
        self.places = self.batch.shape[1]
        self.tokens = self.batch.places()
        self.entering = self.base.left[self.start - 1].of_rows(self.rows, self.places) if self.start else None
        self.acting = self._interventions()

    def _interventions(self) -> list[tuple[Intervention, torch.Tensor | None]]:
        """What acts, and in which of its tokens, (tokens,) bool."""
        rows: dict[int, tuple[Intervention, np.ndarray]] = {}
        for at, variant in enumerate(self.variants):
            for edit in variant.edits:
                _, mask = rows.setdefault(id(edit), (edit, np.zeros(len(self.variants), bool)))
                mask[at] = True
        interventions: list[tuple[Intervention, torch.Tensor | None]] = [
            (e, self._tokens(mask)) for e, mask in rows.values()
        ]
        layers = frozenset[int]().union(*(variant.replayed for variant in self.variants))
        if layers:
            interventions.append((ReplayBase(self, layers), None))
        return interventions

    def _tokens(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.repeat(rows, self.places))

    def see(self, call: Call) -> None:
        """Keep a layer's choices."""
        self.index[call.layer.index] = call.index

    def replayed(self, call: Call) -> Call:
        """The call with the base's choices and weights in the rows of variants that replay the layer."""
        layer, shape = call.layer.index, self.base.batch.shape
        mask = self._tokens(np.array([layer in variant.replayed for variant in self.variants]))
        mask = mask.repeat_interleave(call.layer.subtokens)[:, None].to(call.index.device)
        index, weights = (
            of_documents(each[layer], self.rows, shape, self.places) for each in (self.base.index, self.base.weights)
        )
        if index.shape[1] < call.index.shape[1]:  # others in the pass choose more: a place of weight 0
            missing = call.index.shape[1] - index.shape[1]
            index = torch.cat([index, index[:, :1].expand(-1, missing)], 1)
            weights = torch.cat([weights, torch.zeros_like(weights[:, :1]).expand(-1, missing)], 1)
        return call.chosen(torch.where(mask, index, call.index), torch.where(mask, weights, call.weights))


Run = Base | Tail


class ReplayBase(Intervention):
    """The unedited run's choices and weights, in the rows whose variants replay them."""

    stage = 0

    def __init__(self, tail: Tail, replayed: frozenset[int]):
        self.tail, self.replayed = tail, replayed

    def acts_in(self, moe_layers: Any) -> frozenset[int]:
        return self.replayed.intersection(moe_layers)

    def route(self, call: Call) -> Call:
        return self.tail.replayed(call)


class Watching(Intervention):
    """Shows each call to whoever wants to see it, and changes nothing."""

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
    """Within, `function(forward, *arguments)` stands in for a module's `forward(*arguments)`."""
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
        model: what runs; its own interventions act in every run.
        layerwise: read one layer at a time instead of loading the model.
        own: the model's interventions, which know what they need.
        starts: layers where edited runs begin.

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
        """Within, the model is borrowed and watched."""
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
        """Within, layers that a run shares with its base give back what the base left."""
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
        """Start a pass; it waits before the first layer that it runs."""
        self.run = run
        run.forward = self.runner.start(run.batch, self, spill)
        for _ in range(run.start):
            self.advance(run)
        if isinstance(run, Tail):
            run.entering = None

    def advance(self, run: Run) -> None:
        """Run a pass up to the next layer, or to its end."""
        self.run, self._acting = run, run.acting
        for _ in run.forward.advance():
            pass

    def finish(self, run: Run) -> None:
        """Run a pass to its end."""
        for _ in range(run.start, self.layers):
            self.advance(run)

    def each_layer(self) -> Iterator[int]:
        """Indices of the layers, each while its weights are in memory."""
        return self.runner.each_layer(self.layers)
