"""The derivative of the loss with respect to a factor on each chosen expert's weighted output, at 1.

With the model in memory, it takes one forward and one backward pass. Layerwise, the inputs of each layer are kept while
the layers run from first to last, and each layer then runs again, from last to first, with its derivatives; so weights
are read twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from moe_probe.forward.capture import capture
from moe_probe.forward.execution import Runner, borrowed
from moe_probe.forward.running import SPILL_BYTES, Running
from moe_probe.forward.sites import find_sites
from moe_probe.forward.spill import Spill
from moe_probe.forward.steps import OWNER, Forward, carriers, stepping
from moe_probe.routing import Call, Intervention
from moe_probe.texts.corpus import Batch, Tokens


@dataclass(frozen=True)
class Derivatives:
    """Derivatives of one batch's loss, summed over its predicted tokens, in one layer.

    Attributes:
        index: chosen experts, (rows, k), including padding.
        slopes: derivative with respect to a factor on each choice, (rows, k), nats.
    """

    index: torch.Tensor
    slopes: torch.Tensor


class Factors(Intervention):
    """An intervention with a factor of 1 on the weight of every choice, to differentiate with respect to it."""

    stage = 8

    def __init__(self) -> None:
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def acts_in(self, moe_layers: Any) -> frozenset[int]:
        return frozenset(moe_layers)

    def route(self, call: Call) -> Call:
        factor = torch.ones_like(call.weights, requires_grad=True)
        self.seen[call.layer.index] = factor, call.index
        return call.chosen(call.index, call.weights * factor)

    def taken(self) -> dict[int, Derivatives]:
        """What was found since the last time."""
        seen, self.seen = self.seen, {}
        return {
            layer: Derivatives(index, torch.zeros_like(factor) if factor.grad is None else factor.grad)
            for layer, (factor, index) in seen.items()
        }


@contextmanager
def constant(module: nn.Module) -> Iterator[None]:
    """A context in which no derivatives with respect to parameters are computed."""
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def summed_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood of all tokens that follow another one, summed, nats."""
    ids, mask = (each.to(logits.device) for each in (batch.input_ids(), batch.attention_mask()))
    targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), reduction="sum")


class Differentiating:
    """A model on its texts, differentiated.

    Args:
        source: the model, whose interventions know what they need, and its texts.
        batches: of the texts.
    """

    def __init__(self, source: Running, batches: Sequence[Batch]):
        self.source, self.batches = source, batches
        self.runner = Runner(source.model, source.layerwise, head=True)
        self.factors = Factors()
        self.batch: Batch = batches[0]
        self.forth, self.back = object(), object()  # owners of passes without, and with derivatives

    def run(self) -> Iterator[tuple[Batch, Mapping[int, Derivatives], torch.Tensor | None]]:
        """Derivatives by MoE layer, batch by batch (layerwise, one layer at a time), and the loss where it is new."""
        module = self.runner.module
        with ExitStack() as stack:
            stack.enter_context(borrowed(module))
            stack.enter_context(constant(module))
            sites = list(find_sites(module).values())
            for owner, added in ((self.forth, []), (self.back, [self.factors])):
                edits = [*self.source.interventions, *added]
                stack.enter_context(capture(sites, None, owner, self.source.model.config, edits, self._tokens))
            yield from self._layerwise() if self.source.layerwise else self._resident()

    def _tokens(self) -> Tokens:
        return self.batch.places()

    def _resident(self) -> Iterator[tuple[Batch, Mapping[int, Derivatives], torch.Tensor | None]]:
        for batch in self.batches:
            self.batch = batch
            with torch.enable_grad():
                forward = self.runner.start(batch, self.back)
                loss = summed_loss(forward.output.logits, batch)
                if loss.requires_grad:
                    loss.backward()
            yield batch, self.factors.taken(), loss.detach()

    def _layerwise(self) -> Iterator[tuple[Batch, Mapping[int, Derivatives], torch.Tensor | None]]:
        model, layers = self.source.model, self.runner.layers
        passes = [LayerwisePass(batch, self._spilled()) for batch in self.batches]
        with torch.no_grad(), keeping(layers, passes, self), stepping(layers, self.forth):
            for index in self.runner.each_layer(model.num_layers):
                for each in passes:
                    self.batch, self.running = each.batch, each
                    if index == 0:
                        each.forward = self.runner.start(each.batch, self.forth)
                    for _ in each.forward.advance():
                        pass
        yield from self._backwards(passes)

    def _backwards(
        self, passes: Sequence[LayerwisePass]
    ) -> Iterator[tuple[Batch, Mapping[int, Derivatives], torch.Tensor | None]]:
        for each in passes:
            self.batch, self.running = each.batch, each
            with torch.enable_grad(), passing(self.runner.layers, each):
                logits = self.runner.start(each.batch, None).output.logits
                loss = summed_loss(logits, each.batch)
                (slope,) = torch.autograd.grad(loss, each.left[0])
            each.slopes, each.forward.output = {0: slope}, None
            yield each.batch, {}, loss.detach()
        for index in self.runner.each_layer(self.source.model.num_layers, backward=True):
            for each in passes:
                self.batch, self.running = each.batch, each
                with torch.enable_grad(), owned(self.back):
                    each.step_back(index, self.runner.layers[index])
                yield each.batch, self.factors.taken(), None

    def _spilled(self) -> bool:
        places = sum(rows * length for rows, length in (batch.shape for batch in self.batches))
        width = self.source.model.hidden_size * self.source.model.dtype.itemsize
        return places * width * self.source.model.num_layers > SPILL_BYTES


@dataclass
class Entered:
    """What entered a layer.

    Attributes:
        args, kwargs: its arguments but the first one, the hidden states.
        hidden: the hidden states, (documents, places, d).
        carried: router logits that are carried to it.
        places: of those arguments that the layer before gave beside hidden states: their place in its output.
    """

    args: tuple
    kwargs: dict[str, Any]
    hidden: torch.Tensor
    carried: list[torch.Tensor | None]
    places: Mapping[int | str, int]


@dataclass(eq=False)
class LayerwisePass:
    """One batch on its way through the layers and back.

    Attributes:
        batch: its documents.
        spills: whether what enters layers waits on disk.
        entered: what entered each layer.
        left: what left the layer that ran last: hidden states (documents, places, d), of the last layer alone, and
            what it gives beside.
        slopes: derivatives of the loss to what leaves the layer before, by the place in its output.
        carried_slopes: the same of the router logits that it carries to the next one.
    """

    batch: Batch
    spills: bool
    forward: Forward = field(init=False)
    entered: dict[int, Entered] = field(default_factory=dict)
    left: tuple = ()
    slopes: Mapping[int, torch.Tensor] = field(default_factory=dict)
    carried_slopes: list[torch.Tensor | None] = field(default_factory=list)

    def enter(self, index: int, args: tuple, kwargs: dict[str, Any]) -> None:
        """Keep what enters a layer."""
        hidden = args[0] if args else kwargs["hidden_states"]
        stored = Spill()(hidden) if self.spills else hidden
        logits = [each.logits for each in carriers(args, kwargs)]
        others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        places = {
            name: place
            for name, value in (*enumerate(args[1:]), *others.items())
            for place, left in enumerate(self.left)
            if value is left and isinstance(left, torch.Tensor) and left.is_floating_point()
        }
        self.entered[index] = Entered(args[1:], others, stored, logits, places)

    def leave(self, output: Any, last: bool) -> None:
        """Keep what leaves a layer; hidden states, which wait with the pass, of the last one alone."""
        hidden, *beside = output if isinstance(output, tuple) else (output,)
        self.left = (hidden if last else None, *beside)

    def step_back(self, index: int, layer: nn.Module) -> None:
        """Run a layer again, and go back through it."""
        entered = self.entered.pop(index)
        hidden = entered.hidden.detach().requires_grad_()
        holders = carriers(entered.args, entered.kwargs)
        carried = [None if each is None else each.detach().requires_grad_() for each in entered.carried]
        for holder, logits in zip(holders, carried, strict=True):
            holder.logits = logits
        given = {**dict(enumerate(entered.args)), **entered.kwargs}
        beside = {name: given[name].detach().requires_grad_() for name in entered.places}
        args = [beside.get(place, value) for place, value in enumerate(entered.args)]
        output = layer(hidden, *args, **{name: beside.get(name, value) for name, value in entered.kwargs.items()})
        parts = output if isinstance(output, tuple) else (output,)
        pairs = [(parts[place], slope) for place, slope in self.slopes.items()]
        pairs += [
            (holder.logits, slope)
            for holder, slope in zip(holders, self.carried_slopes, strict=False)
            if slope is not None
        ]
        torch.autograd.backward([of for of, _ in pairs], [slope for _, slope in pairs])
        entering = {0: hidden, **{place: beside[name] for name, place in entered.places.items()}}
        self.slopes = {place: value.grad for place, value in entering.items() if value.grad is not None}
        self.carried_slopes = [None if each is None else each.grad for each in carried]


@contextmanager
def owned(owner: object) -> Iterator[None]:
    """Within, calls are an owner's."""
    token = OWNER.set(owner)
    try:
        yield
    finally:
        OWNER.reset(token)


@contextmanager
def keeping(layers: nn.ModuleList, passes: Sequence[LayerwisePass], pace: Differentiating) -> Iterator[None]:
    """Within, what enters and leaves layers is kept by the pass that runs."""

    def enter(index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if OWNER.get() is pace.forth:
            pace.running.enter(index, args, kwargs)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        if OWNER.get() is pace.forth:
            pace.running.leave(output, last=module is layers[-1])

    handles = [
        layer.register_forward_pre_hook(partial(enter, index), with_kwargs=True) for index, layer in enumerate(layers)
    ]
    handles += [layer.register_forward_hook(leave) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def passing(layers: nn.ModuleList, running: LayerwisePass) -> Iterator[None]:
    """Within, layers do nothing, and what left the last one comes out of them."""
    left = running.left = (running.left[0].detach().clone().requires_grad_(), *running.left[1:])
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = lambda *args, **kwargs: left if len(left) > 1 else left[0]
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
