"""Whether experts go by the token itself or by its place (OLMoE, arXiv 2409.02060; Mixtral, arXiv 2401.04088)."""

from __future__ import annotations

from math import comb
from typing import Any, Self

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis, LayerBatch, Sums
from moe_probe.dynamic.corpus import Corpus
from moe_probe.errors import InputError
from moe_probe.results import with_attrs

PLACES = 32  # positions 0, 1, 2-3, 4-7, ...


class TokenSpecialization(Analysis):
    """Routing by token id, by position, and from one token to the next.

    With n_x occurrences of token id x in the corpus (ids with fewer than `min_count` are left out), n_xe of which
    choose expert e:

    `vocabulary_specialization` (layer, expert): the mean of n_xe / n_x over the expert's own tokens, that is
    sum_x n_xe (n_xe / n_x) / sum_x n_xe; `vocabulary_chance`, sum_x n_xe / sum_x n_x: what it would be if routing did
    not depend on the token. `context_independence` (layer): how often two occurrences of one id have the same first
    choice, pairs drawn within ids without replacement; `context_chance`, the same of any two tokens. `position_share`
    (layer, place, expert): choices by position in the document, places 0, 1, 2-3, 4-7, ...; `repetition` (layer,
    choice): how often a token and the next one have the same `first` choice, or `any` of their k in common (Mixtral's
    table 5), and `repetition_chance`: sum of squares of the first choices' shares, and 1 - C(E-k, k) / C(E, k).

    OLMoE's published means include ids that were seen once, for which n_xe / n_x says nothing: `min_count=1` gives
    those. With sub-tokens each counts as a row of its token, and repetition compares those at the same place.

    Args:
        min_count: occurrences in the corpus from which on a token id counts.

    Example:
        >>> from moe_probe import dynamic
        >>> dynamic.token_specialization("ckpt/tiny-mixtral", ["A text, a text."], min_count=2).repetition.dims
        ('layer', 'choice')
    """

    name = "token_specialization"

    def __init__(self, min_count: int = 5):
        if min_count < 1:
            raise InputError(f"min_count is at least 1, not {min_count}.")
        self.min_count = min_count
        self._counts: dict[int, _Counts] = {}
        self._sums = _Places()

    def update(self, batch: LayerBatch) -> None:
        ids = np.repeat(batch.tokens.token_id, batch.layer.subtokens)
        first = batch.first_choice.cpu().numpy()
        known = self._counts.setdefault(batch.layer.index, _Counts.empty(batch.layer.num_experts))
        self._counts[batch.layer.index] = known + _Counts.of(ids, batch.selected.cpu().numpy(), first)
        self._sums.update(batch)

    def merge(self, other: Self) -> None:
        for layer, counts in other._counts.items():
            self._counts[layer] = self._counts[layer] + counts if layer in self._counts else counts
        self._sums.merge(other._sums)

    def state(self) -> dict[str, np.ndarray]:
        counts = {f"ids/{layer}/{k}": v for layer, c in self._counts.items() for k, v in vars(c).items()}
        return {**self._sums.state(), **counts}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        counts: dict[int, dict[str, np.ndarray]] = {}
        for key in [key for key in state if key.startswith("ids/")]:
            _, layer, name = key.split("/")
            counts.setdefault(int(layer), {})[name] = state.pop(key)
        self._counts = {layer: _Counts(**values) for layer, values in counts.items()}
        self._sums.restore(state)

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        places = self._sums.result(model, corpus)
        layers = [int(layer) for layer in places.layer]
        found = [self._counts[layer].statistics(self.min_count) for layer in layers]
        dims = {"vocabulary_specialization": ("layer", "expert"), "vocabulary_chance": ("layer", "expert")}
        variables = {name: (dims.get(name, ("layer",)), np.stack([f[name] for f in found])) for name in found[0]}
        coords = {"layer": layers, "expert": places.expert.values}
        return with_attrs(variables, coords, self.attrs(model, corpus)).merge(places, combine_attrs="override")


class _Counts:
    """Occurrences of each token id: rows, choices of each expert, first choices of each expert."""

    def __init__(self, ids: np.ndarray, rows: np.ndarray, chosen: np.ndarray, first: np.ndarray):
        self.ids, self.rows, self.chosen, self.first = ids, rows, chosen, first

    @classmethod
    def empty(cls, experts: int) -> Self:
        none = np.zeros((0, experts), np.int64)
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), none, none)

    @classmethod
    def of(cls, ids: np.ndarray, selected: np.ndarray, first: np.ndarray) -> Self:
        """Of rows with these ids, chosen experts (n, E) and first choices (n,)."""
        unique, inverse, rows = np.unique(ids, return_inverse=True, return_counts=True)
        chosen, firsts = (np.zeros((len(unique), selected.shape[1]), np.int64) for _ in range(2))
        np.add.at(chosen, inverse, selected.astype(np.int64))
        np.add.at(firsts, (inverse, first), 1)
        return cls(unique, rows, chosen, firsts)

    def __add__(self, other: Self) -> Self:
        ids = np.union1d(self.ids, other.ids)
        sizes = [len(ids), (len(ids), self.chosen.shape[1]), (len(ids), self.first.shape[1])]
        total = type(self)(ids, *(np.zeros(size, np.int64) for size in sizes))
        for part in (self, other):
            at = np.searchsorted(ids, part.ids)
            for name in ("rows", "chosen", "first"):
                getattr(total, name)[at] += getattr(part, name)
        return total

    def statistics(self, min_count: int) -> dict[str, np.ndarray]:
        """What the result says of one layer; nan where no id is frequent enough."""
        keep = self.rows >= min_count
        rows, chosen, first = self.rows[keep], self.chosen[keep], self.first[keep].astype(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            pairs, all_rows = (rows * (rows - 1)).sum(), rows.sum()
            together, pooled = (first * (first - 1)).sum(), first.sum(0)
            return {
                "vocabulary_specialization": (chosen**2 / rows[:, None]).sum(0) / chosen.sum(0),
                "vocabulary_chance": chosen.sum(0) / np.float64(all_rows),
                "context_independence": np.divide(together, pairs),
                "context_chance": np.divide((pooled * (pooled - 1)).sum(), all_rows * (all_rows - 1)),
                "token_ids": np.asarray(keep.sum()),
            }


class _Places(Sums):
    name = "token_specialization"

    def parameters(self) -> dict[str, Any]:
        return {}

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        parts = batch.layer.subtokens
        selected, first = batch.selected.cpu(), batch.first_choice.cpu()
        position = torch.from_numpy(np.repeat(batch.tokens.position, parts))
        place = torch.where(position > 0, position.clamp(min=1).double().log2().floor().long() + 1, 0)
        by_place = torch.zeros(PLACES, batch.layer.num_experts, dtype=torch.float64).index_add_(
            0, place.clamp(max=PLACES - 1), selected.double()
        )
        document = torch.from_numpy(np.repeat(batch.tokens.document, parts))
        follows = document[parts:] == document[:-parts]
        same = (first[parts:] == first[:-parts])[follows].sum()
        common = ((selected[parts:] * selected[:-parts]).sum(1) > 0)[follows].sum()
        return {
            "place": by_place,
            "first": torch.bincount(first, minlength=batch.layer.num_experts),
            "repeated": torch.stack([same, common]),
            "pairs": follows.sum(),
            "least_k": torch.tensor(batch.top_k_index.shape[1]),
        }

    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        experts, k = sums["first"].shape[1], int(sums["least_k"][0])
        used = np.flatnonzero(sums["place"].sum((0, 2)))
        by_place = sums["place"][:, used]
        share = sums["first"] / sums["first"].sum(1, keepdims=True)
        in_common = np.full(len(layers), 1 - comb(experts - k, k) / comb(experts, k))
        chance = np.stack([(share**2).sum(1), in_common], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            repetition = sums["repeated"] / sums["pairs"][:, None]
            position_share = by_place / by_place.sum(-1, keepdims=True)
        variables = {
            "position_share": (("layer", "place", "expert"), position_share),
            "repetition": (("layer", "choice"), repetition),
            "repetition_chance": (("layer", "choice"), chance),
        }
        coords = {
            "place": [0 if at == 0 else 2 ** (at - 1) for at in used.tolist()],
            "choice": ["first", "any"],
            "expert": [str(expert) for expert in range(experts)],
        }
        return variables, coords
