"""What every dynamic analysis is: update, merge, result."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
import xarray as xr

from moe_probe.errors import InputError
from moe_probe.results import provenance, with_attrs
from moe_probe.routing import TOKEN_FIELDS, LayerBatch
from moe_probe.texts.corpus import Corpus, Tokens


class Analysis(ABC):
    """A statistic that grows with batches of tokens and merges with another one of its kind.

    An analysis that needs routing, or the chosen experts' outputs, is given whole documents at a time; the others are
    given as many tokens as memory allows.

    Attributes:
        name: the analysis in results and on the command line.
        needs: what the pass must compute besides routing.
        changes: fields of the model's configuration; where there are some, a second pass with the model so changed is
            given to a fresh analysis, `changed`.
    """

    name: ClassVar[str]
    needs: frozenset[str] = frozenset()
    changes: ClassVar[Mapping[str, Any]] = {}
    changed: Self

    def prepare(self, model: Any, corpus: Corpus, layers: list[int]) -> None:  # noqa: B027 - most need none
        """Refuse, before any work, what cannot be done.

        Raises:
            InputError: the model or the corpus does not fit.
        """

    @abstractmethod
    def update(self, batch: LayerBatch) -> None:
        """Take in some tokens' behaviour in one layer."""

    def update_logits(self, tokens: Tokens, logits: torch.Tensor) -> None:
        """Take in the model's output (tokens, vocabulary), where LOGITS is needed."""
        raise NotImplementedError(f"{self.name} needs the model's output, but takes none.")

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what another one saw, of other tokens or other layers."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """What it has seen, as arrays without objects."""

    @abstractmethod
    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take back what `state` gave."""

    @abstractmethod
    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        """The Dataset."""

    def fresh(self) -> Self:
        """A new one with the same parameters, which has seen nothing."""
        return copy.deepcopy(self)

    def parameters(self) -> dict[str, Any]:
        """What it was asked for, for the result's `attrs`."""
        return {
            key: value
            for key, value in vars(self).items()
            if not key.startswith("_") and key not in ("needs", "changed")
        }

    def attrs(self, model: Any, corpus: Corpus) -> dict[str, Any]:
        """Provenance, and which texts."""
        texts = {"documents": len(corpus.documents), "tokens": corpus.num_tokens, "texts": corpus.fingerprint}
        return {**provenance(self.name, model, **self.parameters()), **texts}


class Sums(Analysis):
    """An analysis whose state is a few sums per layer.

    `measure` gives a batch's sums, `dataset` turns the totals into variables. Names that begin with `least_` or
    `most_` stand for extremes instead of sums.
    """

    def __init__(self) -> None:
        self._sums: dict[int, dict[str, np.ndarray]] = {}

    @abstractmethod
    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        """Sums over the rows of a batch; the same names and shapes for every batch of a layer."""

    @abstractmethod
    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        """Variables and coordinates, from sums with a first axis for the layers."""

    def update(self, batch: LayerBatch) -> None:
        self._add(batch.layer.index, {k: np.asarray(v.cpu()) for k, v in self.measure(batch).items()})

    def merge(self, other: Self) -> None:
        for layer, sums in other._sums.items():
            self._add(layer, sums)

    def state(self) -> dict[str, np.ndarray]:
        return {f"{layer}/{name}": value for layer, sums in self._sums.items() for name, value in sums.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._sums = {}
        for key, value in state.items():
            layer, name = key.split("/", 1)
            self._sums.setdefault(int(layer), {})[name] = value

    def _add(self, layer: int, sums: dict[str, np.ndarray]) -> None:
        known = self._sums.setdefault(layer, {})
        for name, value in sums.items():
            known[name] = _combine(name)(known[name], value) if name in known else value

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        layers = sorted(self._sums)
        _require_alike({layer: {k: v.shape for k, v in self._sums[layer].items()} for layer in layers})
        sums = {name: np.stack([self._sums[layer][name] for layer in layers]) for name in self._sums[layers[0]]}
        variables, coords = self.dataset(layers, sums)
        return with_attrs(variables, {"layer": layers, **coords}, self.attrs(model, corpus))


def _combine(name: str) -> np.ufunc:
    return {"least": np.minimum, "most": np.maximum}.get(name.split("_")[0], np.add)


def _require_alike(shapes: dict[int, dict[str, tuple[int, ...]]]) -> None:
    """Raises: InputError: the layers' statistics cannot be stacked."""
    first, *others = shapes
    other = next((layer for layer in others if shapes[layer] != shapes[first]), None)
    if other is not None:
        raise InputError(f"Layers {first} and {other} are made differently; choose layers= that are alike.")


class Rows(Analysis):
    """An analysis that keeps something of every token: for short texts.

    `measure` gives arrays with a row per token (or sub-token); the result has them as (layer, token, ...), in the
    order of documents and positions whatever the batches were.
    """

    def __init__(self) -> None:
        self._rows: dict[int, list[tuple[Tokens, dict[str, np.ndarray]]]] = {}
        self._subtokens = 1

    @abstractmethod
    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        """Values (rows, ...) of a batch, by variable."""

    @abstractmethod
    def dims(self, model: Any, layers: list[int]) -> tuple[dict[str, tuple[str, ...]], dict]:
        """Each variable's dimensions after (layer, token[, subtoken]), and coordinates for them."""

    def update(self, batch: LayerBatch) -> None:
        values = {name: _array(value) for name, value in self.measure(batch).items()}
        self._subtokens = batch.layer.subtokens
        self._rows.setdefault(batch.layer.index, []).append((batch.tokens, values))

    def state(self) -> dict[str, np.ndarray]:
        state = {"subtokens": np.asarray(self._subtokens)}
        for layer, parts in self._rows.items():
            tokens = _concatenate([tokens for tokens, _ in parts])
            state |= {f"{layer}/tokens/{name}": getattr(tokens, name) for name in TOKEN_FIELDS}
            state[f"{layer}/tokens/label"] = tokens.label.astype(str)
            for name in parts[0][1]:
                state[f"{layer}/values/{name}"] = np.concatenate([values[name] for _, values in parts])
        return state

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._rows, self._subtokens = {}, int(state["subtokens"])
        for layer in {int(key.split("/")[0]) for key in state if "/" in key}:
            tokens = Tokens(*(state[f"{layer}/tokens/{name}"] for name in TOKEN_FIELDS))
            prefix = f"{layer}/values/"
            values = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            self._rows[layer] = [(tokens, values)]

    def merge(self, other: Self) -> None:
        for layer, rows in other._rows.items():
            self._rows.setdefault(layer, []).extend(rows)
        self._subtokens = max(self._subtokens, other._subtokens)

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        layers = sorted(self._rows)
        extra, coords = self.dims(model, layers)
        stacked: dict[str, list[np.ndarray]] = {}
        for layer in layers:
            parts = self._rows[layer]
            tokens = _concatenate([tokens for tokens, _ in parts])
            order = np.lexsort((tokens.position, tokens.document))
            for name in parts[0][1]:
                values = np.concatenate([values[name] for _, values in parts])
                if len(values) != len(tokens):
                    values = values.reshape(len(tokens), self._subtokens, *values.shape[1:])
                stacked.setdefault(name, []).append(values[order])
        tokens = tokens[order]
        middle = ("layer", "token", "subtoken")
        _require_alike({at: {k: v[i].shape for k, v in stacked.items()} for i, at in enumerate(layers)})
        variables = {}
        for name, values in stacked.items():
            array = np.stack(values)
            variables[name] = ((*middle[: array.ndim - len(extra[name])], *extra[name]), array)
        return with_attrs(
            variables, {"layer": layers, **token_coords(tokens, corpus), **coords}, self.attrs(model, corpus)
        )


def _array(value: torch.Tensor) -> np.ndarray:
    return np.asarray((value.float() if value.is_floating_point() else value).cpu())


def _concatenate(parts: list[Tokens]) -> Tokens:
    return Tokens(*(np.concatenate([getattr(part, field) for part in parts]) for field in TOKEN_FIELDS))


def expert_labels(model: Any, layer: int) -> list[str]:
    """Labels of a layer's routed experts, of all kinds."""
    return [str(expert) for expert in range(model.layer(layer).num_experts)]


def token_coords(tokens: Tokens, corpus: Corpus) -> dict[str, tuple[str, Any]]:
    """Coordinates along `token`: document, position, token_id, string, and label where documents have some."""
    coords = {
        "document": ("token", tokens.document),
        "position": ("token", tokens.position),
        "token_id": ("token", tokens.token_id),
        "string": ("token", [corpus.strings[int(token)] for token in tokens.token_id]),
    }
    if any(tokens.label):
        coords["label"] = ("token", [str(label) for label in tokens.label])
    return coords
