"""Whether experts go by the token itself or by its place (OLMoE, arXiv 2409.02060; Mixtral, arXiv 2401.04088)."""

from __future__ import annotations

from math import comb
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from scipy.sparse import csr_array

from moe_probe.dynamic.analysis import Analysis, Sums
from moe_probe.dynamic.parts import Parts
from moe_probe.errors import InputError
from moe_probe.results import with_attrs
from moe_probe.routing import LayerBatch
from moe_probe.statistics.bootstrap import BLOCKS, block_sums, check_draws, interval
from moe_probe.statistics.by_label import ends
from moe_probe.statistics.tally import Tally
from moe_probe.texts.corpus import Corpus, place_of, place_start

PLACES = 32
DRAWS_AT_ONCE = 25


class TokenSpecialization(Parts):
    """Routing by token id, by position, and from one token to the next.

    With n_x occurrences of token id x in the corpus (ids with fewer than `min_count` are left out), n_xe of which
    choose expert e:

    `vocabulary_specialization` (layer, expert): the mean of n_xe / n_x over the expert's own tokens, that is
    sum_x n_xe (n_xe / n_x) / sum_x n_xe; `vocabulary_chance`, sum_x n_xe / sum_x n_x: what it would be if routing did
    not depend on the token. `context_independence` (layer): how often two occurrences of one id have the same first
    choice, pairs drawn within ids without replacement; `context_chance`, the same of any two tokens. `position_share`
    (layer, place, expert): choices by position in the document, places 0, 1, 2-3, 4-7, ...; `repetition` (layer,
    choice): how often a token and the next one have the same `first` choice, or `any` of their k in common (Mixtral's
    table 5), and `repetition_chance`: sum of squares of the first choices' shares, and 1 - C(E-k, k) / C(E, k);
    `position_chance` (layer, expert), the share at all positions. `vocabulary_specialization`, `context_independence`,
    `position_share` and `repetition` have 95 % bootstrap intervals over documents, `_low` and `_high`.

    With sub-tokens each counts as a row of its token, and repetition compares those at the same place.

    Args:
        min_count: occurrences in the corpus from which on a token id counts.
        bootstrap: draws of the intervals; 0 for none (the counts then take less memory).
        chance: whether to give the chance levels.
        as_published: the means of OLMoE's code, which include ids that were seen once, for which n_xe / n_x says
            nothing; `min_count` is 1.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.token_specialization("ckpt/tiny-mixtral", ["A text, a text."], min_count=2).repetition.dims
        ('layer', 'choice')
    """

    name = "token_specialization"

    def __init__(self, min_count: int = 5, bootstrap: int = 200, chance: bool = True, as_published: bool = False):
        if min_count < 1:
            raise InputError(f"min_count is at least 1, not {min_count}.")
        self.min_count = 1 if as_published else min_count
        self.bootstrap, self.chance, self.as_published = check_draws(bootstrap), chance, as_published
        super().__init__(vocabulary=_Vocabulary(self.min_count, bootstrap), places=_Places(bootstrap))

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        places, vocabulary = (self._parts[name].result(model, corpus) for name in ("places", "vocabulary"))
        found = vocabulary.merge(places).assign_attrs(self.attrs(model, corpus))
        return found if self.chance else found.drop_vars([name for name in found if name.endswith("_chance")])


class _Vocabulary(Analysis):
    """Choices by layer, token id and block of documents: rows, chosen experts, first choices."""

    name = "token_specialization"

    def __init__(self, min_count: int, bootstrap: int):
        self.min_count, self.bootstrap = min_count, bootstrap
        self._tallies: dict[tuple[int, str], Tally] = {}

    def update(self, batch: LayerBatch) -> None:
        experts, parts = batch.layer.num_experts, batch.layer.subtokens
        block = batch.tokens.document % BLOCKS if self.bootstrap else 0
        row = np.repeat(batch.tokens.token_id * BLOCKS + block, parts)
        index = batch.top_k_index.cpu().numpy()
        found = {
            "rows": row,
            "chosen": (row[:, None] * experts + index).flatten(),
            "first": row * experts + batch.first_choice.cpu().numpy(),
        }
        for name, keys in found.items():
            self._tallies.setdefault((batch.layer.index, name), Tally()).add(keys)

    def merge(self, other: _Vocabulary) -> None:
        for key, tally in other._tallies.items():
            self._tallies.setdefault(key, Tally()).merge(tally)

    def state(self) -> dict[str, np.ndarray]:
        tallies = {f"{layer}/{name}": tally for (layer, name), tally in self._tallies.items()}
        return {f"{key}/{part}": getattr(t, part) for key, t in tallies.items() for part in ("keys", "counts")}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        names = {key.rpartition("/")[0] for key in state}
        self._tallies = {
            (int(name.split("/")[0]), name.split("/")[1]): Tally(state[f"{name}/keys"], state[f"{name}/counts"])
            for name in names
        }

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        layers = sorted({layer for layer, _ in self._tallies})
        experts = [model.layer(layer).num_experts for layer in layers]
        found = [self._layer(layer, count) for layer, count in zip(layers, experts, strict=True)]
        dims = {name: ("layer", "expert") for name in found[0] if name.startswith("vocabulary")}
        variables = {name: (dims.get(name, ("layer",)), np.stack([f[name] for f in found])) for name in found[0]}
        return with_attrs(variables, {"layer": layers, "expert": [str(expert) for expert in range(experts[0])]}, {})

    def _layer(self, layer: int, experts: int) -> dict[str, np.ndarray]:
        """What the result says of one layer; nan where no id is frequent enough."""
        rows, chosen, first = (self._tallies[layer, name] for name in ("rows", "chosen", "first"))
        ids, of_row = np.unique(rows.keys // BLOCKS, return_inverse=True)
        frequent = np.flatnonzero(np.bincount(of_row, rows.counts) >= self.min_count)
        counts = _Counts(ids[frequent], rows, chosen, first, experts)
        found = counts.statistics(np.ones((BLOCKS, 1)))
        result = {name: value[..., 0] for name, value in found.items()}
        result["token_ids"] = np.asarray(len(frequent))
        if self.bootstrap:
            used = np.unique(rows.keys % BLOCKS)
            weights = np.zeros((BLOCKS, self.bootstrap))
            share = np.full(len(used), 1 / len(used))
            weights[used] = np.random.default_rng(0).multinomial(len(used), share, size=self.bootstrap).T
            for name in ("vocabulary_specialization", "context_independence"):
                both = [np.full(found[name].shape[:-1], np.nan)] * 2
                if len(used) > 1:
                    chunks = (weights[:, at : at + DRAWS_AT_ONCE] for at in range(0, self.bootstrap, DRAWS_AT_ONCE))
                    drawn = np.concatenate([counts.statistics(chunk, name)[name] for chunk in chunks], axis=-1)
                    both = ends(np.moveaxis(drawn, -1, 0))
                result[f"{name}_low"], result[f"{name}_high"] = both
        return result


class _Counts:
    """Sparse counts of the chosen ids: n_x, n_xe and first choices f_xe, each by block of documents."""

    def __init__(self, ids: np.ndarray, rows: Tally, chosen: Tally, first: Tally, experts: int):
        self.ids, self.experts = ids, experts
        self.rows, _, self.row_id = self._sparse(rows, 1)
        self.chosen, self.chosen_expert, self.chosen_id = self._sparse(chosen, experts)
        self.first, self.first_expert, self.first_id = self._sparse(first, experts)

    def _sparse(self, tally: Tally, experts: int) -> tuple[csr_array, np.ndarray, np.ndarray]:
        """Counts (pairs of id and expert, blocks), and each pair's expert and place in `ids`."""
        keys, counts = tally.keys, tally.counts
        row, expert = keys // experts, keys % experts
        wanted = np.isin(row // BLOCKS, self.ids)
        row, expert, counts = row[wanted], expert[wanted], counts[wanted]
        pairs, of_key = np.unique(row // BLOCKS * experts + expert, return_inverse=True)
        matrix = csr_array((counts.astype(float), (of_key, row % BLOCKS)), shape=(len(pairs), BLOCKS))
        return matrix, pairs % experts, np.searchsorted(self.ids, pairs // experts)

    def statistics(self, weights: np.ndarray, only: str | None = None) -> dict[str, np.ndarray]:
        """Values (..., draws) for documents that count so many times, (blocks, draws).

        Where a document counts twice, its tokens make no pairs with their own copies.
        """
        found = {}
        rows = self.rows @ weights
        with np.errstate(divide="ignore", invalid="ignore"):
            if only != "context_independence":
                chosen = self.chosen @ weights
                squares = chosen**2 - self.chosen @ weights**2 + chosen
                of_id = np.maximum(rows[self.chosen_id], 1e-300)
                own = self._by_expert(self.chosen_expert, chosen)
                found["vocabulary_specialization"] = self._by_expert(self.chosen_expert, squares / of_id) / own
                found["vocabulary_chance"] = own / rows.sum(0)
            if only != "vocabulary_specialization":
                first = self.first @ weights
                pooled, own = self._by_expert(self.first_expert, first), self.first @ weights**2
                same, pairs = first**2 - own, rows**2 - self.rows @ weights**2
                found["context_independence"] = same.sum(0) / pairs.sum(0)
                total = rows.sum(0)
                found["context_chance"] = (pooled * (pooled - 1)).sum(0) / (total * (total - 1))
        return found

    def _by_expert(self, expert: np.ndarray, values: np.ndarray) -> np.ndarray:
        total = np.zeros((self.experts, values.shape[1]))
        np.add.at(total, expert, values)
        return total


class _Places(Sums):
    name = "token_specialization"

    def __init__(self, bootstrap: int):
        super().__init__()
        self.bootstrap = bootstrap

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        parts, experts = batch.layer.subtokens, batch.layer.num_experts
        selected, first = batch.selected.cpu(), batch.first_choice.cpu()
        document = np.repeat(batch.tokens.document, parts)
        cell = np.repeat(place_of(batch.tokens.position), parts) + PLACES * (document % BLOCKS)
        by_place = block_sums(selected, cell, BLOCKS * PLACES).view(BLOCKS, PLACES, experts)
        follows = torch.from_numpy(document[parts:] == document[:-parts])
        same = first[parts:] == first[:-parts]
        common = (selected[parts:] * selected[:-parts]).sum(1) > 0
        repeated = torch.stack([same & follows, common & follows, follows], dim=1)
        return {
            "place": by_place,
            "first": torch.bincount(first, minlength=experts),
            "repeated": block_sums(repeated, document[parts:]),
            "least_k": torch.tensor(batch.top_k_index.shape[1]),
        }

    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        experts, k = sums["first"].shape[1], int(sums["least_k"][0])
        used = np.flatnonzero(sums["place"].sum((0, 1, 3)))
        place, repeated = sums["place"][:, :, used], sums["repeated"]  # (layers, blocks, ...)
        share = sums["first"] / sums["first"].sum(1, keepdims=True)
        in_common = np.full(len(layers), 1 - comb(experts - k, k) / comb(experts, k))
        with np.errstate(divide="ignore", invalid="ignore"):
            values = {
                "position_share": _place_share({"place": place.sum(1)}),
                "repetition": _repetition({"repeated": repeated.sum(1)}),
            }
        values["repetition_chance"] = np.stack([(share**2).sum(1), in_common], axis=1)
        values["position_chance"] = _place_share({"place": place.sum((1, 2))})
        if self.bootstrap:
            for name, kept, statistic in (
                ("position_share", {"place": place}, _place_share),
                ("repetition", {"repeated": repeated}, _repetition),
            ):
                bounds = [
                    interval(statistic, {k: v[at] for k, v in kept.items()}, self.bootstrap)
                    for at in range(len(layers))
                ]
                for end, both in zip(("low", "high"), zip(*bounds, strict=True), strict=True):
                    values[f"{name}_{end}"] = np.stack(both)
        variables = {
            name: (self.DIMS[name.removesuffix("_low").removesuffix("_high")], v) for name, v in values.items()
        }
        coords = {
            "place": place_start(used),
            "choice": ["first", "any"],
            "expert": [str(expert) for expert in range(experts)],
        }
        return variables, coords

    DIMS: ClassVar = {
        "position_share": ("layer", "place", "expert"),
        "position_chance": ("layer", "expert"),
        "repetition": ("layer", "choice"),
        "repetition_chance": ("layer", "choice"),
    }


def _place_share(total: dict[str, np.ndarray]) -> np.ndarray:
    return total["place"] / total["place"].sum(-1, keepdims=True)


def _repetition(total: dict[str, np.ndarray]) -> np.ndarray:
    return total["repeated"][..., :2] / total["repeated"][..., 2:]
