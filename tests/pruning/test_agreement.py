"""How far scores foretell ablation: against scipy, and on cases whose answer is known."""

import numpy as np
import pytest
import xarray as xr
from conftest import FIXTURES
from scipy.stats import spearmanr

import moe_probe
from moe_probe import intervene, pruning
from moe_probe.errors import NotComparable, OutOfRange, WrongType

FOLDER = FIXTURES / "mixtral" / "checkpoint"
CALIBRATION = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16]]
EVALUATION = [[20 + n, 31, 22 + 2 * n, 17, 9 + n, 40] for n in range(7)]


@pytest.fixture(scope="module")
def scores():
    return pruning.scores(FOLDER, CALIBRATION, progress=False)


@pytest.fixture(scope="module")
def ablation():
    return intervene.ablate(FOLDER, EVALUATION, by_unit=True, bootstrap=0, progress=False)


def test_rank_correlations_are_those_of_scipy(scores, ablation):
    ds = pruning.agreement(scores, ablation, bootstrap=0)
    truth = ablation.loss_change.sel(path="total").values
    never = scores.chosen.values == 0
    for score in ("frequency", "reap", "gate_norm", "aimer"):
        value = scores.value.sel(score=score).values * (1 if score != "aimer" else -1)
        value = np.where(never & np.isnan(value), -1e9, value)
        by_layer = [spearmanr(*pair).statistic for pair in zip(value, truth, strict=True)]
        np.testing.assert_allclose(ds.rank_correlation.sel(score=score), by_layer, atol=1e-12)
        np.testing.assert_allclose(ds.mean_rank_correlation.sel(score=score), np.mean(by_layer), atol=1e-12)
        whole = spearmanr(value.ravel(), truth.ravel()).statistic
        np.testing.assert_allclose(ds.model_rank_correlation.sel(score=score), whole, atol=1e-12)
    assert ds.attrs["same_texts"] == "no"


def test_the_truth_as_a_score_agrees_with_itself(scores, ablation):
    ds = pruning.agreement(told(scores, ablation.loss_change.sel(path="total", drop=True)), ablation, bootstrap=50)
    assert np.allclose(ds.rank_correlation, 1)
    assert (ds.overlap == 1).all()
    assert (ds.model_overlap == 1).all()
    assert (ds.overlap_chance == 0.25).all()
    turned = pruning.agreement(told(scores, -ablation.loss_change.sel(path="total", drop=True)), ablation, bootstrap=0)
    assert np.allclose(turned.model_rank_correlation, -1)


def told(scores, value):
    """The scores with one score alone, of these values."""
    one = scores.isel(score=[0]).copy()
    one["keep_high"] = ("score", [True])
    one["chosen"] = one.chosen + 1
    one["value"] = (("score", "layer", "expert"), value.transpose("layer", "expert").values[None])
    return one


def test_the_units_of_an_ablation_add_up_to_its_changes(ablation):
    pooled = ablation.unit_loss_change.sum("unit") / ablation.unit_tokens.sum("unit")
    np.testing.assert_allclose(pooled.transpose(*ablation.loss_change.dims), ablation.loss_change, atol=1e-12)
    assert ablation.sizes["unit"] == len(EVALUATION)
    assert int(ablation.unit_tokens.sum()) == sum(len(each) - 1 for each in EVALUATION)


def test_intervals_are_over_the_documents_of_the_ablation(scores, ablation):
    ds = pruning.agreement(scores.sel(score=["ean", "aimer"]), ablation, bootstrap=200)
    for name in ("rank_correlation", "mean_rank_correlation", "model_rank_correlation"):
        assert (ds[f"{name}_low"] <= ds[f"{name}_high"]).all()
        assert (ds[f"{name}_high"] <= 1).all()
    few = intervene.ablate(FOLDER, EVALUATION[:3], layers=[1], by_unit=True, bootstrap=0, progress=False)
    ds = pruning.agreement(scores.sel(score=["ean"]), few)
    assert ds.layer.values.tolist() == [1]
    assert np.isnan(ds.model_rank_correlation_low).all()


def test_ties_count_by_their_chance(scores, ablation):
    constant = told(scores, xr.ones_like(ablation.loss_change.sel(path="total", drop=True)))
    ds = pruning.agreement(constant, ablation, lowest=2, bootstrap=0)
    assert np.allclose(ds.overlap, 2 / 8)
    assert np.isnan(ds.rank_correlation).all()


def test_an_expert_that_none_chose_is_the_least_important(scores, ablation):
    value = ablation.loss_change.sel(path="total", drop=True).copy()
    value[0, :] = np.arange(8)
    value[0, 7] = np.nan
    one = told(scores, value)
    one["chosen"][0, 7] = 0
    ranks = pruning.agreement(one, ablation, bootstrap=0).rank_correlation.values[0, 0]
    expected = spearmanr([*range(7), -1], ablation.loss_change.sel(path="total").values[0]).statistic
    assert np.isclose(ranks, expected)


def test_what_does_not_belong_together_is_refused(scores, ablation):
    with pytest.raises(WrongType, match=r"pruning.scores and intervene.ablate"):
        pruning.agreement(ablation, scores)
    other = moe_probe.load(FOLDER).under(intervene.Mask(1, [3]))
    with pytest.raises(NotComparable, match="different models"):
        pruning.agreement(pruning.scores(other, CALIBRATION, "ean", progress=False), ablation)
    with pytest.raises(OutOfRange, match="lowest"):
        pruning.agreement(scores, ablation, lowest=9)
