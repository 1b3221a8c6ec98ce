"""Recorded runs: choices and outputs for each token, which interventions take from another run."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from moe_probe.errors import NotFitting
from moe_probe.routing import LayerBatch, LogitBatch, Need, Source
from moe_probe.texts.corpus import Tokens

# how one is made, in the sentences of interventions that need one
MAKING = "pass of=intervene.reference(model, texts)"


@dataclass(frozen=True, repr=False)
class LayerReference:
    """What was seen of one layer; a row per token, or sub-token, by document and position.

    Attributes:
        index, weights: chosen experts and their applied weights, (n, k).
        inputs: inputs of the experts, (n, w); None if they were not requested.
        means: mean unweighted output of each expert over the rows that chose it, (E, w), nan for one that none
            chose; None if they were not requested.
        shared: mean output of the shared block, (d,); None without a shared block.
    """

    index: torch.Tensor
    weights: torch.Tensor
    inputs: torch.Tensor | None = None
    means: torch.Tensor | None = None
    shared: torch.Tensor | None = None


@dataclass(frozen=True, repr=False)
class Reference:
    """A recorded run, made by `intervene.reference`.

    Attributes:
        document, position: those of its tokens, sorted by them.
        token_id: ids of its tokens.
        layers: record of each layer.
    """

    document: np.ndarray
    position: np.ndarray
    token_id: np.ndarray
    layers: Mapping[int, LayerReference] = field(default_factory=dict)

    @cached_property
    def starts(self) -> dict[int, tuple[int, int]]:
        """First token and number of tokens of each document."""
        numbers, starts, counts = np.unique(self.document, return_index=True, return_counts=True)
        return {int(n): (int(s), int(c)) for n, s, c in zip(numbers, starts, counts, strict=True)}

    def rows(self, tokens: Tokens, subtokens: int) -> torch.Tensor:
        """The row of each of the tokens' rows, (tokens x subtokens,) int64; -1 for positions that it lacks.

        Raises:
            NotFitting: it lacks a document.
        """
        numbers, inverse = np.unique(tokens.document, return_inverse=True)
        missing = [int(number) for number in numbers if int(number) not in self.starts]
        if missing or not len(tokens):
            there = f"document {missing[0]}" if missing else "the texts that run now"
            raise NotFitting(f"The recorded run lacks {there}; record it on the same texts: {MAKING}.")
        starts, counts = (np.array([self.starts[int(n)][at] for n in numbers])[inverse] for at in (0, 1))
        token = np.where(tokens.position < counts, starts + tokens.position, -1)
        rows = token[:, None] * subtokens + np.arange(subtokens)
        return torch.from_numpy(np.where(token[:, None] < 0, -1, rows).reshape(-1))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything recorded."""
        check = hashlib.sha256()
        for array in (self.document, self.position, self.token_id):
            check.update(np.ascontiguousarray(array).tobytes())
        for index, layer in self.layers.items():
            for name, value in vars(layer).items():
                if value is not None:
                    check.update(f"{index} {name} {tuple(value.shape)}".encode() + value.numpy().tobytes())
        return check.hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Reference({self.fingerprint})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


class Recording:
    """Adds up batches into a `Reference`.

    Args:
        needs: `Need.INPUT` for the experts' inputs, `Need.SELECTED` for mean outputs.
    """

    def __init__(self, needs: Collection[Need]):
        self.needs = frozenset(needs)
        self.parts: dict[int, list[tuple[Tokens, dict[str, torch.Tensor]]]] = {}
        self.sums: dict[int, list[torch.Tensor]] = {}
        self.shared: dict[int, tuple[torch.Tensor, int]] = {}

    def add(self, batch: LayerBatch) -> None:
        """Adds the routing of some tokens in one layer."""
        tensors = {"index": batch.top_k_index.cpu(), "weights": batch.top_k_weights.cpu()}
        if Need.INPUT in self.needs:
            tensors["inputs"] = batch.expert_input.cpu()
        if Need.SELECTED in self.needs:
            self._add_outputs(batch.completed(frozenset({Need.SELECTED})))
        self.parts.setdefault(batch.layer.index, []).append((batch.tokens, tensors))

    def _add_outputs(self, batch: LayerBatch) -> None:
        layer, index = batch.layer, batch.top_k_index.flatten().cpu()
        outputs = batch.selected_outputs.flatten(0, 1).double().cpu()
        new = [torch.zeros(layer.num_experts, outputs.shape[1], dtype=torch.float64), torch.zeros(layer.num_experts)]
        sums, counts = self.sums.setdefault(layer.index, new)
        sums.index_add_(0, index, outputs)
        counts += torch.bincount(index, minlength=layer.num_experts)
        if batch.holds("shared_output"):
            there, count = self.shared.get(layer.index, (torch.zeros((), dtype=torch.float32), 0))
            total = there + batch.shared_output.double().cpu().sum(0)
            self.shared[layer.index] = total, count + len(batch.shared_output)

    def reference(self) -> Reference:
        """Returns the recorded run."""
        tokens = Tokens.joined([tokens for tokens, _ in next(iter(self.parts.values()))])
        order = np.lexsort((tokens.position, tokens.document))
        layers = {index: self._layer(index, parts, order) for index, parts in self.parts.items()}
        tokens = tokens[order]
        return Reference(tokens.document, tokens.position, tokens.token_id, layers)

    def _layer(self, index: int, parts: list[Any], order: np.ndarray) -> LayerReference:
        joined = {name: torch.cat([values[name] for _, values in parts]) for name in parts[0][1]}
        subtokens = len(joined["index"]) // len(order)
        rows = torch.from_numpy((order[:, None] * subtokens + np.arange(subtokens)).reshape(-1))
        tensors: dict[str, torch.Tensor] = {name: values[rows] for name, values in joined.items()}
        if index in self.sums:
            sums, counts = self.sums[index]
            tensors["means"] = (sums / counts[:, None]).float()
        if index in self.shared:
            total, count = self.shared[index]
            tensors["shared"] = (total / count).float()
        return LayerReference(**tensors)


@torch.no_grad()
def record_reference(source: Source, needs: Collection[Need]) -> Reference:
    """Records the run of a source's model on its texts."""
    recording = Recording(needs)
    asked = {Need.CHOICES, Need.WEIGHTS, *needs} - {Need.LOGITS}
    for step in source.steps(frozenset(asked)):
        for batch in step:
            if not isinstance(batch, LogitBatch):
                recording.add(batch)
    return recording.reference()
