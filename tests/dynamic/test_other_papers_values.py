"""Values of MH-MoE's, X-MoE's and MoE++'s analyses, from the model and from a trace."""

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import load_file

import moe_probe
from moe_probe import comparisons, dynamic
from moe_probe.dynamic.analyses.adaptive_mixtures import losses
from moe_probe.statistics.capacity import capacity, has_place


def open_fixture(family):
    expected = load_file(FIXTURES / family / "expected.safetensors")
    return moe_probe.load(FIXTURES / family / "checkpoint"), expected, expected["input_ids"].tolist()


def of_layer(expected, layer, name):
    return expected[f"layers.{layer}.{name}"].numpy()


@pytest.mark.parametrize("family", ["mh_moe", "x_moe"])
def test_classic_quantities(family):
    model, routing, texts = open_fixture(family)
    expected = load_file(FIXTURES / family / "expected_analysis.safetensors")
    load = dynamic.expert_load(model, texts, progress=False)
    full = dynamic.expert_capacity(model, texts, factors=[1.0], orders=["slot"], progress=False)
    names = {
        "first_choices": "selection_count_top1",
        "selections": "selection_count",
        "frequency": "activation_frequency",
        "gate_importance": "importance",
        "importance": "importance_used",
        "smooth_load": "load_smooth_sigma1",
        "cv2_gate_importance": "cv2_importance",
        "cv2_importance": "cv2_importance_used",
        "cv2_load": "cv2_load_hard",
        "cv2_smooth_load": "cv2_load_smooth_sigma1",
        "gshard_loss": "aux_gshard",
        "first_choice_loss": "aux_switch",
    }
    for layer in model.moe_layers:
        for ours, theirs in names.items():
            np.testing.assert_allclose(
                load[ours].sel(layer=layer), of_layer(expected, layer, theirs), rtol=2e-5, atol=1e-6, err_msg=ours
            )
        one = full.sel(layer=layer).isel(order=0, factor=0)
        np.testing.assert_allclose(one.overflow, of_layer(expected, layer, "overflow_rate"), rtol=1e-6)
        assert int(one.capacity) == int(of_layer(expected, layer, "capacity"))
        rows = len(routing[f"layers.{layer}.topk_index"])
        assert round(float(one.fully_dropped) * rows) == int(of_layer(expected, layer, "fully_dropped_subtokens"))
        index, weight = (of_layer(routing, layer, name) for name in ("topk_index", "topk_weight"))
        np.testing.assert_array_equal(has_place(index, weight, 8), of_layer(expected, layer, "kept"))
        np.testing.assert_array_equal(
            has_place(index, weight, 8, groups=2), of_layer(expected, layer, "local_groups2_kept")
        )
        assert capacity(rows, 8, index.shape[1], groups=2) == int(of_layer(expected, layer, "local_groups2_capacity"))
        if index.shape[1] > 1:
            probability = of_layer(expected, layer, "second_expert_keep_probability").mean()
            assert float(one.second_keep_probability) == pytest.approx(probability, rel=1e-5)


@pytest.mark.parametrize("family", ["mh_moe", "x_moe"])
def test_losses_of_adaptive_mixtures(family):
    model, _, texts = open_fixture(family)
    expected = load_file(FIXTURES / family / "expected_analysis.safetensors")
    seen = {}

    class Rows(dynamic.AdaptiveMixtures):
        def update(self, batch):
            seen[batch.layer.index] = losses(batch)
            super().update(batch)

    found = dynamic.run(model, texts, [Rows()], progress=False)["adaptive_mixtures"]
    assert list(seen) == list(model.moe_layers)
    names = {"cooperative": "loss_cooperative", "competitive": "loss_1_1", "likelihood": "loss_1_2"}
    for layer, rows in seen.items():
        for ours, theirs in names.items():
            value = of_layer(expected, layer, f"adaptive_{theirs}")
            np.testing.assert_allclose(rows[ours], value, atol=1e-5, rtol=1e-4)
            assert float(found[ours].sel(layer=layer)) == pytest.approx(value.mean(), abs=1e-5, rel=1e-4)
        responsibility = of_layer(expected, layer, "adaptive_responsibility")
        np.testing.assert_allclose(rows["responsibility"], responsibility, atol=1e-4)
        np.testing.assert_allclose(found.responsibility.sel(layer=layer), responsibility.mean(0), atol=1e-5)


@pytest.mark.parametrize("traced", [False, True])
def test_divergence_of_sub_tokens(traced, tmp_path):
    model, expected, texts = open_fixture("mh_moe")
    spans = {0: [(0, 1)]}
    analyses = [dynamic.SubtokenDivergence(spans=spans), dynamic.RoutingTrace(tmp_path / "trace")]
    found = dynamic.run(model, texts, analyses, progress=False)["subtoken_divergence"]
    if traced:
        found = dynamic.from_trace(tmp_path / "trace", analyses[:1])["subtoken_divergence"]
    for layer in model.moe_layers:
        divergence = of_layer(expected, layer, "divergence_topk")
        np.testing.assert_array_equal(found.divergence.sel(layer=layer), divergence)
        np.testing.assert_array_equal(
            found.divergence_first.sel(layer=layer), of_layer(expected, layer, "divergence_top1")
        )
    np.testing.assert_allclose(found.divergence_mean, expected["divergence_mean"])


@pytest.mark.parametrize("execution", ["resident", "layerwise"])
def test_ffn_experts_per_token_and_scores_with_and_without_the_gating_residual(execution):
    model, expected, texts = open_fixture("moe_plus_plus")
    analyses = [dynamic.FFNExpertsPerToken(min_count=1), dynamic.Complexity([0.75])]
    found = dynamic.run(model, texts, analyses, progress=False, execution=execution)
    residuals = comparisons.gating_residual(model, texts, progress=False, execution=execution)
    scores = {"with": "", "without (intervention)": "no_gate_residual."}
    for layer in model.moe_layers:
        n = of_layer(expected, layer, "ffn_experts_per_token")
        np.testing.assert_array_equal(found["ffn_experts_per_token"].ffn_experts.sel(layer=layer), n)
        assert float(found["complexity"].measured.sel(layer=layer)) == pytest.approx(n.mean() / 2)
        for residual, prefix in scores.items():
            top = torch.topk(expected[f"{prefix}layers.{layer}.routing_scores"].double(), 2).values
            one = residuals.sel(layer=layer, residual=residual)
            np.testing.assert_allclose(one.score_mean, top.mean(0), atol=1e-5)
            np.testing.assert_allclose(one.score_variance, top.var(0, correction=0), atol=1e-5)
            np.testing.assert_allclose(one.maximum, top.amax(0), atol=1e-5)
    assert float(found["complexity"].theory[0]) == pytest.approx(0.75 * 8 / (0.75 * 8 + 4))


def test_task_load_from_recorded_choices():
    model, expected, texts = open_fixture("moe_plus_plus")
    found = dynamic.task_load(model, texts, labels=["a", "b"], as_published=True, progress=False)
    for layer in model.moe_layers:
        index = expected[f"layers.{layer}.selection_index"].view(2, 24)
        p = np.stack([np.bincount(one, minlength=12) / 24 for one in index.numpy()])
        np.testing.assert_allclose(found.share.sel(layer=layer), p)
        n = of_layer(expected, layer, "ffn_experts_per_token").reshape(2, 12).mean(1)
        np.testing.assert_allclose(found.ffn_per_token.sel(layer=layer), n)
        assert float(found.task_distance.sel(layer=layer)) == pytest.approx(0.5 * np.abs(p[0] - p[1]).sum())
        zero = found.activation_per_expert.sel(layer=layer, kind="constant")
        np.testing.assert_allclose(zero, 2 * p[:, 8:10].sum(1) / 2)
    counts = np.stack([of_layer(expected, layer, "ffn_experts_per_token") for layer in model.moe_layers])
    np.testing.assert_allclose(found.token_correlation, np.corrcoef(counts), rtol=1e-9)
