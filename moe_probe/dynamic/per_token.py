"""Analyses that keep a few small numbers of every token in every layer, and say something of all of them at the end."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.errors import InputError
from moe_probe.results import with_attrs
from moe_probe.routing import LayerBatch
from moe_probe.texts.corpus import Corpus


class PerToken(Analysis):
    """An analysis that keeps what `measure` gives of each token: use the smallest dtype that holds it.

    `values` has it all, layer by layer and in the order of the corpus, whatever the batches were.
    """

    def __init__(self) -> None:
        self._kept: dict[int, dict[int, dict[str, np.ndarray]]] = {}  # by layer and document

    @abstractmethod
    def measure(self, batch: LayerBatch) -> dict[str, np.ndarray]:
        """Values (tokens, ...) of a batch, by name."""

    def dataset(
        self, model: Any, corpus: Corpus, layers: list[int], values: dict[str, np.ndarray]
    ) -> tuple[dict, dict]:
        """Variables and coordinates, from values (layers, tokens, ...); none where `values` is all that is wanted."""
        raise NotImplementedError(f"{self.name} has no result of its own.")

    def update(self, batch: LayerBatch) -> None:
        values = self.measure(batch)
        document = batch.tokens.document
        starts = np.flatnonzero(np.diff(document, prepend=document[0] - 1))
        kept = self._kept.setdefault(batch.layer.index, {})
        for start, end in zip(starts, [*starts[1:], len(document)], strict=True):
            kept[int(document[start])] = {name: value[start:end].copy() for name, value in values.items()}

    def merge(self, other: Self) -> None:
        for layer, documents in other._kept.items():
            self._kept.setdefault(layer, {}).update(documents)

    def state(self) -> dict[str, np.ndarray]:
        state = {}
        for layer, documents in self._kept.items():
            parts = list(documents.values())
            state[f"{layer}/documents"] = np.asarray(list(documents))
            state[f"{layer}/lengths"] = np.asarray([len(next(iter(part.values()))) for part in parts])
            for name in parts[0]:
                state[f"{layer}/values/{name}"] = np.concatenate([part[name] for part in parts])
        return state

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._kept = {}
        for layer in sorted({int(key.split("/")[0]) for key in state}):
            prefix = f"{layer}/values/"
            cuts = np.cumsum(state[f"{layer}/lengths"])[:-1]
            parts = {k.removeprefix(prefix): np.split(v, cuts) for k, v in state.items() if k.startswith(prefix)}
            numbers = state[f"{layer}/documents"].tolist()
            self._kept[layer] = {n: {k: v[i] for k, v in parts.items()} for i, n in enumerate(numbers)}

    def values(self, corpus: Corpus) -> tuple[list[int], dict[str, np.ndarray]]:
        """The layers, and what was kept of them: by name, (layers, tokens, ...).

        Raises:
            InputError: the layers are made differently.
        """
        layers = sorted(self._kept)
        numbers = [document.number for document in corpus.documents]
        names = list(self._kept[layers[0]][numbers[0]])
        try:
            return layers, {
                name: np.stack([np.concatenate([self._kept[at][n][name] for n in numbers]) for at in layers])
                for name in names
            }
        except ValueError as error:
            raise InputError("The layers are made differently; choose layers= that are alike.") from error

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        layers, values = self.values(corpus)
        variables, coords = self.dataset(model, corpus, layers, values)
        return with_attrs(variables, {"layer": layers, **coords}, self.attrs(model, corpus))


def by_token(rows: Any, batch: LayerBatch) -> np.ndarray:
    """Rows (n, ...) of a batch as (tokens, subtokens, ...)."""
    array = np.asarray(rows)
    return array.reshape(len(batch.tokens), batch.layer.subtokens, *array.shape[1:])
