"""NAEE's sets of experts, against masks that are written out from a record."""

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from test_scores import FOLDERS, documents

import moe_probe
from moe_probe import dynamic, intervene, pruning
from moe_probe.errors import NotFitting, OutOfRange

opened = cache(lambda name: moe_probe.load(FOLDERS[name]))


@cache
def routed(name, layer, *masked):
    """The routed output with experts masked in that layer alone, from a record."""
    model = opened(name).under(*([intervene.Mask(layer, list(masked))] if masked else []))
    record = dynamic.record(model, documents(name), layers=[layer], progress=False)
    return record.routed_output.values.astype(float)


def distance_with_masked(name, layer, experts):
    """Frobenius norm of the routed output minus that of the model with the experts masked."""
    return np.linalg.norm(routed(name, layer) - routed(name, layer, *experts))


@pytest.mark.parametrize("name", FOLDERS)
def test_the_best_of_all_sets_is_found(name):
    model = opened(name)
    layer = model.moe_layers[-1]
    ds = pruning.naee(model, documents(name), 2, layers=[layer], progress=False)
    sets = list(combinations(range(model.layer(layer).num_experts), 2))
    distances = [distance_with_masked(name, layer, experts) for experts in sets]
    best = int(np.argmin(distances))
    assert tuple(np.flatnonzero(ds.removed[0])) == sets[best]
    np.testing.assert_allclose(ds.distance[0], distances[best], rtol=1e-4)
    assert ds.tried.item() == len(sets)
    assert ds.exact.item()
    assert ds.distance_bound.item() == ds.distance.item()


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("remove", [1, 2, 3])
def test_no_set_is_below_the_bound_of_a_greedy_search(name, remove):
    model = opened(name)
    layer = model.moe_layers[-1]
    if model.layer(layer).num_experts - remove < model.layer(layer).top_k:
        return
    options = {"layers": [layer], "progress": False}
    best = pruning.naee(model, documents(name), remove, most_sets=10_000, **options)
    greedy = pruning.naee(model, documents(name), remove, most_sets=1, **options)
    assert best.exact.item()
    assert not greedy.exact.item()
    assert 0 < greedy.distance_bound.item() <= best.distance.item() <= greedy.distance.item() * (1 + 1e-6)


def test_the_bound_is_the_distance_from_the_span_of_the_other_outputs():
    name, layer = "mixtral", 2
    record = dynamic.record(opened(name), documents(name), layers=[layer], outputs="all", progress=False)
    outputs, squares = record.output.sel(layer=layer).transpose("token", "expert", "hidden").values, np.zeros(8)
    index = record.topk_expert.sel(layer=layer).values.reshape(len(outputs), -1)
    weights = record.topk_weight.sel(layer=layer).values.reshape(len(outputs), -1)
    for row, chosen, applied in zip(outputs.astype(float), index, weights, strict=True):
        for expert, weight in zip(chosen, applied, strict=True):
            others = np.delete(row, expert, axis=0).T
            fitted = others @ np.linalg.lstsq(others, row[expert], rcond=None)[0]
            squares[expert] += weight**2 * ((row[expert] - fitted) ** 2).sum()
    ds = pruning.naee(opened(name), documents(name), 3, layers=[layer], most_sets=1, progress=False)
    expected = np.sqrt(np.sort(squares)[:3].sum() / 2)
    np.testing.assert_allclose(ds.distance_bound.item(), expected, rtol=1e-4)


def test_beyond_so_many_sets_experts_go_one_after_the_other():
    name, layer = "mixtral", 2
    ds = pruning.naee(FOLDERS[name], documents(name), 3, layers=[layer], most_sets=10, progress=False)
    gone = ()
    for _ in range(3):
        rest = [(*gone, expert) for expert in range(8) if expert not in gone]
        distances = [distance_with_masked(name, layer, experts) for experts in rest]
        gone = rest[int(np.argmin(distances))]
    assert tuple(np.flatnonzero(ds.removed[0])) == tuple(sorted(gone))
    np.testing.assert_allclose(ds.distance[0], min(distances), rtol=1e-4)
    assert ds.tried.item() == 8 + 7 + 6
    assert not ds.exact.item()


def test_one_expert_of_a_set_is_the_score_of_one():
    texts = documents("qwen3_moe")
    one = pruning.scores(FOLDERS["qwen3_moe"], texts, ["naee_single"], progress=False).value[0]
    ds = pruning.naee(FOLDERS["qwen3_moe"], texts, 1, progress=False, execution="layerwise")
    np.testing.assert_array_equal(ds.removed.values.argmax(1), one.values.argmin(1))
    np.testing.assert_allclose(ds.distance, one.min("expert"), rtol=1e-5)


def test_what_was_found_is_a_plan():
    ds = pruning.naee(FOLDERS["mixtral"], documents("mixtral"), 2, progress=False)
    plan = pruning.plan(FOLDERS["mixtral"], ds)
    assert plan.fraction == 0.25
    for row, layer in zip(ds.removed.values, ds.layer.values, strict=True):
        assert plan.kept[int(layer)] == tuple(np.flatnonzero(~row))
    with pytest.raises(NotFitting, match="omit fraction"):
        pruning.plan(FOLDERS["mixtral"], ds, 0.5)


def test_sets_that_cannot_be_spared_are_refused():
    with pytest.raises(NotFitting, match="remove fewer"):
        pruning.naee(FOLDERS["mixtral"], [[5, 6, 7]], 7, progress=False)
    with pytest.raises(OutOfRange, match="remove"):
        pruning.naee(FOLDERS["mixtral"], [[5, 6, 7]], 0, progress=False)
