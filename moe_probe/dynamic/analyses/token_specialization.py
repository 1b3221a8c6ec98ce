"""Specialization of experts by token id and by position (OLMoE, arXiv 2409.02060; Mixtral, arXiv 2401.04088)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis, expert_labels, labeled
from moe_probe.routing import LayerBatch, Need, Source
from moe_probe.signatures import check_number
from moe_probe.statistics.bootstrap import DRAWS, check_draws, interval, jackknife_interval, ratio_interval
from moe_probe.statistics.by_label import expert_shares
from moe_probe.statistics.id_counts import BLOCKS, IdCounts, mean_of_known
from moe_probe.statistics.rates import discoveries
from moe_probe.statistics.states import PerUnit, Same, UnitSums
from moe_probe.statistics.tallies import FirstSeen, Tally
from moe_probe.texts.corpus import bin_start, position_bin

PLACES = 32
MOST_SHIFTS = 64  # distances at which tokens of a document are compared for the chance of repetition
DIMS = {
    "position_share": ("layer", "place", "expert"),
    "position_chance": ("layer", "expert"),
    "position_excess": ("layer", "place", "expert"),
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

    Token id x occurs n_x times in the corpus, and n_xe of these occurrences choose expert e. Ids that occur fewer than
    `min_count` times are omitted; `token_ids` (layer), int64, counts the others. The result has, float64:

    - `vocabulary_specialization` (layer, expert), the probability that another occurrence of an id of one of the
      expert's own tokens chooses the expert too, sum_x n_xe (n_xe - 1) / (n_x - 1) / sum_x n_xe, and `vocabulary_mean`
      (layer), its mean over experts;
    - `context_independence` (layer), the probability that two occurrences of one id, drawn without replacement, have
      the same first choice;
    - `vocabulary_chance` (layer, expert), `vocabulary_mean_chance` and `context_chance` (layer), their values if
      choices are permuted among the tokens of each document (or of each group of documents if there are more than 256),
      so that effects of a document's topic do not count as effects of the token;
    - `vocabulary_p` (layer, expert) and `context_p` (layer), their two-sided p-values, and `vocabulary_q`, with the
      false discovery rate controlled over layers and experts;
    - `position_share` (layer, place, expert), the share of choices by position in the document, binned as 0, 1, 2-3,
      4-7, ..., `position_chance` (layer, expert), the share at all positions, and `position_excess`, the difference;
    - `repetition` (layer, choice), the share of tokens that have the same `first` choice as the next token, or `any` of
      their k choices in common with it (Mixtral, table 5); `repetition_chance`, the same for all pairs of tokens of a
      document (in long documents, pairs at 64 evenly spaced distances); and `repetition_excess`, the difference.

    All except the chance levels have 95 % intervals over documents, `_low` and `_high`, nan if fewer than five
    documents have the id, position or pair.

    Each sub-token counts as a row of its token; repetition compares sub-tokens of the same index.

    Args:
        min_count: fewest occurrences in the corpus of a token id that counts.
        bootstrap: resamples of the documents for the intervals; 0 for none (the counts then take less memory).
        chance: whether to compute the chance levels.
        as_published: count what OLMoE's code counts (run_moe_analysis.py, do_token_analysis_layers_experts). An id
            belongs to the expert that is most often among its k choices (ties go to the one that the corpus chooses
            first, higher scores first), with the share of its occurrences that choose it. `vocabulary_specialization`
            is the mean over the expert's ids, `vocabulary_mean` (layer) that over all ids, and `vocabulary_first_mean`
            (layer) the latter for first choices only (`--topk 1` there, and do_token_analysis). Ids that occur once
            have a share of 1, so the mean is near 1 whatever the router does. `min_count` is 1, and these variables
            have neither chance levels nor intervals.

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
        "position_excess": ("share of choices by position, above that at all positions", "1"),
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
        """Records where the corpus, read in order, first chooses each expert for each id."""
        ranked = batch.ranked()[0].cpu().numpy()
        part = np.tile(np.arange(batch.layer.subtokens), len(batch.tokens))
        position = np.repeat(batch.tokens.position, batch.layer.subtokens)
        row = np.repeat(batch.tokens.document, batch.layer.subtokens) << 32 | position * batch.layer.subtokens + part
        place = row[:, None] * ranked.shape[1] + np.arange(ranked.shape[1])
        pair = token_id[:, None] * batch.layer.num_experts + ranked
        self.chosen_at.add(batch, (pair.ravel(), place.ravel()))
        self.first_at.add(batch, (pair[:, 0], place[:, 0]))

    def _count_places(self, batch: LayerBatch) -> None:
        """Counts choices by position, and repeated ones, by document."""
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
        """The variables of one layer by token id; nan if no id is frequent enough."""
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
            values_of["position_excess"] = _beyond_all_places({"place": place.sum(1)})
            values_of["repetition_excess"] = values_of["repetition"] - values_of["repetition_chance"]
        if self.bootstrap:
            values_of |= self._ends("position_share", place, rows, (0, 1))
            values_of |= self._ends("repetition", following, pairs, (0, 1))
            if self.chance:
                drawn = [interval(_beyond_all_places, {"place": one}, self.bootstrap, one.sum(-1)) for one in place]
                values_of |= _named_ends("position_excess", drawn)
                values_of |= self._ends("repetition_excess", following - chance, pairs, (-1, 1))
        return values_of

    def _ends(
        self, name: str, total: np.ndarray, count: np.ndarray, limits: tuple[float, float]
    ) -> dict[str, np.ndarray]:
        """Ends of the intervals of a ratio of sums (layers, units, ...)."""
        drawn = [ratio_interval(one, of, self.bootstrap, limits) for one, of in zip(total, count, strict=True)]
        return _named_ends(name, drawn)


def _named_ends(name: str, drawn: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Lower and upper ends of all layers, from those of each."""
    ends = zip(("low", "high"), zip(*drawn, strict=True), strict=True)
    return {f"{name}_{end}": np.stack(values) for end, values in ends}


def _beyond_all_places(total: Mapping[str, np.ndarray]) -> np.ndarray:
    """Share of each expert at each position, less that at all positions, from choices (n, places, E)."""
    place = total["place"]
    return expert_shares(place) - expert_shares(place.sum(1, keepdims=True))


def _dense(sums: UnitSums) -> np.ndarray:
    """A table of all blocks, (BLOCKS, ...)."""
    table = np.zeros((BLOCKS, *sums.values.shape[1:]))
    table[sums.keys] = sums.values
    return table


def repeats(first: torch.Tensor, selected: torch.Tensor, parts: int) -> torch.Tensor:
    """Six counts (6,) int64 over the rows of one document: next rows with the same first choice, with any choice in
    common, and all next rows; and the same three counts for pairs at all distances, or at MOST_SHIFTS of them.
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
