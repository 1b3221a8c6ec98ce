"""The static analyses against the values of the paper's own notebooks (arXiv 2406.18219) on tiny checkpoints."""

import numpy as np
import pytest
import torch

from moe_probe import static
from moe_probe.static.alignment import align

FAMILIES = ["mixtral", "deepseek", "grok"]


@pytest.fixture(params=FAMILIES)
def case(request, golden):
    """Family name, model, baseline, and a function that looks golden values up."""
    model = request.getfixturevalue(request.param)
    baseline = request.getfixturevalue("mistral") if request.param == "mixtral" else None
    return request.param, model, baseline, lambda key: golden[f"{request.param}.{key}"].numpy()


def by_layer(dataset, variable, value, name, tolerance):
    for layer in dataset.layer.values:
        for projection in dataset.projection.values:
            found = dataset[variable].sel(layer=layer, projection=projection).values
            np.testing.assert_allclose(found, value(f"{name}.{layer}.{projection}"), atol=tolerance, rtol=0)


def test_matrix_similarity_is_the_papers(case):
    _, model, baseline, value = case
    by_layer(static.similarity(model, baseline=baseline), "cosine", value, "matrix_sim", 1e-5)


def test_neuron_mean_similarity_is_the_papers_with_baseline_or_shared_block(case):
    family, model, baseline, value = case
    found = static.similarity(model, "neuron_mean", baseline=baseline, shared=family == "deepseek")
    assert found.expert.values[-1] == {"mixtral": "F", "deepseek": "S", "grok": "7"}[family]
    by_layer(found, "cosine", value, "neuron_avg_sim", 1e-5)


def test_aligned_similarity_and_order_are_the_papers(case):
    family, model, baseline, value = case
    layers = model.moe_layers[:1] if family == "deepseek" else model.moe_layers
    found = static.similarity(model, "neuron_aligned", baseline=baseline, layers=layers)
    by_layer(found, "cosine", value, "reorder_sim", 1e-5)
    by_layer(found, "kendall_tau", value, "reorder_tau", 1e-9)


def test_alignment_permutes_as_the_paper_does(mixtral, golden):
    first, second = (mixtral.expert_weight(0, e, "up").float() for e in (0, 1))
    np.testing.assert_array_equal(align(first, second).permutation, golden["mixtral.reorder_perm.0.up"][0].numpy())


def test_gate_similarity_is_the_papers(case):
    _, model, _, value = case
    found = static.gate_similarity(model)
    for layer in model.moe_layers:
        np.testing.assert_allclose(found.cosine.sel(layer=layer), value(f"gate_sim.{layer}"), atol=1e-5)


def test_gate_regression_is_the_papers_table(case):
    _, model, _, value = case
    found = static.gate_regression(model)
    np.testing.assert_allclose(found.r, value("gate_reg.r"), atol=1e-5)
    np.testing.assert_array_equal(found.r_squared.values.round(2), value("gate_reg.r2_rounded"))
    np.testing.assert_array_equal(found.r_squared_average.values.round(2), value("gate_reg.r2_printed"))
    pairs = value("gate_reg.pairs")
    np.testing.assert_allclose(found.gate, pairs[:, 0], atol=1e-5)
    np.testing.assert_allclose(found.similarity, pairs[:, 1:], atol=1e-5)


@pytest.mark.parametrize("level", ["matrix", "neuron"])
def test_pca_is_the_papers_up_to_sign(case, level):
    _, model, baseline, value = case
    found = static.pca(model, level, baseline=baseline)
    for layer in model.moe_layers:
        for projection in ("up", "gate", "down"):
            at = found.sel(layer=layer, projection=projection)
            expected = value(f"pca_{level}.{layer}.{projection}")
            signs = np.sign((at.coordinates.values * expected).sum(0))
            scale = np.abs(expected).max()
            np.testing.assert_allclose(at.coordinates.values * signs / scale, expected / scale, atol=5e-4)
            variance = value(f"pca_{level}_variance.{layer}.{projection}")
            np.testing.assert_allclose(at.explained_variance, variance[0], rtol=1e-4)
            np.testing.assert_allclose(at.explained_variance_ratio, variance[1], rtol=1e-4)


def test_no_expert_is_an_outlier_in_the_papers_deepseek_figure(deepseek):
    assert not static.pca(deepseek, outliers=(50, 5)).outlier.any()


def test_stored_weights_are_not_changed_by_an_analysis(mixtral):
    before = mixtral.expert_weight(0, "0", "up").clone()
    static.pca(mixtral)
    static.similarity(mixtral, metric="cka")
    assert torch.equal(before, mixtral.expert_weight(0, "0", "up"))
