"""Expert scores against values from a float64 block that is written out by hand, for three kinds of routers."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from joblib import parallel_config
from safetensors.torch import load_file

import moe_probe
from moe_probe import intervene, pruning
from moe_probe.errors import InputError, NotComparable
from moe_probe.results import load_result, save

GOLDEN = FIXTURES / "interventions"
FOLDERS = {
    "mixtral": FIXTURES / "mixtral" / "checkpoint",
    "qwen3_moe": GOLDEN / "qwen3_moe" / "checkpoint",
    "deepseek_v3": GOLDEN / "deepseek_v3" / "checkpoint",
}


def documents(name):
    return json.loads((GOLDEN / name / "cases.json").read_text())["documents"]


@cache
def expected(name):
    return {key: value.numpy() for key, value in load_file(GOLDEN / name / "scores.safetensors").items()}


@cache
def found(name, how, live=False):
    model = moe_probe.load(FOLDERS[name])
    model = moe_probe.load(model.module) if live else model
    return pruning.scores(model, documents(name), execution=how, progress=False, batch_tokens=40)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize(("how", "live"), [("resident", False), ("layerwise", False), ("resident", True)])
def test_every_score_has_its_golden_value(name, how, live):
    ds = found(name, how, live)
    for score, golden in expected(name).items():
        np.testing.assert_allclose(ds.value.sel(score=score), golden, rtol=1e-4, atol=1e-6, err_msg=score)


@pytest.mark.parametrize("name", FOLDERS)
def test_sums_divided_by_counts_are_the_means(name):
    ds = found(name, "resident")
    one = {score: ds.value.sel(score=score).values for score in ds.score.values.tolist()}
    chosen = ds.chosen.values
    np.testing.assert_allclose(one["weight_mean"] * chosen, one["weight_sum"], rtol=1e-12)
    np.testing.assert_allclose(one["reap"] * chosen, one["weighted_ean"], rtol=1e-12)
    np.testing.assert_allclose(one["frequency"] * sum(map(len, documents(name))), chosen, rtol=1e-12)


def test_the_published_form_of_reap_is_that_of_softmax_routers_alone():
    """Raw softmax weights are REAP where the router does not renormalize; a router of sigmoids chooses otherwise."""
    ds = found("deepseek_v3", "resident")
    one, other = (ds.value.sel(score=score).values for score in ("reap", "reap_as_published"))
    assert not np.allclose(one, other, equal_nan=True)
    config = {"norm_topk_prob": False}
    plain = moe_probe.load(FOLDERS["qwen3_moe"], config=config)
    names = ["reap", "reap_as_published"]
    ds = pruning.scores(plain, documents("qwen3_moe"), names, progress=False)
    np.testing.assert_allclose(ds.value[0], ds.value[1], rtol=1e-6)


def test_an_expert_that_is_never_chosen_has_sums_of_zero_and_means_of_nan():
    ds = found_in(FOLDERS["mixtral"], [[5, 6]])
    none = ds.chosen.values == 0
    assert none.any()
    for score in ("man", "msan", "reap", "ean_ca", "max_activation", "weight_mean"):
        assert (np.isnan(ds.value.sel(score=score).values) == none).all(), score
    for score in ("frequency", "ean", "weighted_ean", "soft_count", "easy_ep", "naee_single"):
        assert (ds.value.sel(score=score).values[none] == 0).all(), score
    assert "no row chose" in ds.value.attrs["undefined"]


def found_in(model, texts, names="all", **options):
    return pruning.scores(model, texts, names, progress=False, **options)


def test_domains_are_mixed_by_their_shares_of_the_layer():
    texts = documents("qwen3_moe")
    labels = ["a", "b", "a"]
    mixed = found_in(FOLDERS["qwen3_moe"], texts, ["easy_ep_mixed"], labels=labels).value[0]
    of = {label: [text for text, own in zip(texts, labels, strict=True) if own == label] for label in "ab"}
    plain = [found_in(FOLDERS["qwen3_moe"], own, ["easy_ep"]).value[0] for own in of.values()]
    np.testing.assert_allclose(mixed, sum(one / one.sum("expert") for one in plain), rtol=1e-6)


def test_scores_of_weights_need_no_texts():
    ds = pruning.scores(FOLDERS["mixtral"], progress=False)
    assert set(ds.score.values.tolist()) == {"aimer", "gate_norm", "weight_norm"}
    assert dict(zip(ds.score.values.tolist(), ds.keep_high.values.tolist(), strict=True))["aimer"] is False


def test_the_change_of_the_router_is_taken_from_the_base():
    base = FOLDERS["qwen3_moe"]
    ds = pruning.scores(base, names=["gate_change"], base=base, progress=False)
    assert (ds.value == 0).all()
    with pytest.raises(NotComparable, match="router of"):
        pruning.scores(base, names="gate_change", base=FOLDERS["mixtral"], progress=False)


@pytest.mark.parametrize(
    ("names", "texts", "says"),
    [
        ("reep", [[5, 6]], "reap"),
        ("reap", None, "texts"),
        ("gate_change", None, "base="),
        (["reap", "reap"], [[5, 6]], "twice"),
        ([], [[5, 6]], "names of scores"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_any_work(names, texts, says):
    with pytest.raises(InputError, match=says):
        pruning.scores(FOLDERS["mixtral"], texts, names, progress=False)


def test_a_mask_acts_on_the_scores_of_the_pass():
    model = moe_probe.load(FOLDERS["mixtral"]).under(intervene.Mask(1, [3]))
    ds = found_in(model, documents("mixtral"), ["frequency", "naee_single"])
    assert (ds.value.sel(layer=1, expert="3") == 0).all()


def test_results_are_saved_and_opened(tmp_path):
    ds = found("mixtral", "resident")
    save(ds, tmp_path / "scores.nc")
    assert load_result(tmp_path / "scores.nc").identical(ds)


def test_two_workers_find_the_same():
    with parallel_config(backend="threading"):
        two = found_in(FOLDERS["mixtral"], documents("mixtral"), n_jobs=2)
    np.testing.assert_allclose(two.value, found("mixtral", "resident").value, rtol=1e-4, atol=1e-6)


def test_the_name_of_the_folder_stays_the_function():
    pruning.names()["reap"]
    assert callable(pruning.scores)


@pytest.mark.parametrize("name", ["tiny-moe-plus-plus", "tiny-mh-moe", "tiny-deepseek-moe"])
def test_asking_for_choices_without_experts_leaves_the_pass_as_it_is(name):
    folder = Path(__file__).parents[2] / "ckpt" / name
    texts = [[5, 6, 7, 8, 9], [10, 11, 12, 13]]
    alone = found_in(folder, texts, ["weight_sum"])
    beside = found_in(folder, texts, ["weight_sum", "naee_single", "easy_ep"])
    np.testing.assert_allclose(beside.value.sel(score="weight_sum"), alone.value.sel(score="weight_sum"), rtol=1e-12)
    assert (beside.value.sel(score="naee_single").values[beside.chosen.values > 0] > 0).all()
