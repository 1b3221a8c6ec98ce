"""A recorded trace as a source of batches, for analyses that need only routing."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from moe_probe.errors import NotFitting
from moe_probe.families import Layer
from moe_probe.routing import ROUTING, LayerBatch, LayerBefore, Need, Source
from moe_probe.signatures import whole_numbers
from moe_probe.texts.corpus import Corpus
from moe_probe.traces.reading import Trace


@dataclass
class Recorded(Source):
    """The routing of some layers and documents of a trace.

    Attributes:
        trace: where rows are read.
        layers: the MoE layers that it gives.
        corpus: the documents that it gives.
    """

    trace: Trace
    layers: Mapping[int, Layer]
    corpus: Corpus

    kind = "a trace"
    holds = ROUTING

    @classmethod
    def of(cls, trace: Trace, layers: Sequence[int] | int | None = None) -> Self:
        """Returns a source for some layers, all by default.

        Raises:
            NotFitting: the trace does not hold one of them.
            WrongType: one of them is not a whole number.
        """
        chosen = list(trace.moe_layers) if layers is None else list(whole_numbers(layers))
        lacking = [layer for layer in chosen if layer not in trace.moe_layers]
        if lacking or not chosen:
            held = ", ".join(map(str, trace.moe_layers))
            raise NotFitting(
                f"The trace of {trace.name} holds the layers {held}, not {lacking or 'none'}; pass some of those."
            )
        return cls(trace, {layer: trace.layer(layer) for layer in sorted(chosen)}, trace.corpus)

    @property
    def name(self) -> str:
        """Of the model."""
        return self.trace.name

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """All MoE layers of the model, as the trace states them."""
        return self.trace.model_layers

    @property
    def family(self) -> str:
        """Of the model."""
        return self.trace.family

    @property
    def fingerprint(self) -> str:
        """Of the model."""
        return self.trace.fingerprint

    @property
    def num_batches(self) -> int:
        """Number of files, because batches are not counted in advance."""
        return len(self.trace.files)

    def split(self, parts: int) -> list[Self]:
        """Splits the trace into sources with parts of its documents."""
        return [replace(self, corpus=part) for part in self.corpus.split(parts)]

    def steps(self, needs: frozenset[Need], done: int = 0) -> Generator[Iterator[LayerBatch]]:
        """Yields a step per file."""
        before = LayerBefore(self.moe_layers)
        for number in range(len(self.trace.files)):
            step = self._file(number, before)
            if number < done:
                for _ in step if Need.BEFORE in needs else ():
                    pass
            else:
                yield step

    def _file(self, number: int, before: LayerBefore) -> Iterator[LayerBatch]:
        for batch in self.trace.file_batches(number):
            part = self._own(batch)
            if part is not None:
                following = before.attach(part)
                if part.layer.index in self.layers:
                    yield following

    def _own(self, batch: LayerBatch) -> LayerBatch | None:
        """The batch reduced to this source's documents; None if it has none of them."""
        if len(self._numbers) == len(self.trace.corpus.documents):
            return batch
        keep = np.isin(batch.tokens.document, self._numbers)
        return batch.part(keep) if keep.any() else None

    @cached_property
    def _numbers(self) -> np.ndarray:
        return np.asarray([document.number for document in self.corpus.documents])
