"""A source of batches that runs a model over a corpus, in memory or one layer at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from moe_probe.errors import CannotWatch
from moe_probe.families import Layer
from moe_probe.forward.capture import capture
from moe_probe.forward.dense import DenseFFN
from moe_probe.forward.execution import Runner, borrowed
from moe_probe.forward.model_source import ModelSource
from moe_probe.forward.reference import record_reference
from moe_probe.forward.sites import find_sites
from moe_probe.forward.spill import Spill
from moe_probe.forward.steps import Forward, hand_over, stepping
from moe_probe.forward.watching import Event
from moe_probe.model import MoEModel
from moe_probe.routing import Intervention, LayerBatch, LayerBefore, LogitBatch, Need
from moe_probe.texts.corpus import Batch, Corpus, Tokens

SAME_DIRECTION = 0.99  # cosine of a gate embedding with itself in another dtype
SPILL_BYTES = 1 << 30  # hidden states of a whole corpus beyond this wait on disk


@dataclass
class Running(ModelSource):
    """A model on a corpus.

    Attributes:
        model: the model.
        corpus: the corpus.
        layers: the watched MoE layers; layers after the last one do not run.
        baseline: a dense model that runs on the same batches, or None.
        batch_tokens: most tokens per batch, padding included.
        layerwise: whether to read one layer at a time instead of loading the model.
        deleted: sets of experts, by layer, for which batches record the choice without them; each alone by default.
    """

    model: MoEModel
    corpus: Corpus
    layers: Mapping[int, Layer]
    baseline: MoEModel | None = None
    batch_tokens: int = 4096
    layerwise: bool = False
    deleted: Mapping[int, Sequence[Sequence[int]]] = field(default_factory=dict)

    holds: frozenset[Need] = field(init=False)
    vocab_size: int = field(init=False)

    kind = "a running model"

    def __post_init__(self) -> None:
        self.model.require_module()
        self.holds = frozenset(Need) - ({Need.BASELINE} if self.baseline is None else set())
        self.vocab_size = self.model.config.get_text_config(decoder=True).vocab_size

    @property
    def num_batches(self) -> int:
        """Layer batches of a whole pass."""
        return len(self.batches) * len(self.layers)

    @cached_property
    def batches(self) -> list[Batch]:
        """The corpus, in the batches that run together."""
        return list(self.corpus.batches(self.batch_tokens))

    def split(self, parts: int) -> list[Running]:
        """The same model on parts of the corpus."""
        told = self.told()
        return [replace(told, corpus=part) for part in self.corpus.split(parts)]

    def told(self) -> Running:
        """The same source, whose interventions know of the unedited run what they need."""
        waiting = [edit for edit in self.interventions if edit.needs]
        if not waiting:
            return self
        acting = sorted({layer for edit in waiting for layer in edit.acts_in(self.model.moe_layers)})
        layers = {index: self.model.layer(index) for index in acting}
        needs = {need for edit in waiting for need in edit.needs}
        reference = record_reference(replace(self, model=self.model.unedited, layers=layers, baseline=None), needs)
        edits = [each.told(reference) if isinstance(each, Intervention) else each for each in self.model.interventions]
        return replace(self, model=self.model.having(edits))

    def identity(self) -> dict[str, Any]:
        """Models, layers, and how the corpus is cut."""
        return {
            **super().identity(),
            "baseline": self.baseline and self.baseline.fingerprint,
            "batch_tokens": self.batch_tokens,
            "layerwise": self.layerwise,
            "deleted": sorted(self.deleted.items()),
        }

    @torch.no_grad()
    def steps(self, needs: frozenset[Need], done: int = 0) -> Generator[Iterable[LayerBatch | LogitBatch]]:
        """Yields a step per batch, or layerwise a step per layer (earlier layers run again on resuming).

        Raises:
            FamilyError: the model's MoE layers cannot be watched.
            WeightError: weights are missing.
        """
        running = Pass(self.told(), needs)
        with running.hooked():
            yield from (running.by_layer if self.layerwise else running.by_batch)(done)


@dataclass
class Pass:
    """One pass of a `Running` source.

    Attributes:
        source: the source to run.
        needs: the needs to meet.
    """

    source: Running
    needs: frozenset[Need]
    batch: Batch = field(init=False)  # that runs now
    before: LayerBefore = field(init=False)
    seen: dict[int, Tokens] = field(default_factory=dict)  # tokens of each batch, made once

    def __post_init__(self) -> None:
        self.before = LayerBefore(self.source.moe_layers)
        self.head = Need.LOGITS in self.needs
        self.runner = Runner(self.source.model, self.source.layerwise, self.head)
        dense = self.source.baseline if Need.BASELINE in self.needs else None
        self.dense = None if dense is None else Runner(dense, self.source.layerwise)
        self.tap = DenseFFN(self)
        self.runners = [runner for runner in (self.dense, self.runner) if runner is not None]
        self.stop = self.source.model.num_layers if self.head else max(self.source.layers) + 1

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """A context in which the models are borrowed and watched."""
        layers, model = list(self.source.layers), self.source.model
        with ExitStack() as stack:
            for runner in self.runners:
                stack.enter_context(borrowed(runner.module))
                stack.enter_context(stepping(runner.layers, self))
            if self.dense is not None:
                stack.enter_context(self.tap.watching(self.dense.module, layers))
            sites = find_sites(self.runner.module, self.source.watched(self.stop)).values()
            edits = self.source.interventions
            tokens, needs = lambda: self.batch.places(), self.needs
            told = {"needs": needs, "asked": layers, "deleted": self.source.deleted}
            stack.enter_context(capture(sites, hand_over, self, model.config, edits, tokens, **told))
            yield

    def by_batch(self, done: int) -> Iterator[Iterable[LayerBatch | LogitBatch]]:
        """A step per batch."""
        for batch in self.source.batches[done:]:
            yield self._batch(batch)

    def _batch(self, batch: Batch) -> Iterator[LayerBatch | LogitBatch]:
        self.before = LayerBefore(self.source.moe_layers)
        with closing_all([runner.start(batch, self) for runner in self.runners]) as forwards:
            for _ in range(self.stop):
                yield from self._advance(batch, forwards)
            yield from self._logits(batch, forwards[-1])

    def by_layer(self, done: int) -> Iterator[Iterable[LayerBatch | LogitBatch]]:
        """A step per layer; those that are done run again, and give nothing."""
        batches = self.source.batches
        started = [[runner.start(batch, self, self._spill(runner)) for runner in self.runners] for batch in batches]
        with closing_all([forward for forwards in started for forward in forwards]):
            each_layer = zip(*(runner.each_layer(self.stop) for runner in self.runners), strict=True)
            for index, *_ in each_layer:
                if index < done:
                    exhaust(self._layer(started, last=False))
                else:
                    yield self._layer(started, last=index == self.stop - 1)

    def _layer(self, started: Sequence[Sequence[Forward]], last: bool) -> Iterator[LayerBatch | LogitBatch]:
        for batch, forwards in zip(self.source.batches, started, strict=True):
            yield from self._advance(batch, forwards)
        if last:
            for batch, forwards in zip(self.source.batches, started, strict=True):
                yield from self._logits(batch, forwards[-1])

    def _advance(self, batch: Batch, forwards: Sequence[Forward]) -> Iterator[LayerBatch]:
        self.batch = batch
        for forward in forwards:
            for event in forward.advance():
                batch_of_layer = self.before.attach(self._layer_batch(event))
                if event.site.layer.index in self.source.layers:
                    yield batch_of_layer

    def _logits(self, batch: Batch, forward: Forward) -> Iterator[LogitBatch]:
        if self.head:
            logits = forward.output.logits.flatten(0, 1)
            yield LogitBatch(batch.tokens(), logits[batch.attention_mask().flatten().bool().to(logits.device)])

    def _spill(self, runner: Runner) -> Spill | None:
        width = self.source.model.hidden_size * runner.module.dtype.itemsize
        places = sum(rows * length for rows, length in (batch.shape for batch in self.source.batches))
        return Spill() if places * width > SPILL_BYTES else None

    def _layer_batch(self, event: Event) -> LayerBatch:
        if event.gate is not None:
            check_gate(self.source.model, event.site.layer.index, event.gate)
        keep = self.batch.attention_mask().flatten().bool().to(event.expert_input.device)
        tokens = self.seen.setdefault(id(self.batch), self.batch.tokens())
        beside = {}
        if self.dense is not None and event.site.layer.index in self.source.layers:
            beside["baseline_output"] = self.tap.output[keep]
            if self.tap.activation is not None:
                beside["baseline_activation"] = self.tap.activation[keep]
        return layer_batch(event, tokens, keep, **beside)


def check_gate(model: MoEModel, layer: int, gate: torch.Tensor) -> None:
    """Raises an error if a router computes with other gate embeddings than `model.router_weight` returns.

    Only directions are compared, because some routers normalize embeddings. If weights were changed in memory,
    `router_weight` raises an error, and there is nothing to compare.

    Raises:
        CannotWatch: the gate embeddings differ.
    """
    if model.changed_in_memory:
        return
    told = model.router_weight(layer).to(gate.device)
    if told.shape != gate.shape or gate.is_meta:
        return
    cosine = torch.nn.functional.cosine_similarity(told.float(), gate.float(), dim=1)
    if not bool((cosine.abs() > SAME_DIRECTION).logical_or(gate.float().norm(dim=1) == 0).all()):
        raise CannotWatch(
            f"Layer {layer}: the router computes with other gate embeddings than the model's router_weight (cosines "
            f"down to {float(cosine.min()):.2f}), so weights and routing would differ; load the model as "
            "it runs."
        )


def layer_batch(event: Event, tokens: Tokens, keep: torch.Tensor, **beside: torch.Tensor) -> LayerBatch:
    """The batch of the tokens to keep, (places,) bool; padding never reaches an analysis."""
    rows = slice(None) if bool(keep.all()) else keep.repeat_interleave(event.site.layer.subtokens)
    batch = LayerBatch(
        layer=event.site.layer,
        tokens=tokens,
        top_k_index=event.top_k_index[rows],
        top_k_weights=event.top_k_weights[rows].float(),
        router_logits=event.router_logits[rows].float(),
        scores=event.scores[rows],
        selection=event.selection[rows],
        expert_input=event.expert_input[rows],
        routed_output=event.routed_output[rows],
        block_output=event.block_output[keep],
        shared_output=None if event.shared_output is None else event.shared_output[keep],
        selected_outputs=None if event.selected_outputs is None else event.selected_outputs[rows],
        residual=None if event.residual is None else event.residual[keep],
        without_index=None if event.without is None else event.without[0][:, rows],
        without_weights=None if event.without is None else event.without[1][:, rows].float(),
        score_kind=event.score_kind,
        experts=event.site,
    )
    return batch.having(**beside)


@contextmanager
def closing_all(forwards: Sequence[Forward]) -> Iterator[Sequence[Forward]]:
    """A context with passes, whose remaining parts are closed afterwards."""
    with ExitStack() as stack:
        for forward in forwards:
            stack.enter_context(closing(forward))
        yield forwards


def exhaust(items: Iterable[object]) -> None:
    """Consumes all items."""
    for _ in items:
        pass
