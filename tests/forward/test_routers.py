"""Affinity, selection score and applied weight are told apart in every router; what is assumed is said."""

import copy

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from test_transformers_moe import tiny_model
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

import moe_probe
from moe_probe import comparisons, dynamic
from moe_probe.errors import CannotWatch
from moe_probe.forward.affinity import Choice, find_affinity, without_excluded

IDS = [[5, 6, 7, 8, 9, 3, 11, 12], [20, 21, 22, 23]]


def record(model, ids=None):
    return dynamic.record(model, ids or IDS, progress=False)


def deepseek(bias=0.0, groups=1, kept=1):
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=groups,
        topk_group=kept,
        first_k_dense_replace=1,
        n_shared_experts=1,
        kv_lora_rank=8,
        q_lora_rank=16,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
        max_position_embeddings=512,
    )
    module = DeepseekV3ForCausalLM(config).eval()
    gate = module.model.layers[1].mlp.gate
    nn.init.normal_(gate.weight, std=0.3)
    with torch.no_grad():
        gate.e_score_correction_bias.copy_(torch.linspace(0, bias, 8))
    return module


def documents(count=4, length=200):
    return [
        torch.randint(0, 128, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        for seed in range(count)
    ]


def test_a_correction_bias_stands_in_the_selection_score_alone():
    module = deepseek(bias=0.6)
    found = record(module).isel(layer=0)
    logits = torch.tensor(found.router_logits.values)
    np.testing.assert_allclose(found.score, logits.sigmoid(), atol=1e-6)
    bias = module.model.layers[1].mlp.gate.e_score_correction_bias.numpy()
    np.testing.assert_allclose(found.selection, found.score + bias, atol=1e-6)
    ranked = np.argsort(-found.selection.values, axis=1)[:, :2]
    np.testing.assert_array_equal(np.sort(ranked), np.sort(found.topk_expert.values))
    assert found.attrs["score_function"] == "sigmoid"


def test_experts_of_excluded_groups_are_minus_infinity_in_the_selection_score():
    found = record(deepseek(groups=4, kept=1)).isel(layer=0)
    excluded = np.isneginf(found.selection.values)
    assert (excluded.sum(1) == 6).all()
    assert (excluded.reshape(-1, 4, 2).all(-1).sum(1) == 3).all()
    assert np.isfinite(found.score).all()


@pytest.mark.parametrize("bias", [0.0, 0.6])
def test_the_narrowest_choices_change_first(bias):
    one = deepseek(bias)
    other = copy.deepcopy(one)
    with torch.no_grad():
        torch.manual_seed(1)
        gate = other.model.layers[1].mlp.gate
        gate.weight.add_(torch.randn_like(gate.weight) * 0.02)
    ids = documents()
    drift = comparisons.routing_drift({"one": one}, {"other": other}, ids, progress=False)
    records = [record(module, ids).isel(layer=0) for module in (one, other)]
    moved = np.not_equal(*(np.sort(found.topk_expert.values) for found in records)).any(-1)
    biased = np.sort(records[0].score.values + one.model.layers[1].mlp.gate.e_score_correction_bias.numpy())
    tenths = np.array_split(np.argsort(biased[:, -2] - biased[:, -3], kind="stable"), 10)
    np.testing.assert_allclose(drift.margin_changed.values[0], [moved[tenth].mean() for tenth in tenths], atol=0.02)


def test_no_choice_has_a_negative_margin_where_groups_choose():
    one = deepseek(groups=4, kept=1)
    drift = comparisons.routing_drift({"one": one}, {"other": copy.deepcopy(one)}, documents(), progress=False)
    assert float(drift.margin.min()) >= 0


@pytest.mark.parametrize(
    ("model_type", "function"),
    [("mixtral", "softmax"), ("deepseek_v3", "sigmoid"), ("gpt_oss", "softmax"), ("qwen3_moe", "softmax")],
)
def test_results_say_which_function_the_scores_are(model_type, function):
    found = record(tiny_model(model_type))
    assert found.attrs["score_function"] == function
    expected = torch.tensor(found.router_logits.values)
    expected = expected.softmax(-1) if function == "softmax" else expected.sigmoid()
    np.testing.assert_allclose(found.score, expected, atol=1e-6)


def test_what_nothing_confirms_is_called_assumed():
    assert "assumed" in record(tiny_model("phimoe")).attrs["score_function"]


def choice(logits, ranked, index, weights):
    return Choice(*(None if value is None else torch.as_tensor(value) for value in (logits, ranked, index, weights)))


def test_one_expert_per_token_with_a_sigmoid_is_no_softmax():
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    scores = logits.sigmoid()
    weights, index = scores.topk(1)
    by_weight = find_affinity(nn.Identity(), object(), (), choice(logits, None, index, weights))
    assert (by_weight.name, by_weight.confirmed) == ("sigmoid", True)
    normalized = torch.ones_like(weights)
    by_rank = find_affinity(
        nn.Identity(), object(), (), choice(logits, scores + torch.arange(6) * 0.1, index, normalized)
    )
    assert (by_rank.name, by_rank.confirmed) == ("sigmoid", True)
    unknown = find_affinity(nn.Identity(), object(), (), choice(logits, None, index, normalized))
    assert unknown.kind == "softmax (assumed)"


def test_the_configuration_is_asked_before_anything_is_assumed():
    class Configured:
        scoring_func = "sigmoid"

    logits = torch.randn(9, 4)
    only = choice(logits, None, logits.topk(1).indices, torch.ones(9, 1))
    assert find_affinity(nn.Identity(), Configured(), (), only).kind == "sigmoid (assumed)"


def test_weights_that_follow_no_function_on_some_row_are_not_confirmed():
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    weights, index = logits.softmax(-1).topk(2)
    weights[17] = torch.tensor([0.1, 0.9])
    assert find_affinity(nn.Identity(), object(), (), choice(logits, None, index, weights)).kind == "softmax (assumed)"


def test_a_group_is_excluded_only_as_a_whole():
    ranked = torch.tensor([[0.0, 0.0, 0.3, 0.0]])
    assert without_excluded(ranked, 2).tolist() == [[-torch.inf, -torch.inf, pytest.approx(0.3), 0.0]]
    assert without_excluded(ranked, 1).tolist() == ranked.tolist()


@pytest.mark.parametrize("family", ["mixtral", "deepseek", "moe_plus_plus", "mh_moe", "x_moe", "grok1_hf"])
def test_choices_of_every_family_are_those_with_the_largest_selection_scores(family):
    found = record(moe_probe.load(FIXTURES / family / "checkpoint"))
    chosen = np.take_along_axis(found.selection.values, found.topk_expert.values, -1)
    largest = -np.sort(-found.selection.values)[..., : chosen.shape[-1]]
    np.testing.assert_allclose(-np.sort(-chosen), largest, atol=1e-6)
    assert "assumed" not in found.attrs["score_function"]


def test_masked_logits_are_no_damaged_weights():
    module = moe_probe.load(FIXTURES / "mixtral" / "checkpoint").module
    layer = module.model.layers[1].mlp
    plain = layer.gate.forward

    def masked(hidden_states):
        logits = nn.functional.linear(hidden_states.reshape(-1, hidden_states.shape[-1]), layer.gate.weight)
        logits[:, 2] = -torch.inf
        weights, index = logits.softmax(-1).topk(2)
        return logits, weights / weights.sum(-1, keepdim=True), index

    layer.gate.forward = masked
    try:
        found = record(module).sel(layer=1)
    finally:
        layer.gate.forward = plain
    assert not (found.topk_expert == 2).any()
    assert np.isneginf(found.router_logits.sel(expert="2")).all()


def test_a_router_that_computes_with_other_gate_embeddings_is_refused():
    module = moe_probe.load(FIXTURES / "mixtral" / "checkpoint").module
    gate = module.model.layers[1].mlp.gate
    other = torch.randn_like(gate.weight)

    def elsewhere(hidden_states):
        logits = nn.functional.linear(hidden_states.reshape(-1, hidden_states.shape[-1]), other)
        weights, index = logits.softmax(-1).topk(2)
        return logits, weights / weights.sum(-1, keepdim=True), index

    gate.forward = elsewhere
    with pytest.raises(CannotWatch, match="Layer 1: the router computes with other gate embeddings"):
        record(module)


def test_inputs_times_gate_embeddings_are_the_logits():
    model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")
    found = record(model)
    for layer in model.moe_layers:
        one = found.sel(layer=layer)
        expected = one.expert_input.values @ model.router_weight(layer).float().numpy().T
        np.testing.assert_allclose(one.router_logits, expected, atol=1e-5)


def test_a_token_that_skips_all_experts_chose_the_one_that_gives_nothing():
    """Zaya's router calls its experts with the first one, of weight 0, where its class for skipping was the best."""
    module = tiny_model("zaya")
    routers = [layer.mlp.gate for layer in module.model.layers]
    ranked = []
    for router in routers:
        router.balancing_biases[-1] = 0.02
        router.register_forward_hook(
            lambda router, args, output: ranked.append(output[0].softmax(-1) + router.balancing_biases)
        )
    with torch.no_grad():
        for ids in IDS:
            module(input_ids=torch.tensor([ids]), use_cache=False)
    best = [torch.cat(ranked[at :: len(routers)]).argmax(-1) for at in range(len(routers))]
    assert any(bool((each == 6).any()) and bool((each != 6).any()) for each in best)
    ranked.clear()
    found = record(module)
    for layer, expected in enumerate(best):
        np.testing.assert_array_equal(found.topk_expert.sel(layer=layer).values[:, 0], expected)
        assert (found.topk_weight.sel(layer=layer).values[:, 0] == 0).tolist() == (expected == 6).tolist()
    load = dynamic.expert_load(module, IDS, progress=False)
    assert int(load.selections.sel(expert="6").sum()) == sum(int((each == 6).sum()) for each in best)
