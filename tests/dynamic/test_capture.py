"""Forward hooks see all that a MoE layer does, in every family, and change nothing."""

import pytest
import torch
from budget import one_in_three
from conftest import FIXTURES
from test_transformers_moe import MODEL_TYPES, tiny_model
from transformers import AutoModelForCausalLM

import moe_probe
from moe_probe import dynamic
from moe_probe.errors import FamilyError
from moe_probe.forward.capture import capture
from moe_probe.forward.sites import OUTSIDE, find_sites
from moe_probe.forward.unweighted import LEARNED_ROWS
from moe_probe.routing import Need

REFUSED = {"llama4_text": "multiplies the experts' inputs", "jetmoe": "its experts are not a module"}
RUN = [model_type for model_type in MODEL_TYPES if model_type not in REFUSED]
OURS = ["deepseek", "grok1_hf", "moe_plus_plus", "mh_moe", "x_moe"]
IDS = [5, 6, 7, 8, 9, 3]


def count_hooks(module):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


@torch.no_grad()
def assert_all_is_seen_and_nothing_changes(module, tolerance=1e-5):
    ids = torch.tensor([IDS])
    expected, hooks = module(ids, use_cache=False).logits, count_hooks(module)
    sites = find_sites(module)
    seen = {}

    def on_event(event):
        seen[event.site.layer.index] = event, event.site.all_outputs(event.expert_input)

    with capture(sites.values(), on_event, needs=frozenset({Need.SELECTED})):
        found = module(ids, use_cache=False).logits
    assert torch.equal(found, expected)
    assert count_hooks(module) == hooks
    assert list(seen) == list(sites)
    for event, outputs in seen.values():
        layer = event.site.layer
        rows = len(IDS) * layer.subtokens
        assert event.router_logits.shape == (rows, layer.num_experts)
        assert event.top_k_index.shape == event.top_k_weights.shape
        assert outputs.shape == (layer.num_experts, rows, layer.expert_hidden_size)
        assert event.block_output.shape == (len(IDS), layer.hidden_size)
        chosen = outputs[event.top_k_index, torch.arange(rows)[:, None]]
        torch.testing.assert_close(event.selected_outputs, chosen, atol=tolerance * float(chosen.abs().max()), rtol=0)
        assert event.scores.shape == event.selection.shape == event.router_logits.shape
        weights = torch.zeros(rows, layer.num_experts).scatter_add_(1, event.top_k_index, event.top_k_weights.float())
        combined = torch.einsum("ne,enw->nw", weights, outputs)
        scale = float(event.routed_output.abs().max().clamp(min=1))
        torch.testing.assert_close(combined, event.routed_output, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("model_type", RUN)
def test_every_expert_of_every_model_type_is_seen(model_type):
    assert_all_is_seen_and_nothing_changes(tiny_model(model_type))


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("model_type", ["mixtral", "olmoe", "deepseek_v3"])
def test_unweighted_outputs_take_no_second_run_of_the_experts(model_type, implementation, monkeypatch):
    module = tiny_model(model_type)
    module.set_experts_implementation(implementation)
    sites = find_sites(module)
    ids = torch.arange(5, 5 + 300).reshape(3, 100) % 60
    with torch.no_grad():
        expected = module(ids, use_cache=False).logits
    rows, experts = [], type(next(iter(sites.values())).experts)
    forward = experts.forward
    monkeypatch.setattr(experts, "forward", lambda self, x, *rest: rows.append(x.shape[0]) or forward(self, x, *rest))
    with torch.no_grad(), capture(sites.values(), lambda event: None, needs=frozenset({Need.SELECTED})):
        found = module(ids, use_cache=False).logits
    assert torch.equal(found, expected)
    top_k = next(iter(sites.values())).layer.top_k
    large = [count for count in rows if count > LEARNED_ROWS * top_k]
    assert large == [ids.numel() * top_k] * len(sites)


def test_needs_are_told_of_the_layers_that_are_asked_for():
    module, seen = tiny_model("mixtral"), {}
    sites = find_sites(module)
    needs = frozenset({Need.SELECTED, Need.WITHOUT})
    with (
        torch.no_grad(),
        capture(sites.values(), lambda event: seen.update({event.site.layer.index: event}), needs=needs, asked=[1]),
    ):
        module(torch.tensor([IDS]), use_cache=False)
    told = {layer: (event.selected_outputs is not None, event.without is not None) for layer, event in seen.items()}
    assert told == {layer: (layer == 1, layer == 1) for layer in sites}


@pytest.mark.parametrize("family", OURS)
def test_every_expert_of_our_own_families_is_seen(family):
    assert_all_is_seen_and_nothing_changes(moe_probe.load(FIXTURES / family / "checkpoint").module)


@pytest.mark.parametrize("model_type", one_in_three(RUN))
def test_every_model_type_runs_layer_by_layer_like_in_memory(model_type, tmp_path):
    tiny_model(model_type).save_pretrained(tmp_path)
    model = moe_probe.load(tmp_path)
    options = {"progress": False, "texts": [IDS, IDS[:2]], "analyses": [dynamic.OutputNorms(), dynamic.GateChoices()]}
    layerwise = dynamic.run(model, execution="layerwise", **options)
    resident = dynamic.run(model, execution="resident", **options)
    for name, variable in (("output_norms", "norm"), ("gate_choices", "weight")):
        expected = torch.from_numpy(resident[name][variable].values)
        torch.testing.assert_close(torch.from_numpy(layerwise[name][variable].values), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", REFUSED)
def test_blocks_that_cannot_be_watched_are_refused_with_the_reason(model_type):
    with pytest.raises(FamilyError, match=f"{model_type}: the MoE block .* {REFUSED[model_type]}"):
        dynamic.gate_choices(tiny_model(model_type), [IDS], progress=False)
    assert len(OUTSIDE) == len(REFUSED)


def test_at_least_fifty_model_types_are_seen():
    assert len(set(RUN)) >= 50


def test_a_block_that_does_more_than_weighting_is_refused():
    module = tiny_model("mixtral")
    experts = find_sites(module)[0].experts
    plain = experts.forward
    experts.forward = lambda rows, index, weights: plain(rows, index, weights**2)
    with pytest.raises(FamilyError, match="differ from the block's routed output"):
        dynamic.gate_choices(module, [IDS], progress=False)


def test_hooks_are_gone_after_an_error():
    module = tiny_model("mixtral")
    hooks = count_hooks(module)

    class Broken(dynamic.GateChoices):
        def update(self, batch):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        dynamic.run(module, [IDS], [Broken()], progress=False)
    assert count_hooks(module) == hooks


PARTS = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(4)), "model.norm", "model.rotary_emb", "lm_head"]


@pytest.mark.parametrize("on_disk", [["model.layers.1", "model.layers.3"], PARTS])
def test_a_live_model_spread_by_a_device_map_is_seen(on_disk, tmp_path):
    folder = FIXTURES / "mixtral" / "checkpoint"
    device_map = {part: "disk" if part in on_disk else "cpu" for part in PARTS}
    options = {"device_map": device_map, "offload_folder": tmp_path, "attn_implementation": "eager"}
    module = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager", dtype="float32", **options)
    assert any(parameter.is_meta for parameter in module.parameters())
    analyses = [dynamic.OutputNorms(), dynamic.IntermediateStates(), dynamic.GateChoices()]
    found = dynamic.run(module, [IDS], analyses, progress=False)
    expected = dynamic.run(folder, [IDS], analyses, progress=False)
    for name, dataset in expected.items():
        for variable in dataset.data_vars:
            torch.testing.assert_close(*(torch.tensor(d[variable].values) for d in (found[name], dataset)))
