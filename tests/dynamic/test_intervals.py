"""Intervals over units of statistics that are smooth, and of those that change in steps."""

import numpy as np
from scipy.stats import rankdata

from moe_probe.statistics.bootstrap import interval


def mean(total):
    return total["hits"] / total["rows"]


def test_the_interval_of_a_mean_is_the_same_whether_units_are_left_out_or_added():
    hits = np.random.default_rng(0).normal(size=(12, 3))
    sums = {"hits": hits, "rows": np.ones((12, 1))}
    np.testing.assert_allclose(interval(mean, sums, in_steps=True), interval(mean, sums), rtol=1e-9)


def test_the_interval_of_a_rank_correlation_is_as_wide_as_it_varies():
    """Forty units, of which leaving out one moves few ranks, and those by a whole step."""
    generator = np.random.default_rng(1)
    truth = generator.normal(size=48)
    fixed = rankdata(truth + generator.normal(size=48)) - 24.5

    def correlation(total):
        ranks = rankdata(total["value"], axis=-1) - 24.5
        return ranks @ fixed / (fixed @ fixed)

    drawn = [truth + 0.1 * generator.normal(size=(40, 48)) for _ in range(60)]
    varies = 2 * 1.96 * np.std([correlation({"value": one.mean(0)}) for one in drawn])
    widths = {
        in_steps: np.mean(
            [np.diff(interval(correlation, {"value": one}, 200, in_steps=in_steps), axis=0) for one in drawn]
        )
        for in_steps in (False, True)
    }
    assert 0.9 * varies < widths[True] < 1.3 * varies
    assert widths[False] > 1.5 * varies
