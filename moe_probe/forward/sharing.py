"""Runs that share layers: the unedited one of a batch, what it left, and edited ones that begin in the middle of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from moe_probe.forward.ran import Ran, of_documents
from moe_probe.forward.steps import Forward
from moe_probe.routing import Call, Intervention
from moe_probe.texts.corpus import Batch


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
