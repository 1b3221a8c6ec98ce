"""Whether experts go by the token itself or by its place (OLMoE, arXiv 2409.02060; Mixtral, arXiv 2401.04088)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import xarray as xr
from scipy.sparse import csr_array
from scipy.stats import chi2

from moe_probe.dynamic.analysis import Analysis, expert_labels, labeled
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.signatures import check_number
from moe_probe.statistics.bootstrap import DRAWS, check_draws, jackknife_interval, ratio_interval
from moe_probe.statistics.rates import discoveries
from moe_probe.statistics.states import Counts, FirstSeen, PerUnit, Same, Tally, UnitSums
from moe_probe.texts.corpus import bin_start, position_bin

PLACES = 32
BLOCKS = 256  # groups of documents by which token ids are counted
MOST_SHIFTS = 64  # distances at which tokens of a document are compared for the chance of repetition
DIMS = {
    "position_share": ("layer", "place", "expert"),
    "position_chance": ("layer", "expert"),
    "repetition": ("layer", "choice"),
    "repetition_chance": ("layer", "choice"),
    "repetition_excess": ("layer", "choice"),
    "vocabulary_specialization": ("layer", "expert"),
    "vocabulary_chance": ("layer", "expert"),
    "vocabulary_p": ("layer", "expert"),
    "vocabulary_q": ("layer", "expert"),
}


@dataclass
class TokenSpecialization(Analysis):
    """Routing by token id, by position, and from one token to the next.

    With n_x occurrences of token id x in the corpus (ids with fewer than `min_count` are omitted), n_xe of which
    choose expert e:

    `vocabulary_specialization` (layer, expert): how often another occurrence of the token id of one of the expert's own
    tokens chooses the expert too, sum_x n_xe (n_xe - 1) / (n_x - 1) / sum_x n_xe; `context_independence` (layer): how
    often two occurrences of one id have the same first choice, pairs drawn within ids without replacement.
    `vocabulary_mean` (layer) is the mean of the first over experts. `vocabulary_chance` (layer, expert) and
    `context_chance` (layer): what they would be if the tokens of each document (or group of documents, where there are
    more than 256) were dealt its choices at random, so that what the topic of a document does is not taken for what the
    token does. `vocabulary_p` (layer, expert) and `context_p` (layer) are their two-sided p-values, `vocabulary_q` with
    the false discovery rate controlled over layers and experts. `position_share` (layer, place, expert): choices by
    position in the document, places 0, 1, 2-3, 4-7, ...; `position_chance` (layer, expert), the share at all positions.
    `repetition` (layer, choice): how often a token and the next one have the same `first` choice, or `any` of their k
    in common (Mixtral's table 5); `repetition_chance`, the same of any two tokens of a document (of tokens up to 64
    distances apart, in longer ones), and `repetition_excess`, the difference. All but the chance levels have 95 %
    intervals over documents, `_low` and `_high`; nan where fewer than five documents have the id, place or pair.

    With sub-tokens each counts as a row of its token, and repetition compares those at the same place.

    Args:
        min_count: occurrences in the corpus from which on a token id counts.
        bootstrap: resamples of the documents for the intervals; 0 for none (the counts then take less memory).
        chance: whether to give the chance levels.
        as_published: what OLMoE's code counts (run_moe_analysis.py, do_token_analysis_layers_experts): an id belongs to
            the expert that is most often among its k choices (of several, the one that the corpus chooses first, better
            scores first), with the share of its occurrences that choose it; `vocabulary_specialization` is the mean
            over the expert's ids and `vocabulary_mean` (layer) that over all ids; `vocabulary_first_mean` (layer), the
            latter of first choices alone (`--topk 1` there, and do_token_analysis). Ids that were seen once have a
            share of 1, so that it is near 1 whatever the router does; `min_count` is 1, and there are neither chance
            levels nor intervals of these.

    Examples:
        >>> from moe_probe import dynamic
        >>> dynamic.token_specialization("ckpt/tiny-mixtral", ["A text, a text."], min_count=2).repetition.dims
        ('layer', 'choice')
    """

    min_count: int = 5
    bootstrap: int = DRAWS
    chance: bool = True
    as_published: bool = False

    name = "token_specialization"
    title = "Token specialization"
    unasked = True
    needs = frozenset({Need.CHOICES})
    legend = {
        "vocabulary_specialization": ("share of a token id's occurrences that choose the expert", "1"),
        "vocabulary_first_mean": ("share of a token id's occurrences with its most frequent first choice", "1"),
        "context_independence": ("pairs of occurrences with one first choice", "1"),
        "position_share": ("share of choices by position", "1"),
        "repetition": ("next token with the same choice", "1"),
        "token_ids": ("token ids that count", "token ids"),
    }

    ids, chosen, first = Tally(), Tally(), Tally()
    chosen_at, first_at = FirstSeen(), FirstSeen()
    by_place, repeated = PerUnit("place", "expert", most=BLOCKS), PerUnit("pairs")
    first_choices, k = PerUnit("expert", most=BLOCKS), Same()

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
        block = batch.tokens.unit % BLOCKS
        row = np.repeat(batch.tokens.token_id * BLOCKS + block, parts)
        self.ids.add(batch, row)
        self.chosen.add(batch, (row[:, None] * experts + batch.top_k_index.cpu().numpy()).flatten())
        self.first.add(batch, row * experts + batch.first_choice.cpu().numpy())
        if self.as_published:
            self._meet(batch, np.repeat(batch.tokens.token_id, parts))

    def _meet(self, batch: LayerBatch, token_id: np.ndarray) -> None:
        """Where the corpus, read in order, first chooses each expert for each id."""
        ranked = batch.ranked()[0].cpu().numpy()
        part = np.tile(np.arange(batch.layer.subtokens), len(batch.tokens))
        position = np.repeat(batch.tokens.position, batch.layer.subtokens)
        row = np.repeat(batch.tokens.document, batch.layer.subtokens) << 32 | position * batch.layer.subtokens + part
        place = row[:, None] * ranked.shape[1] + np.arange(ranked.shape[1])
        pair = token_id[:, None] * batch.layer.num_experts + ranked
        self.chosen_at.add(batch, (pair.ravel(), place.ravel()))
        self.first_at.add(batch, (pair[:, 0], place[:, 0]))

    def _count_places(self, batch: LayerBatch) -> None:
        """Choices by position, and repeated ones, by document."""
        parts, experts = batch.layer.subtokens, batch.layer.num_experts
        selected, first = batch.selected.cpu(), batch.first_choice.cpu()
        document, unit = (np.repeat(each, parts) for each in (batch.tokens.document, batch.tokens.unit))
        place = np.repeat(position_bin(batch.tokens.position), parts)
        for at in np.unique(place):
            rows = np.flatnonzero(place == at)
            placed = torch.zeros(len(rows), PLACES, experts, dtype=torch.int64)
            placed[:, at] = selected[rows].long()
            self.by_place.add(batch, (unit[rows] % BLOCKS, placed))
        ones = torch.nn.functional.one_hot(first, experts)
        self.first_choices.add(batch, (unit % BLOCKS, ones))
        for number in np.unique(document):
            rows = np.flatnonzero(document == number)
            self.repeated.add(batch, (unit[rows[:1]], repeats(first[rows], selected[rows], parts)[None]))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        values_of = self._by_id(source) | self._by_place()
        if not self.chance:
            values_of = {name: value for name, value in values_of.items() if not name.endswith("_chance")}
        places = np.flatnonzero(self.by_place.array.values.sum((0, 2)))
        coords = {
            "layer": self.ids.layers,
            "expert": expert_labels(source.first_layer.num_experts),
            "place": bin_start(places),
            "choice": ["first", "any"],
        }
        dims = {n: DIMS.get(n.removesuffix("_low").removesuffix("_high"), ("layer",)) for n in values_of}
        return labeled({name: (dims[name], value) for name, value in values_of.items()}, coords)

    def _by_id(self, source: Source) -> dict[str, np.ndarray]:
        layers = self.ids.layers
        by_layer = [self._layer(layer, source.layers[layer].num_experts) for layer in layers]
        stacked = {name: np.stack([one[name] for one in by_layer]) for name in by_layer[0]}
        return stacked | ({"vocabulary_q": discoveries(stacked["vocabulary_p"])} if "vocabulary_p" in stacked else {})

    def _layer(self, layer: int, experts: int) -> dict[str, np.ndarray]:
        """What the result says of one layer by token id; nan where no id is frequent enough."""
        rows = self.ids[layer]
        ids, of_row = np.unique(rows.keys // BLOCKS, return_inverse=True)
        frequent = np.flatnonzero(np.bincount(of_row, rows.counts) >= self.min_count)
        counts = IdCounts(ids[frequent], rows, self.chosen[layer], self.first[layer], experts)
        values_of = {name: value[..., 0] for name, value in counts.statistics(np.ones((BLOCKS, 1))).items()}
        if self.as_published:
            return (
                values_of
                | counts.as_published(self.chosen_at[layer], self.first_at[layer])
                | {"token_ids": np.asarray(len(frequent))}
            )
        if self.chance:
            of_block = _dense(self.first_choices[layer]), _dense(self.by_place[layer]).sum(1)
            values_of["context_chance"], values_of["vocabulary_chance"] = counts.chance(*of_block)
            values_of["vocabulary_mean_chance"] = mean_of_known(values_of["vocabulary_chance"])
            values_of["context_p"], values_of["vocabulary_p"] = counts.tests(*of_block)
        if self.bootstrap:
            used = np.unique(rows.keys % BLOCKS)
            left = np.ones((BLOCKS, len(used))) - np.eye(BLOCKS)[:, used]
            without = {name: np.moveaxis(value, -1, 0) for name, value in counts.statistics(left).items()}
            for name, weight in counts.weights(used).items():
                ends = jackknife_interval(values_of[name], without[name], weight, self.bootstrap, (0, 1))
                values_of[f"{name}_low"], values_of[f"{name}_high"] = ends
        return values_of | {"token_ids": np.asarray(len(frequent))}

    def _by_place(self) -> dict[str, np.ndarray]:
        place, repeated = (PerUnit.tables(state)[""] for state in (self.by_place, self.repeated))
        place = place[:, :, np.flatnonzero(place.sum((0, 1, 3)))].astype(float)  # (layers, units, places, E)
        rows = place.sum(-1)
        following, pairs, same = repeated[..., [0, 1]], repeated[..., [2, 2]], repeated[..., [3, 4]]
        chance = pairs * same / repeated[..., [5, 5]].clip(1)  # next ones with the same choice, in each document
        with np.errstate(divide="ignore", invalid="ignore"):
            values_of = {
                "position_share": place.sum(1) / rows.sum(1)[..., None],
                "position_chance": place.sum((1, 2)) / rows.sum((1, 2))[:, None],
                "repetition": following.sum(1) / pairs.sum(1),
                "repetition_chance": chance.sum(1) / pairs.sum(1),
            }
        if self.chance:
            values_of["repetition_excess"] = values_of["repetition"] - values_of["repetition_chance"]
        if self.bootstrap:
            values_of |= self._ends("position_share", place, rows, (0, 1))
            values_of |= self._ends("repetition", following, pairs, (0, 1))
            if self.chance:
                values_of |= self._ends("repetition_excess", following - chance, pairs, (-1, 1))
        return values_of

    def _ends(
        self, name: str, total: np.ndarray, count: np.ndarray, limits: tuple[float, float]
    ) -> dict[str, np.ndarray]:
        """Ends of the intervals of a ratio of sums (layers, units, ...)."""
        drawn = [ratio_interval(one, of, self.bootstrap, limits) for one, of in zip(total, count, strict=True)]
        return {
            f"{name}_{end}": np.stack(values)
            for end, values in zip(("low", "high"), zip(*drawn, strict=True), strict=True)
        }


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the first dimension of what is not nan; nan where nothing is known."""
    known = ~np.isnan(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)


def two_sided(value: np.ndarray, variance: np.ndarray, degrees: float) -> np.ndarray:
    """p-values of sums of mean 0 that are distributed as a chi-squared variable minus its mean, scaled."""
    with np.errstate(divide="ignore", invalid="ignore"):
        standard = np.asarray(value / np.sqrt(variance))
    above = chi2.sf(degrees + standard * np.sqrt(2 * degrees), degrees) if degrees else np.nan * standard
    return np.minimum(2 * np.minimum(above, 1 - above), 1)


def _dense(sums: UnitSums) -> np.ndarray:
    """A table of all blocks, (BLOCKS, ...)."""
    table = np.zeros((BLOCKS, *sums.values.shape[1:]))
    table[sums.keys] = sums.values
    return table


def repeats(first: torch.Tensor, selected: torch.Tensor, parts: int) -> torch.Tensor:
    """Of the rows of one document, (6,) int64: next ones with the same first choice, with any in common, next ones;
    pairs of tokens with the same first choice, with any in common, and pairs, at all distances up to MOST_SHIFTS of
    them.
    """
    tokens = len(first) // parts
    first, selected = first.view(tokens, parts), selected.view(tokens, parts, -1)

    def alike(distance: int) -> torch.Tensor:
        same = first[distance:] == first[:-distance]
        common = (selected[distance:] * selected[:-distance]).sum(-1) > 0
        return torch.stack([same.sum(), common.sum(), torch.tensor(same.numel())])

    if tokens < 2:
        return torch.zeros(6, dtype=torch.int64)
    distances = np.unique(np.linspace(1, tokens - 1, MOST_SHIFTS).round().astype(int))
    return torch.cat([alike(1), torch.stack([alike(int(distance)) for distance in distances]).sum(0)])


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

    def statistics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Values (..., n) of the documents that n weightings of 0 and 1 (blocks, n) take; pairs without replacement."""
        rows = self.rows @ weights
        chosen, first = self.chosen @ weights, self.first @ weights
        with np.errstate(divide="ignore", invalid="ignore"):
            others = np.maximum(rows[self.chosen_id] - 1, 1)
            chosen_times = self._by_expert(self.chosen_expert, chosen)
            again = self._by_expert(self.chosen_expert, chosen * (chosen - 1) / others)
            pairs = (rows * (rows - 1)).sum(0)
            return {
                "vocabulary_specialization": again / chosen_times,
                "vocabulary_mean": mean_of_known(again / chosen_times),
                "context_independence": (first * (first - 1)).sum(0) / pairs,
            }

    def as_published(self, chosen_at: Counts, first_at: Counts) -> dict[str, np.ndarray]:
        """OLMoE's means over ids of the share of the most frequent expert.

        Args:
            chosen_at: of pairs of id and expert, where the expert was first among the choices.
            first_at: the same of first choices.
        """
        by_expert, mean = self._most_frequent(self.chosen, self.chosen_id, self.chosen_expert, chosen_at)
        _, first_mean = self._most_frequent(self.first, self.first_id, self.first_expert, first_at)
        return {"vocabulary_specialization": by_expert, "vocabulary_mean": mean, "vocabulary_first_mean": first_mean}

    def _most_frequent(
        self, counts: csr_array, ids: np.ndarray, experts: np.ndarray, seen_at: Counts
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means of each id's largest share, by the expert that has it (E,) and over ids ()."""
        times, occurrences = (np.asarray(each.sum(1)).ravel() for each in (counts, self.rows))
        place = seen_at.counts[np.searchsorted(seen_at.keys, self.ids[ids] * self.experts + experts)]
        order = np.lexsort((place, -times, ids))
        _, leading = np.unique(ids[order], return_index=True)  # of each id, the most frequent expert, seen first
        leader = order[leading]
        share = times[leader] / occurrences[ids[leader]]
        count = np.bincount(experts[leader], minlength=self.experts)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.bincount(experts[leader], share, self.experts) / count, np.divide(share.sum(), len(share))

    def chance(self, first: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Context independence (), and specialization (E,), with the tokens of each block dealt its choices.

        Args:
            first: first choices of each block, (blocks, E).
            chosen: choices of each block, (blocks, E).
        """
        rows = np.maximum(first.sum(1, keepdims=True), 1)
        (same, _), (again, chosen_times) = (self._dealt(counts, rows) for counts in (first, chosen))
        occurrences = np.asarray(self.rows.sum(1)).ravel()
        pairs = (occurrences * (occurrences - 1)).sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            others = np.maximum(occurrences - 1, 1)[:, None]
            return same.sum() / pairs, (again / others).sum(0) / chosen_times.sum(0)

    def tests(self, first: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two-sided p-values of context independence () and specialization (E,), against `chance`.

        Products of what two occurrences of an id have beyond their documents' shares have mean 0, and are not
        correlated with each other, where the token does not matter; their sum has the shape of a chi-squared variable.
        """
        occurrences = np.asarray(self.rows.sum(1)).ravel()
        weight = 1 / np.maximum(occurrences - 1, 1)
        alike = float((occurrences**2).sum() ** 2 / max((occurrences**4).sum(), 1)) * max(self.experts - 1, 1)
        together, variance = self._beyond(self.first, self.first_id, self.first_expert, first, np.ones(len(weight)))
        shares = first / np.maximum(first.sum(1, keepdims=True), 1)
        cross = shares @ shares.T
        cross = cross - shares**2 @ shares.T - shares @ (shares**2).T + cross**2
        loose = self._loose(np.maximum(first.sum(1), 1))
        pairs = (loose.T @ loose).toarray()
        whole = 2 * ((pairs * cross).sum() - (np.asarray(loose.sum(0)).ravel() * np.diagonal(cross)).sum())
        context = two_sided(together.sum(), whole, alike)
        rows = np.maximum(first.sum(1), 1)
        together, variance = self._beyond(self.chosen, self.chosen_id, self.chosen_expert, chosen, weight, rows)
        return context, two_sided(together, variance, float((occurrences > 1).sum()))

    def _beyond(
        self,
        counts: csr_array,
        ids: np.ndarray,
        experts: np.ndarray,
        of_block: np.ndarray,
        weight: np.ndarray,
        rows: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sums over ids of products of pairs of occurrences beyond their blocks' shares, and their variances, (E,)."""
        size = np.maximum(of_block.sum(1) if rows is None else rows, 1)
        share = of_block / size[:, None]
        vary = share * (1 - share)
        observed = np.zeros((len(self.ids), self.experts))
        observed[ids, experts] = np.asarray(counts.sum(1)).ravel()
        single = self.rows @ share**2
        single[ids, experts] += np.asarray(counts.multiply((1 - 2 * share).T[experts]).sum(1)).ravel()
        within = self.rows.multiply(self.rows) - self.rows
        expected = -(within @ (vary / np.maximum(size - 1, 1)[:, None]))
        beyond = (observed - self.rows @ share) ** 2 - single - expected
        loose = self._loose(size)
        variance = 2 * ((loose @ vary) ** 2 - loose @ vary**2)
        return (weight[:, None] * beyond).sum(0), (weight[:, None] ** 2 * variance).sum(0)

    def _loose(self, size: np.ndarray) -> csr_array:
        """Occurrences of each id in each block less what the block's fixed choices tell of them, (ids, blocks)."""
        scale = np.where(size > 1, 1 / np.maximum(size - 1, 1), 0)
        return csr_array(self.rows * (size * scale) - self.rows.multiply(self.rows) * scale)

    def _dealt(self, counts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected pairs of occurrences that choose each expert, and occurrences, (ids, E)."""
        share = counts / rows
        pair = counts * (counts - 1) / np.maximum(rows * (rows - 1), 1)
        expected = self.rows @ share
        within = self.rows.multiply(self.rows)
        return expected**2 - within @ share**2 + (within - self.rows) @ pair, expected

    def weights(self, used: np.ndarray) -> dict[str, np.ndarray]:
        """What each block of documents has of each value: choices by expert (blocks, E), occurrences (blocks,)."""
        chosen = self._by_expert(self.chosen_expert, self.chosen.toarray()[:, used]).T
        occurrences = np.asarray(self.rows.sum(0)).ravel()[used]
        every = {"vocabulary_mean": occurrences, "context_independence": occurrences}
        return {"vocabulary_specialization": chosen, **every}

    def _by_expert(self, expert: np.ndarray, values: np.ndarray) -> np.ndarray:
        total = np.zeros((self.experts, values.shape[1]))
        np.add.at(total, expert, values)
        return total
