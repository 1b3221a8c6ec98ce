"""Groups of experts that are alike, and what merging them costs."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import load_file, save_file
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from test_scores import FOLDERS, documents
from test_scores_from_records import recorded

import moe_probe
from moe_probe import intervene, pruning
from moe_probe.errors import Damaged, NotComparable, NotFitting, OutOfRange, WrongType
from moe_probe.pruning.clusters import dominated, linked

FOLDER = FOLDERS["mixtral"]
HELD_OUT = [[20 + n, 31, 22 + 2 * n, 17, 9 + n, 40] for n in range(6)]
QUIET = {"progress": False, "bootstrap": 0}
PAIRS = ((0, 5), (1, 3), (2, 7), (4, 6))


def as_sets(groups):
    return {frozenset(group) for group in groups}


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """tiny Mixtral whose experts are equal in pairs, a thousandth of noise apart; routers as they were."""
    folder = tmp_path_factory.mktemp("paired") / "checkpoint"
    shutil.copytree(FOLDER, folder)
    torch.manual_seed(0)
    for file in folder.glob("*.safetensors"):
        tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
        for name in list(tensors):
            for first, second in PAIRS:
                if f".experts.{second}." in name:
                    like = tensors[name.replace(f".experts.{second}.", f".experts.{first}.")]
                    tensors[name] = like + 1e-4 * like.std() * torch.randn_like(like)
        save_file(tensors, file)
    return folder


@pytest.mark.parametrize("by", ["output", "routed_output", "weight"])
@pytest.mark.parametrize("method", ["average", "complete", "single"])
def test_experts_that_are_all_but_equal_are_found(paired, by, method):
    result = pruning.groups(paired, documents("mixtral"), 4, by=by, method=method, progress=False)
    assert all(as_sets(groups) == as_sets(PAIRS) for groups in result.groups.values())


def test_merging_equals_costs_nothing_where_pruning_costs(paired):
    calibration = documents("mixtral")
    result = pruning.groups(paired, calibration, 4, by="weight", progress=False)
    scores = pruning.scores(paired, calibration, ["frequency"], progress=False)
    ds = pruning.merging(paired, result, HELD_OUT, scores=scores, random=1, **QUIET)
    merged = ["usage", "equal", "usage aligned", "equal aligned"]
    assert (np.abs(ds.loss_change.sel(way=merged)) < 1e-4).all()
    assert (np.abs(ds.loss_change.drop_sel(way=merged)) > 1e-3).all()
    assert ds.experts_left.item() == 16


@pytest.mark.parametrize("execution", ["resident", "layerwise"])
def test_mean_outputs_are_clustered_as_by_scipy(execution):
    _, outputs, chosen = recorded("mixtral")
    result = pruning.groups(FOLDER, documents("mixtral"), 3, progress=False, execution=execution)
    for place, layer in enumerate(result.groups):
        labels = fcluster(linkage(pdist(outputs[place].mean(0)), "average"), 3, "maxclust")
        expected = {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels)}
        assert as_sets(result.groups[layer]) == expected
        assert result.usage[layer] == tuple(chosen[place].sum(0).tolist())
        for group in result.groups[layer]:
            counts = [result.usage[layer][expert] for expert in group]
            assert counts == sorted(counts, reverse=True)


def test_so_many_groups_are_made_where_distances_are_equal_too():
    flat = np.ones((6, 6)) - np.eye(6)
    for count in range(1, 7):
        groups = linked(flat, count, "average")
        assert len(groups) == count
        assert sorted(sum(groups, ())) == list(range(6))


def test_dominant_experts_are_the_most_used_of_the_model_and_one_of_each_layer():
    usage = {0: np.array([9.0, 1, 8, 2]), 1: np.array([1.0, 1, 1, 5])}
    distance = np.array([[0, 1, 5, 2], [1, 0, 2, 3], [5, 2, 0, 1], [2, 3, 1, 0.0]])
    result = dominated({0: distance, 1: distance}, usage, 2)
    # scaled by each layer's largest: 1, .11, .89, .22 and .2, .2, .2, 1: the four largest are 0, 2, 3 and 3
    assert sum(map(len, result.values())) == 4
    assert as_sets(result[0]) == {frozenset({0, 1}), frozenset({2}), frozenset({3})}


def test_shares_weight_the_average(tmp_path):
    folder = tmp_path / "averaged"
    shutil.copytree(FOLDER, folder)
    for file in folder.glob("*.safetensors"):
        tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
        for name in [name for name in tensors if ".layers.1." in name and ".experts.2." in name]:
            other = name.replace(".experts.2.", ".experts.4.")
            tensors[name] = 0.75 * tensors[name] + 0.25 * tensors[other]
            tensors[other] = tensors[name].clone()
        save_file(tensors, file)
    merge = intervene.Merge(1, [[2, 4]], shares=[[3, 1]])
    edited = intervene.effect(FOLDER, HELD_OUT, {"merged": [merge]}, **QUIET)
    base = intervene.effect(FOLDER, HELD_OUT, {"merged": [intervene.Merge(1, [[2, 4]])]}, **QUIET)
    model = moe_probe.load(folder, dtype=torch.float32)
    expected = intervene.effect(model, HELD_OUT, {"nothing": [intervene.Scale(1, [0], 1.0)]}, **QUIET)
    np.testing.assert_allclose(edited.loss.values.ravel(), expected.loss.values.ravel(), atol=2e-6)
    assert np.abs(base.loss - edited.loss).max() > 1e-4


@pytest.mark.parametrize(
    ("shares", "says"),
    [([[1]], "at least 0 for each"), ([[-1, 2]], "at least 0"), ([[1, 1], [1, 1]], "shares of 2 groups")],
)
def test_shares_that_do_not_fit_are_refused(shares, says):
    with pytest.raises(NotFitting, match=says):
        moe_probe.load(FOLDER).under(intervene.Merge(1, [[2, 4]], shares=shares))


def test_each_way_is_the_effect_of_its_interventions():
    calibration = documents("mixtral")
    several = {
        "outputs": pruning.groups(FOLDER, calibration, 6, progress=False),
        "logits": pruning.groups(FOLDER, calibration, 6, by="router_logit", method="dominant", progress=False),
    }
    ds = pruning.merging(FOLDER, several, HELD_OUT, random=1, labels=["a", "b"] * 3, **QUIET)
    for name, groups in several.items():
        for average in ("usage", "equal"):
            alone = intervene.effect(FOLDER, HELD_OUT, {"merged": groups.merges(average)}, **QUIET)
            point = ds.sel(groups=name, way=average)
            assert np.isclose(point.loss_change, alone.mean_loss_change.item(), atol=1e-6)
            by_label = alone.loss_change[0, 0].values.reshape(3, 2).mean(0)
            np.testing.assert_allclose(point.label_loss_change, by_label, atol=1e-6)
    assert ds.experts_left.values.tolist() == [24, 24]


def test_groups_are_saved_and_opened(tmp_path):
    result = pruning.groups(FOLDER, documents("mixtral"), 5, progress=False)
    path = result.save(tmp_path / "groups.json")
    assert pruning.read_groups(path) == result
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"by": "names"}))
    with pytest.raises(Damaged, match="by 'names'"):
        pruning.read_groups(path)
    content["groups"]["1"][0].append(3)
    path.write_text(json.dumps(content))
    with pytest.raises(Damaged, match="layer 1"):
        pruning.read_groups(path)


def test_what_cannot_be_grouped_or_merged_is_refused():
    texts = documents("mixtral")
    with pytest.raises(OutOfRange, match="8 experts"):
        pruning.groups(FOLDER, texts, 9, progress=False)
    with pytest.raises(NotFitting, match="without matrices"):
        pruning.groups(FIXTURES / "moe_plus_plus" / "checkpoint", texts, 4, progress=False)
    with pytest.raises(NotFitting, match="cannot be compared by='routed_output'"):
        pruning.groups(FOLDER, [[5, 6]], 4, by="routed_output", progress=False)
    result = pruning.groups(FOLDER, texts, 4, progress=False)
    with pytest.raises(NotFitting, match="are among those"):
        pruning.merging(FOLDER, result, texts, **QUIET)
    with pytest.raises(NotComparable, match="compute them for it"):
        pruning.merging(FOLDERS["qwen3_moe"], result, HELD_OUT, **QUIET)
    with pytest.raises(WrongType, match=r"result of pruning\.groups"):
        pruning.merging(FOLDER, 4, HELD_OUT, **QUIET)
