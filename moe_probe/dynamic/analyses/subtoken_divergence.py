"""Number of distinct experts of a token's sub-tokens, for words with several meanings and for others (MH-MoE)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import xarray as xr
from scipy.stats import mannwhitneyu, wilcoxon

from moe_probe.dynamic.analysis import Analysis, labeled
from moe_probe.errors import NotFitting, OutOfRange, WrongType
from moe_probe.routing import LayerBatch, Source
from moe_probe.statistics.bootstrap import DRAWS, check_draws, crossed_interval, interval, sums_over
from moe_probe.statistics.states import TokenTable
from moe_probe.texts.corpus import Corpus
from moe_probe.texts.words import (
    LISTS,
    find_words,
    normal_form,
    special_tokens,
    tokens_of_spans,
    tokens_of_words,
    word_list,
)

GROUPS = ["PF", "non-PF"]


@dataclass
class SubtokenDivergence(Analysis):
    """Distinct experts among all choices of a token's sub-tokens (MH-MoE, arXiv 2404.15045, section 4.4, figure 7).

    The analysis compares tokens of polysemous words and false cognates (PF) with all others, without special tokens. A
    token is PF if it is part of a listed word, or overlaps a span.

    A model without sub-tokens chooses k experts for every token. For it, moe_probe measures the number of distinct
    experts, k to 2k, that two occurrences of one token id choose together, averaged over the token's other occurrences
    (not in the paper; nan for an id that occurs once). `attrs["unit"]` says which of the two was measured.

    Per token, the result has `divergence` (layer, token), float32; `divergence_first` (layer, token), of first choices
    only, for models with sub-tokens; and `divergence_mean` (token), over layers. `group` is a coordinate. For the
    groups, it has:

    - `group_mean` (group), `layer_mean` (layer, group), and the number of `tokens` (group);
    - `difference` (), PF minus non-PF, and `layer_difference` (layer), with 95 % intervals, `_low` and `_high`, over
      word types and documents (over documents only if spans are given);
    - `u_statistic` and `p_value`, Mann and Whitney's two-sided rank test of the means of word types; if spans are
      given, Wilcoxon's signed-rank test of each document's PF and other tokens;
    - `superiority`, the probability that a PF type diverges more than a non-PF type;
    - `difference_chance`, `difference_chance_low` and `difference_chance_high`: the difference if the PF marks are
      permuted among word types (among tokens if spans are given).

    Args:
        words: PF words, exact forms without case; all lists of the package by default (see `word_list`).
        spans: (start, end) characters of the documents' texts that are PF, by document number; they replace the default
            words, and add to `words` if these are given.
        bootstrap: resamples of the documents for the intervals; 0 for none.
        permutations: permutations of the marks for the chance level; 0 for none.

    Raises:
        InputError: the list of words is empty, a span is outside its text, or words or spans are given and a group has
            no token (if the default lists leave a group empty, its values are nan).

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.subtoken_divergence("ckpt/tiny-mh-moe", ["The bank by the river was closed."])
        >>> ds.divergence.dims
        ('layer', 'token')
    """

    words: Collection[str] | None = None
    spans: Mapping[int, Sequence[tuple[int, int]]] | None = None
    bootstrap: int = DRAWS
    permutations: int = DRAWS

    name = "subtoken_divergence"
    title = "Sub-token divergence"
    unasked = True
    special_tokens = "omitted"
    legend = {
        "divergence": ("distinct experts", "experts"),
        "divergence_first": ("distinct first choices", "experts"),
        "divergence_mean": ("distinct experts, mean over layers", "experts"),
        "group_mean": ("distinct experts", "experts"),
        "layer_mean": ("distinct experts", "experts"),
        "tokens": ("tokens of the group", "tokens"),
        "difference": ("PF minus non-PF", "experts"),
        "layer_difference": ("PF minus non-PF", "experts"),
    }

    divergence, divergence_first = TokenTable(dtype=np.int16), TokenTable(dtype=np.int16)
    index = TokenTable("rank", dtype=np.int16)

    def __post_init__(self) -> None:
        if isinstance(self.words, str):
            raise WrongType(f"words is the string {self.words!r}; pass a list of words.")
        if self.words is not None:
            if not len(self.words):
                raise OutOfRange("words is an empty list; pass some words, or None for the package's lists.")
            self.words = sorted(set(self.words))
        if self.spans is not None:
            self.spans = {int(n): [(int(a), int(b)) for a, b in pairs] for n, pairs in self.spans.items()}
        check_draws(self.bootstrap)
        check_draws(self.permutations, "permutations")

    @classmethod
    def example(cls) -> Self:
        return cls(bootstrap=9, permutations=9)

    def check(self, source: Source) -> None:
        marked, usable = self._marked(source.corpus), ~special_tokens(source.corpus)
        if self.words is not None or self.spans is not None:
            for group, members in zip(GROUPS, (marked & usable, ~marked & usable), strict=True):
                if not members.any():
                    raise NotFitting(f"No token of the corpus is {group}; pass other texts, words or spans.")

    def update(self, batch: LayerBatch) -> None:
        index = batch.by_token(batch.top_k_index)  # (tokens, subtokens, k)
        if batch.layer.subtokens == 1:
            self.index.add(batch, index[:, 0])
        else:
            self.divergence.add(batch, distinct(index.reshape(len(index), -1)))
            self.divergence_first.add(batch, distinct(batch.by_token(batch.first_choice)))

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        corpus, per_token = source.corpus, self._per_token(source)
        divergence = per_token["divergence"].astype(float)
        marked, usable = self._marked(corpus), self._usable(corpus, divergence)
        groups = np.stack([marked & usable, ~marked & usable])
        variables: dict[str, tuple[tuple[str, ...], Any]] = {n: (("layer", "token"), v) for n, v in per_token.items()}
        variables["divergence_mean"] = (("token",), divergence.mean(0))
        variables |= self._compare(divergence, groups, corpus)
        names = np.select([~usable, marked], ["", GROUPS[0]], GROUPS[1])
        coords = {"layer": list(source.layers), "group": GROUPS, "token_group": ("token", names)}
        return labeled(variables, coords)

    def _per_token(self, source: Source) -> dict[str, np.ndarray]:
        """Distinct experts of each token, (layers, tokens), float32."""
        if not self.index:
            states = {"divergence": self.divergence, "divergence_first": self.divergence_first}
            return {name: table.array.values.astype(np.float32) for name, table in states.items()}
        ids, experts = source.corpus.tokens().token_id, source.first_layer.num_experts
        by_layer = [_between_occurrences(index, ids, experts) for index in self.index.array.values]
        return {"divergence": np.stack(by_layer).astype(np.float32)}

    def _usable(self, corpus: Corpus, divergence: np.ndarray) -> np.ndarray:
        return ~special_tokens(corpus) & ~np.isnan(divergence).any(0)

    def notes(self, source: Source) -> Mapping[str, Any]:
        parts = source.first_layer.subtokens
        return {"unit": f"{parts} sub-tokens" if parts > 1 else "two occurrences"}

    def _marked(self, corpus: Corpus) -> np.ndarray:
        marked = np.zeros(corpus.num_tokens, dtype=bool)
        if self.words is not None or self.spans is None:
            words = self.words if self.words is not None else [word for name in LISTS for word in word_list(name)]
            marked |= tokens_of_words(corpus, words)
        return marked if self.spans is None else marked | tokens_of_spans(corpus, self.spans)

    def _compare(
        self, divergence: np.ndarray, groups: np.ndarray, corpus: Corpus
    ) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Variables that compare the two groups (2, tokens) of divergences (layers, tokens)."""
        values = np.where(groups.any(0), divergence, 0).T  # (tokens, layers)
        units = [corpus.tokens().unit] if self.spans is not None else [_word_types(corpus), corpus.tokens().unit]
        ways = [_sums(values, groups, unit) for unit in (*units, _cells(units))]
        sums = ways[0]
        whole = {name: value.sum(0) for name, value in sums.items()}
        mean = _group_means(whole)
        ends = {"": _difference(whole)}
        if self.bootstrap:
            one_way = len(units) == 1
            ends["_low"], ends["_high"] = (
                interval(_difference, sums, self.bootstrap) if one_way else crossed_interval(_difference, ways)
            )
        if self.permutations:
            null = self._permuted(values, groups, corpus)
            ends["_chance"] = null.mean(0)
            ends["_chance_low"], ends["_chance_high"] = np.quantile(null, [0.025, 0.975], axis=0)
        test = _by_document(sums) if len(units) == 1 else _by_type(sums)
        return {
            "group_mean": (("group",), mean.mean(1)),
            "layer_mean": (("layer", "group"), mean.T),
            "tokens": (("group",), groups.sum(1)),
            **{f"layer_difference{ending}": (("layer",), value[:-1]) for ending, value in ends.items()},
            **{f"difference{ending}": ((), value[-1]) for ending, value in ends.items()},
            **{name: ((), np.asarray(value)) for name, value in test.items()},
        }

    def _permuted(self, values: np.ndarray, groups: np.ndarray, corpus: Corpus) -> np.ndarray:
        """Differences (permutations, layers + 1) with permuted marks."""
        usable = groups.any(0)
        units = (_word_types if self.spans is None else _in_order_of_content)(corpus)[usable]
        total, count = sums_over(values[usable], units), sums_over(np.ones(usable.sum()), units)
        marks = sums_over(groups[0][usable].astype(float), units) > 0
        generator = np.random.default_rng(0)
        null = []
        for _ in range(self.permutations):
            dealt = generator.permutation(marks)
            sums = {"total": np.stack([total[dealt].sum(0), total[~dealt].sum(0)])}
            sums["count"] = np.stack([count[dealt].sum(), count[~dealt].sum()])
            null.append(_difference(sums))
        return np.stack(null)


def _group_means(sums: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean divergence of both groups in each layer, (..., group, layers)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums["total"] / sums["count"][..., None]


def _difference(sums: Mapping[str, np.ndarray]) -> np.ndarray:
    """Difference of the groups' means in each layer, and of the averages over layers as the last, (..., layers + 1)."""
    mean = _group_means(sums)
    by_layer = mean[..., 0, :] - mean[..., 1, :]
    return np.concatenate([by_layer, by_layer.mean(-1, keepdims=True)], axis=-1)


def _sums(values: np.ndarray, groups: np.ndarray, unit: np.ndarray) -> dict[str, np.ndarray]:
    """Sums of divergences (units, group, layers) and of tokens (units, group), from values (tokens, layers)."""
    return {
        "total": sums_over(groups.T[:, :, None] * values[:, None], unit),
        "count": sums_over(groups.T.astype(float), unit),
    }


def _cells(units: Sequence[np.ndarray]) -> np.ndarray:
    """A number for each combination of units, (tokens,)."""
    return np.unique(np.stack(units), axis=1, return_inverse=True)[1].ravel()


def _means(sums: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean divergence of each unit and group over tokens and layers, (units, group); nan without tokens."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums["total"].mean(2) / sums["count"]


def _by_type(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mann and Whitney's test of the means of word types, each of which is in one group."""
    marked, others = (column[~np.isnan(column)] for column in _means(sums).T)
    if not len(marked) or not len(others):
        return dict.fromkeys(("u_statistic", "p_value", "superiority"), np.nan)
    test: Any = mannwhitneyu(marked, others)
    superiority = test.statistic / (len(marked) * len(others))
    return {"u_statistic": test.statistic, "p_value": test.pvalue, "superiority": superiority}


def _by_document(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Wilcoxon's test of the documents' differences of both groups' means."""
    away = np.subtract(*_means(sums).T)
    away = away[~np.isnan(away)]
    if not away.any():
        return dict.fromkeys(("u_statistic", "p_value", "superiority"), np.nan)
    test: Any = wilcoxon(away)
    return {
        "u_statistic": test.statistic,
        "p_value": test.pvalue,
        "superiority": ((away > 0) + 0.5 * (away == 0)).mean(),
    }


def distinct(index: np.ndarray) -> np.ndarray:
    """Number of distinct values in each row, (n, m) to (n,)."""
    ordered = np.sort(index, axis=1)
    return (1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)).astype(np.int16)


def _between_occurrences(index: np.ndarray, token_id: np.ndarray, experts: int) -> np.ndarray:
    """Mean size of the union of a token's top-k set with those of the other occurrences of its id, (tokens,)."""
    unique, inverse, count = np.unique(token_id, return_inverse=True, return_counts=True)
    chosen = np.zeros((len(unique), experts), np.int64)
    np.add.at(chosen, (inverse[:, None], index), 1)
    others = chosen[inverse[:, None], index].sum(1) - index.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2 * index.shape[1] - others / (count[inverse] - 1)


def _word_types(corpus: Corpus) -> np.ndarray:
    """A number for each word type, the same for all of its tokens; tokens of no word by their ids, below 0.

    Types are numbered in alphabetical order, so that the order of documents does not matter.
    """
    words_of = [find_words(document) for document in corpus.documents]
    types_of = [[normal_form(word) for word in words.texts] for words in words_of]
    numbers = {name: number for number, name in enumerate(sorted({name for types in types_of for name in types}))}
    parts = []
    for document, words, types in zip(corpus.documents, words_of, types_of, strict=True):
        number = np.array([numbers[name] for name in types] + [0])
        negative_ids = -1 - np.asarray(document.ids)
        parts.append(np.where(words.of_token >= 0, number[words.of_token], negative_ids))
    return np.concatenate(parts).astype(np.int64)


def _in_order_of_content(corpus: Corpus) -> np.ndarray:
    """A number for each token, ascending by unit, position and id, whatever the order of documents is."""
    tokens = corpus.tokens()
    number = np.empty(len(tokens), np.int64)
    number[np.lexsort((tokens.token_id, tokens.position, tokens.unit))] = np.arange(len(tokens))
    return number
