"""Whether experts go by the token itself or by its place (OLMoE, arXiv 2409.02060; Mixtral, arXiv 2401.04088)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from typing import Self

import numpy as np
import torch
import xarray as xr
from scipy.sparse import csr_array

from moe_probe.dynamic.analysis import Analysis, expert_labels, labeled
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.signatures import check_number
from moe_probe.statistics.bootstrap import BLOCKS, block_sums, check_draws, interval
from moe_probe.statistics.by_label import interval_ends
from moe_probe.statistics.states import Counts, Same, Tally, Total
from moe_probe.texts.corpus import bin_start, position_bin

PLACES = 32
DRAWS_AT_ONCE = 25
DIMS = {
    "position_share": ("layer", "place", "expert"),
    "position_chance": ("layer", "expert"),
    "repetition": ("layer", "choice"),
    "repetition_chance": ("layer", "choice"),
    "vocabulary_specialization": ("layer", "expert"),
    "vocabulary_chance": ("layer", "expert"),
}


@dataclass
class TokenSpecialization(Analysis):
    """Routing by token id, by position, and from one token to the next.

    With n_x occurrences of token id x in the corpus (ids with fewer than `min_count` are omitted), n_xe of which
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
        bootstrap: resamples of the documents for the intervals; 0 for none (the counts then take less memory).
        chance: whether to give the chance levels.
        as_published: the means of OLMoE's code, which include ids that were seen once, for which n_xe / n_x says
            nothing; `min_count` is 1.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.token_specialization("ckpt/tiny-mixtral", ["A text, a text."], min_count=2).repetition.dims
        ('layer', 'choice')
    """

    min_count: int = 5
    bootstrap: int = 200
    chance: bool = True
    as_published: bool = False

    name = "token_specialization"
    title = "Token specialization"
    unasked = True
    needs = frozenset({Need.CHOICES})
    legend = {
        "vocabulary_specialization": ("share of a token id's occurrences that choose the expert", "1"),
        "context_independence": ("pairs of occurrences with one first choice", "1"),
        "position_share": ("share of choices by position", "1"),
        "repetition": ("next token with the same choice", "1"),
        "token_ids": ("token ids that count", "token ids"),
    }

    ids, chosen, first = Tally(), Tally(), Tally()
    by_place, repeated = Total("block", "place", "expert"), Total("block", "choice")
    first_choices, k = Total("expert"), Same()

    def __post_init__(self) -> None:
        check_number("min_count", self.min_count, 1)
        check_draws(self.bootstrap)
        self.min_count = 1 if self.as_published else self.min_count

    @classmethod
    def example(cls) -> Self:
        return cls(min_count=1)

    def update(self, batch: LayerBatch) -> None:
        self._count_ids(batch)
        self._count_places(batch)
        self.k.add(batch, batch.top_k_index.shape[1])

    def _count_ids(self, batch: LayerBatch) -> None:
        """Rows, choices and first choices by token id and block of documents."""
        experts, parts = batch.layer.num_experts, batch.layer.subtokens
        block = batch.tokens.document % BLOCKS if self.bootstrap else 0
        row = np.repeat(batch.tokens.token_id * BLOCKS + block, parts)
        self.ids.add(batch, row)
        self.chosen.add(batch, (row[:, None] * experts + batch.top_k_index.cpu().numpy()).flatten())
        self.first.add(batch, row * experts + batch.first_choice.cpu().numpy())

    def _count_places(self, batch: LayerBatch) -> None:
        """Choices by position, and repeated ones, by block of documents."""
        parts, experts = batch.layer.subtokens, batch.layer.num_experts
        selected, first = batch.selected.cpu(), batch.first_choice.cpu()
        document = np.repeat(batch.tokens.document, parts)
        cell = np.repeat(position_bin(batch.tokens.position), parts) + PLACES * (document % BLOCKS)
        self.by_place.add(batch, block_sums(selected, cell, BLOCKS * PLACES).view(BLOCKS, PLACES, experts))
        follows = torch.from_numpy(document[parts:] == document[:-parts])
        same = first[parts:] == first[:-parts]
        common = (selected[parts:] * selected[:-parts]).sum(1) > 0
        repeated = torch.stack([same & follows, common & follows, follows], dim=1)
        self.repeated.add(batch, block_sums(repeated, document[parts:]))
        self.first_choices.add(batch, torch.bincount(first, minlength=experts))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        found = self._by_id(source) | self._by_place()
        if not self.chance:
            found = {name: value for name, value in found.items() if not name.endswith("_chance")}
        places = np.flatnonzero(self.by_place.array.values.sum((0, 1, 3)))
        coords = {
            "layer": self.ids.layers,
            "expert": expert_labels(source.first_layer.num_experts),
            "place": bin_start(places),
            "choice": ["first", "any"],
        }
        dims = {n: DIMS.get(n.removesuffix("_low").removesuffix("_high"), ("layer",)) for n in found}
        return labeled({name: (dims[name], value) for name, value in found.items()}, coords)

    def _by_id(self, source: Source) -> dict[str, np.ndarray]:
        layers = self.ids.layers
        found = [self._layer(layer, source.layers[layer].num_experts) for layer in layers]
        return {name: np.stack([one[name] for one in found]) for name in found[0]}

    def _layer(self, layer: int, experts: int) -> dict[str, np.ndarray]:
        """What the result says of one layer by token id; nan where no id is frequent enough."""
        rows = self.ids[layer]
        ids, of_row = np.unique(rows.keys // BLOCKS, return_inverse=True)
        frequent = np.flatnonzero(np.bincount(of_row, rows.counts) >= self.min_count)
        counts = IdCounts(ids[frequent], rows, self.chosen[layer], self.first[layer], experts)
        found = {name: value[..., 0] for name, value in counts.statistics(np.ones((BLOCKS, 1))).items()}
        found["token_ids"] = np.asarray(len(frequent))
        if self.bootstrap:
            used = np.unique(rows.keys % BLOCKS)
            for name in ("vocabulary_specialization", "context_independence"):
                both = [np.full(found[name].shape, np.nan)] * 2
                if len(used) > 1:
                    both = interval_ends(counts.resampled(name, used, self.bootstrap))
                found[f"{name}_low"], found[f"{name}_high"] = both
        return found

    def _by_place(self) -> dict[str, np.ndarray]:
        first, k = self.first_choices.array.values, int(self.k.array[0])
        place, repeated = self.by_place.array.values, self.repeated.array.values  # (layers, blocks, ...)
        place = place[:, :, np.flatnonzero(place.sum((0, 1, 3)))]
        experts, share = first.shape[1], first / first.sum(1, keepdims=True)
        in_common = np.full(len(first), 1 - comb(experts - k, k) / comb(experts, k))
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {
                "position_share": _place_share({"place": place.sum(1)}),
                "repetition": _repetition({"repeated": repeated.sum(1)}),
            }
        found["repetition_chance"] = np.stack([(share**2).sum(1), in_common], axis=1)
        found["position_chance"] = _place_share({"place": place.sum((1, 2))})
        if self.bootstrap:
            asked = (
                ("position_share", "place", place, _place_share),
                ("repetition", "repeated", repeated, _repetition),
            )
            for name, key, values, statistic in asked:
                drawn = [interval(statistic, {key: of_layer}, self.bootstrap) for of_layer in values]
                for end, both in zip(("low", "high"), zip(*drawn, strict=True), strict=True):
                    found[f"{name}_{end}"] = np.stack(both)
        return found


class IdCounts:
    """Sparse counts of the chosen ids: n_x, n_xe and first choices f_xe, each by block of documents."""

    def __init__(self, ids: np.ndarray, rows: Counts, chosen: Counts, first: Counts, experts: int):
        self.ids, self.experts = ids, experts
        self.rows, _, self.row_id = self._sparse(rows, 1)
        self.chosen, self.chosen_expert, self.chosen_id = self._sparse(chosen, experts)
        self.first, self.first_expert, self.first_id = self._sparse(first, experts)

    def _sparse(self, tally: Counts, experts: int) -> tuple[csr_array, np.ndarray, np.ndarray]:
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

    def resampled(self, name: str, used: np.ndarray, draws: int) -> np.ndarray:
        """A statistic with the blocks of documents resampled, (draws, ...)."""
        weights = np.zeros((BLOCKS, draws))
        share = np.full(len(used), 1 / len(used))
        weights[used] = np.random.default_rng(0).multinomial(len(used), share, size=draws).T
        chunks = (weights[:, at : at + DRAWS_AT_ONCE] for at in range(0, draws, DRAWS_AT_ONCE))
        drawn = np.concatenate([self.statistics(chunk, name)[name] for chunk in chunks], axis=-1)
        return np.moveaxis(drawn, -1, 0)

    def _by_expert(self, expert: np.ndarray, values: np.ndarray) -> np.ndarray:
        total = np.zeros((self.experts, values.shape[1]))
        np.add.at(total, expert, values)
        return total


def _place_share(total: Mapping[str, np.ndarray]) -> np.ndarray:
    return total["place"] / total["place"].sum(-1, keepdims=True)


def _repetition(total: Mapping[str, np.ndarray]) -> np.ndarray:
    return total["repeated"][..., :2] / total["repeated"][..., 2:]
