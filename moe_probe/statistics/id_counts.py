"""Dependence of expert choices on token ids, from sparse counts by groups of documents."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import chi2

from moe_probe.statistics.tallies import Counts

BLOCKS = 256  # groups of documents by which token ids are counted


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the first dimension without nan; nan if all values are."""
    known = ~np.isnan(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)


def two_sided(value: np.ndarray, variance: np.ndarray, degrees: float) -> np.ndarray:
    """Two-sided p-values of sums that follow a chi-squared distribution, shifted to mean 0 and scaled."""
    with np.errstate(divide="ignore", invalid="ignore"):
        standard = np.asarray(value / np.sqrt(variance))
    above = chi2.sf(degrees + standard * np.sqrt(2 * degrees), degrees) if degrees else np.nan * standard
    return np.minimum(2 * np.minimum(above, 1 - above), 1)


class IdCounts:
    """Sparse counts of the selected ids: n_x, n_xe and first choices f_xe, each by block of documents."""

    def __init__(self, ids: np.ndarray, rows: Counts, chosen: Counts, first: Counts, experts: int):
        self.ids, self.experts = ids, experts
        self.rows, _, self.row_id = self._sparse(rows, 1)
        self.chosen, self.chosen_expert, self.chosen_id = self._sparse(chosen, experts)
        self.first, self.first_expert, self.first_id = self._sparse(first, experts)

    def _sparse(self, tally: Counts, experts: int) -> tuple[csr_array, np.ndarray, np.ndarray]:
        """Counts (pairs of id and expert, blocks), and each pair's expert and index into `ids`."""
        keys, counts = tally.keys, tally.counts
        row, expert = keys // experts, keys % experts
        wanted = np.isin(row // BLOCKS, self.ids)
        row, expert, counts = row[wanted], expert[wanted], counts[wanted]
        pairs, of_key = np.unique(row // BLOCKS * experts + expert, return_inverse=True)
        matrix = csr_array((counts.astype(float), (of_key, row % BLOCKS)), shape=(len(pairs), BLOCKS))
        return matrix, pairs % experts, np.searchsorted(self.ids, pairs // experts)

    def statistics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Values (..., n) over the documents that each of n 0/1 weightings (blocks, n) selects; no replacement."""
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
            chosen_at: of pairs of id and expert, the first position at which the expert was among the choices.
            first_at: of pairs of id and expert, the first position at which it was the first choice.
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
        """Context independence () and specialization (E,) with choices permuted among the tokens of each block.

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

        If the token does not matter, products of two occurrences' deviations from their documents' shares have mean 0
        and are uncorrelated; the distribution of their sum has the shape of chi-squared.
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
        """Sums over ids of products of pairs' deviations from their blocks' shares, and their variances, (E,)."""
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
        """Occurrences of each id in each block, less those that the block's fixed choices determine, (ids, blocks)."""
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
        """Contribution of each block of documents to each value: choices (blocks, E), occurrences (blocks,)."""
        chosen = self._by_expert(self.chosen_expert, self.chosen.toarray()[:, used]).T
        occurrences = np.asarray(self.rows.sum(0)).ravel()[used]
        every = {"vocabulary_mean": occurrences, "context_independence": occurrences}
        return {"vocabulary_specialization": chosen, **every}

    def _by_expert(self, expert: np.ndarray, values: np.ndarray) -> np.ndarray:
        total = np.zeros((self.experts, values.shape[1]))
        np.add.at(total, expert, values)
        return total
