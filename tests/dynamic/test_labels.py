"""Shares of experts by document label, and tests of their differences."""

from itertools import combinations

import numpy as np
from scipy.stats import false_discovery_control

from moe_probe.statistics.by_label import share_tests


def test_a_p_value_is_the_share_of_assignments_of_labels_to_documents_with_a_difference_as_large():
    """All 70 ways to give four of eight documents, of unequal lengths, the first label."""
    counts = np.random.default_rng(3).poisson([[[9, 3, 2]]] * 4 + [[[7, 4, 2]]] * 4)[:, 0]  # (documents, experts)
    pooled = counts.sum(0) / counts.sum()

    def difference(chosen):
        parts = counts[list(chosen)], np.delete(counts, list(chosen), axis=0)
        return np.abs([part.sum(0) / part.sum() - pooled for part in parts])

    observed = difference(range(4))
    draws = np.array([difference(chosen) for chosen in combinations(range(8), 4)])
    exact = (draws >= observed - 1e-12).mean(0)
    p, q = share_tests({"a": counts[None, :4], "b": counts[None, 4:]}, 20_000)
    np.testing.assert_allclose(p[0], exact, atol=0.01)
    np.testing.assert_allclose(q.ravel(), false_discovery_control(p.ravel()))
    assert 0.02 < exact.min() < exact.max() < 0.95
