"""What pruning by scores costs: against single effects, and which experts go."""

import numpy as np
import pytest
from conftest import FIXTURES

import moe_probe
from moe_probe import dynamic, intervene, pruning
from moe_probe.errors import InputError, NotComparable, NotFitting, NothingToRead
from moe_probe.pruning.selecting import lowest

FOLDER = FIXTURES / "mixtral" / "checkpoint"
GROUPED = FIXTURES / "interventions" / "deepseek_v3" / "checkpoint"
CALIBRATION = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16]]
EVALUATION = [[20 + n, 31, 22 + 2 * n, 17, 9 + n, 40] for n in range(6)]
QUIET = {"progress": False, "bootstrap": 0}


@pytest.fixture(scope="module")
def scores():
    return pruning.scores(FOLDER, CALIBRATION, ["ean", "aimer"], progress=False)


def test_each_point_is_the_effect_of_the_masks(scores):
    ds = pruning.curve(FOLDER, scores, EVALUATION, [0, 0.25, 0.5], random=2, labels=["a", "b"] * 3, **QUIET)
    value = {"ean": scores.value.sel(score="ean"), "aimer": -scores.value.sel(score="aimer")}
    for score, own in value.items():
        masks = [
            intervene.Mask(int(layer), np.argsort(own.sel(layer=layer).values)[:2].tolist())
            for layer in own.layer.values
        ]
        alone = intervene.effect(FOLDER, EVALUATION, {"pruned": masks}, **QUIET)
        point = ds.sel(order=score, fraction=0.25)
        assert np.isclose(point.loss_change, alone.mean_loss_change.item(), atol=1e-6)
        assert np.isclose(point.kl, alone.kl.mean().item(), atol=1e-6)
        assert np.isclose(point.top1, alone.top1.mean().item())
        by_label = alone.loss_change[0, 0].values.reshape(3, 2).mean(0)
        np.testing.assert_allclose(point.label_loss_change, by_label, atol=1e-6)
    assert ds.order.values.tolist() == ["ean", "aimer", "random 0", "random 1"]
    assert (ds.pruned.values == [0, 8, 16]).all()
    assert (ds.sel(fraction=0).loss_change == 0).all()
    assert (ds.sel(fraction=0).top1 == 1).all()


def test_texts_that_scores_were_computed_from_are_refused(scores):
    with pytest.raises(NotFitting, match="1 of 2 documents, such as number 1"):
        pruning.curve(FOLDER, scores, [[1, 2, 3], CALIBRATION[0]], **QUIET)


def test_the_lowest_of_the_model_leave_top_k_in_every_layer():
    model = moe_probe.load(FOLDER)
    values = {layer: np.arange(8.0) + 100 * layer for layer in model.moe_layers}
    found = lowest(model, values, 0.5, "model")
    assert [len(found.get(layer, ())) for layer in values] == [6, 6, 4, 0]
    values[3][5] = -np.inf
    assert found | {2: (0, 1, 2), 3: (5,)} == lowest(model, values, 0.5, "model")
    with pytest.raises(NotFitting, match="can spare 6"):
        lowest(model, values, 0.9, "layer")
    with pytest.raises(NotFitting, match="can spare 24"):
        lowest(model, values, 0.9, "model")


def test_experts_that_none_chose_go_first(scores):
    few = pruning.scores(FOLDER, [[5, 6]], ["reap"], progress=False)
    ds = pruning.curve(FOLDER, few, EVALUATION, [0.125], random=0, **QUIET)
    masks = [intervene.Mask(layer, [int(np.flatnonzero(few.chosen.sel(layer=layer) == 0)[0])]) for layer in range(4)]
    alone = intervene.effect(FOLDER, EVALUATION, {"pruned": masks}, **QUIET)
    assert np.isclose(ds.loss_change.item(), alone.mean_loss_change.item(), atol=1e-6)


def test_a_grouped_router_is_pruned_by_its_own_rules():
    scores = pruning.scores(GROUPED, CALIBRATION, ["reap"], progress=False)
    ds = pruning.curve(GROUPED, scores, EVALUATION, [0.25], per="model", random=1, **QUIET)
    assert np.isfinite(ds.loss_change).all()
    assert (ds.pruned == 6).all()


def test_what_cannot_be_pruned_is_refused(scores):
    with pytest.raises(NotComparable, match="another model"):
        pruning.curve(GROUPED, scores, EVALUATION, **QUIET)
    for wrong in (
        {"fractions": [1.0]},
        {"fractions": [-0.1]},
        {"fractions": [0.01]},
        {"per": "expert"},
        {"random": -1},
    ):
        with pytest.raises(InputError):
            pruning.curve(FOLDER, scores, EVALUATION, **({"random": 0} | wrong), **QUIET)
    unknown = scores.copy(deep=True)
    unknown.value[:, 0, 3] = np.nan
    with pytest.raises(NotFitting, match="No score of ean, aimer has a value for every expert"):
        pruning.curve(FOLDER, unknown, EVALUATION, **QUIET)


def test_halves_share_no_document_and_do_not_depend_on_the_order():
    model = moe_probe.load(FOLDER)
    texts = [*EVALUATION, EVALUATION[0], *CALIBRATION]
    labels = ["a"] * 7 + ["b"] * 2
    corpus = dynamic.make_corpus(model, texts, labels=labels)
    one, other = pruning.halves(corpus)
    assert not {document.ids for document in one.documents} & {document.ids for document in other.documents}
    assert len(one.documents) + len(other.documents) == len(texts)
    assert [sum(each.label == "b" for each in half.documents) for half in (one, other)] == [1, 1]
    turned = pruning.halves(dynamic.make_corpus(model, texts[::-1], labels=labels[::-1]))[0]
    assert {document.ids for document in turned.documents} == {document.ids for document in one.documents}
    with pytest.raises(NothingToRead, match="single document"):
        pruning.halves(dynamic.make_corpus(model, [[5, 6], [5, 6]]))


def test_a_score_without_all_values_is_left_out_with_a_warning(scores):
    unknown = scores.copy(deep=True)
    unknown.value[0, 0, 3] = np.nan
    with pytest.warns(UserWarning, match="Skipping ean"):
        ds = pruning.curve(FOLDER, unknown, EVALUATION, [0.25], random=0, **QUIET)
    assert ds.order.values.tolist() == ["aimer"]
