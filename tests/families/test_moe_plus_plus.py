"""MoE++ against what the publisher's code computes, and against its formulas in float64."""

import json
import shutil

import pytest
import torch
from conftest import FIXTURES
from moe_plus_plus_reference import reference
from parity import assert_equal, run
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import moe_probe
from moe_probe.errors import CheckpointError, FamilyError, WeightError
from moe_probe.families.moe_plus_plus.configuration import MoePlusPlusConfig
from moe_probe.families.moe_plus_plus.modeling import MoePlusPlusForCausalLM, MoePlusPlusRouter

FOLDER = FIXTURES / "moe_plus_plus" / "checkpoint"
EXPECTED = load_file(FIXTURES / "moe_plus_plus" / "expected.safetensors")
KINDS = ("ffn", "constant", "copy", "zero")
SMALL = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_experts": [9],
    "initializer_range": 0.25,
    "max_position_embeddings": 64,
}
PUBLISHED_GATING = {"moe_2layer_gate": False, "moe_use_logits_norm": True, "moe_feature_no_mul_topk": True}


def load(folder=FOLDER, **options):
    return moe_probe.load(folder, **{"dtype": torch.float32, **options})


def observed(module, input_ids):
    """What `run` sees, and what the specification derives from it, by its names."""
    own, handles = {}, []
    for index, layer in enumerate(module.model.layers):
        name = f"layers.{index}.router_logits_own"
        handles.append(layer.mlp.gate.wg.register_forward_hook(lambda *hook, name=name: own.update({name: hook[2]})))
    seen = run(module, input_ids)
    for handle in handles:
        handle.remove()
    kinds = torch.tensor([KINDS.index(kind) for kind in module.config.expert_kinds])
    for index, layer in enumerate(module.model.layers):
        here = f"layers.{index}."
        logits = seen[here + "router_logits"]
        scores = layer.mlp.gate.selection_scores(logits)
        seen[here + "routing_scores"] = scores
        seen[here + "selection_index"] = scores.topk(layer.mlp.gate.top_k).indices
        seen[here + "expert_kind"] = kinds
        seen[here + "ffn_experts_per_token"] = (kinds[seen[here + "topk_index"]] == 0).sum(-1)
        seen[here + "expert_input"] = seen[here + "experts_input"]
        if index:
            seen[here + "gate_residual_in"] = seen[f"layers.{index - 1}.router_logits"]
    return seen | own


def save_random(folder, **fields):
    """A random model of the small configuration, in published files; its tensors in float64."""
    torch.manual_seed(3)
    MoePlusPlusForCausalLM(MoePlusPlusConfig(**{**SMALL, **fields})).save_pretrained(folder)
    return {key: value.double() for key, value in load_file(folder / "model.safetensors").items()}


def test_every_value_of_the_original_code_is_reproduced():
    seen = observed(load().module, EXPECTED["input_ids"])
    assert_equal(seen, EXPECTED, 2e-5, [name for name in EXPECTED if not name.startswith("no_gate_residual.")])


@pytest.mark.parametrize("live", [True, False], ids=["switched off on the module", "loaded without"])
def test_without_gating_residuals_it_is_the_intervention_of_the_specification(live):
    module = load(config={} if live else {"moe_gate_residual": False}).module
    if live:
        module.config.moe_gate_residual = False
    seen = observed(module, EXPECTED["input_ids"])
    names = [name for name in EXPECTED if name.startswith("no_gate_residual.")]
    assert len(names) == 21
    assert_equal({f"no_gate_residual.{name}": value for name, value in seen.items()}, EXPECTED, 2e-5, names)


@pytest.mark.parametrize(
    ("fields", "logits", "expected"),
    [
        (
            {"moe_use_logits_norm": True, "moe_gate_norm_std": 0.5},
            [2, 1.9, 0, -3, -4, 1.5],
            [[0.504763, 0.495237], [0, 1]],
        ),
        ({}, [2, 1, 0, -3, -4, 1.5], [[1, 0], [0, 5]]),
        ({}, [1.5, 1, 0, -3, -4, 2], [[1, 0], [0, 5]]),
        ({"moe_use_mixtral_gating": True}, [2, 1, 0, -3, -4, 1.5], [[0.622459, 0.377541], [0, 5]]),
    ],
)
def test_router_gives_the_weights_of_the_worked_example(fields, logits, expected):
    router = MoePlusPlusRouter(MoePlusPlusConfig(hidden_size=6, num_experts=[6], moe_2layer_gate=False, **fields))
    router.wg.weight.data = torch.eye(6)
    _, weights, index = router(torch.tensor([logits], dtype=torch.float32))
    torch.testing.assert_close(weights[0], torch.tensor(expected[0], dtype=torch.float32), atol=5e-7, rtol=0)
    assert index[0].tolist() == expected[1]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        PUBLISHED_GATING,
        {"moe_use_logits_norm": True, "moe_gate_norm_std": 2.5, "num_experts": [7], "moe_gate_residual": False},
        {"moe_use_mixtral_gating": True, "num_key_value_heads": 2, "sliding_window": 3, "hidden_act": "gelu"},
        {"moe_use_mixtral_gating": True, "moe_2layer_gate": False, "moe_use_logits_norm": True},
        {"moe_2layer_gate": False, "num_hidden_layers": 12, "num_experts": [16], "initializer_range": 0.1},
        {"num_experts_per_tok": 3, "num_constant_experts": 4},
        {"num_experts_per_tok": 1, "num_constant_experts": 0, "moe_use_mixtral_gating": True},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"type": "ntk", "factor": 3.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 8},
    ],
    ids=lambda fields: ", ".join(fields) or "class defaults",
)
def test_other_configurations_follow_the_formulas(tmp_path, fields):
    tensors = save_random(tmp_path, **fields)
    module = load(tmp_path).module
    input_ids = torch.randint(50, (2, 12))
    seen = run(module, input_ids)
    for row, ids in enumerate(input_ids):
        logits, router_logits, weights = reference(tensors, ids, {**SMALL, **fields})
        torch.testing.assert_close(seen["logits"][row].double(), logits, atol=2e-4, rtol=1e-4)
        for index, chosen in enumerate(weights):
            rows, here = slice(12 * row, 12 * row + 12), f"layers.{index}."
            torch.testing.assert_close(
                seen[here + "router_logits"][rows].double(), router_logits[index], atol=2e-4, rtol=1e-4
            )
            applied = torch.zeros_like(router_logits[index], dtype=torch.float32)
            applied.scatter_(1, seen[here + "topk_index"][rows], seen[here + "topk_weight"][rows])
            expected = torch.zeros_like(router_logits[index])
            for token, by_expert in enumerate(chosen):
                expected[token, list(by_expert)] = torch.tensor(list(by_expert.values())).double()
            torch.testing.assert_close(applied.double(), expected, atol=2e-4, rtol=1e-4)


def test_fields_that_a_configuration_lacks_take_the_defaults_of_the_original(tmp_path):
    tensors = save_random(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    kept = {key: value for key, value in fields.items() if key in SMALL or key == "model_type"}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    ids = torch.randint(50, (9,))
    expected, _, _ = reference(tensors, ids, SMALL)
    torch.testing.assert_close(load(tmp_path).module(ids[None]).logits[0].double(), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("size", ["1GB", "200KB"], ids=["one file", "shards"])
def test_saved_again_it_has_the_published_keys_and_computes_the_same(tmp_path, size):
    model = load(dtype=torch.bfloat16)
    model.module.save_pretrained(tmp_path, max_shard_size=size)
    again = load(tmp_path)
    assert set(again.checkpoint) == set(model.checkpoint)
    assert all(
        torch.equal(again.checkpoint[key].to(torch.bfloat16), model.checkpoint[key].read()) for key in again.checkpoint
    )
    assert_equal({"logits": again.module(EXPECTED["input_ids"]).logits}, EXPECTED, 2e-5, ["logits"])


def test_transformers_opens_it_by_itself_once_moe_probe_is_imported(tmp_path):
    load().module.save_pretrained(tmp_path)
    module = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", experts_implementation="eager")
    assert_equal({"logits": module(EXPECTED["input_ids"]).logits}, EXPECTED, 2e-5, ["logits"])


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_other_implementations_of_the_ffn_experts_compute_the_same(implementation):
    module = load().module
    module.set_experts_implementation(implementation)
    assert_equal({"logits": module(EXPECTED["input_ids"]).logits}, EXPECTED, 2e-5, ["logits"])
    tokens = torch.randn(3, 64)
    only_copy = module.model.layers[0].mlp.experts(tokens, torch.full((3, 1), 10), torch.ones(3, 1))
    assert torch.equal(only_copy, tokens)


def test_static_weights_are_those_of_the_files():
    model = load()
    stored = torch.load(FOLDER / "pytorch_model-00002-of-00002.bin", weights_only=True)
    gate, up = stored["model.layers.3.mlp.moe.experts.experts.6.up_proj.weight"].chunk(2)
    assert torch.equal(model.expert_weight(3, "6", "gate"), gate)
    assert torch.equal(model.expert_weight(3, "6", "up"), up)
    assert torch.equal(model.router_weight(3), stored["model.layers.3.mlp.moe.gate.wg.weight"])
    assert model.layer(3).weighted_experts == tuple("01234567")


def test_router_computes_in_float32_in_a_bfloat16_model():
    module = load(dtype=torch.bfloat16).module
    gate = module.model.layers[1].mlp.gate
    assert gate.wg.weight.dtype == torch.float32
    assert gate.gate_map.weight.dtype == torch.bfloat16
    seen = observed(module, EXPECTED["input_ids"])
    own, residual = seen["layers.1.router_logits_own"], seen["layers.1.gate_residual_in"]
    assert own.dtype == residual.dtype == seen["layers.1.topk_weight"].dtype == torch.float32
    assert torch.equal(seen["layers.1.router_logits"], own + gate.gate_map(residual.bfloat16()))
    logits = seen["logits"].float()
    assert logits.isfinite().all()
    assert (logits - EXPECTED["logits"]).abs().mean() < 0.05 * EXPECTED["logits"].abs().mean()
    module.model.layers[1].mlp.gate.to(torch.bfloat16)
    assert torch.equal(module(EXPECTED["input_ids"]).logits.float(), logits)


def test_generation_with_the_cache_equals_a_forward_pass():
    module = load().module
    ids = EXPECTED["input_ids"]
    cache = module(ids[:, :7], use_cache=True).past_key_values
    steps = [module(ids[:, i : i + 1], past_key_values=cache).logits for i in range(7, ids.shape[1])]
    torch.testing.assert_close(torch.cat(steps, 1), EXPECTED["logits"][:, 7:], atol=2e-5, rtol=0)
    generated = module.generate(ids[:1, :5], attention_mask=torch.ones(1, 5), max_new_tokens=6, do_sample=False)
    again = module(generated[:, :-1]).logits.argmax(-1)
    assert torch.equal(generated[:, 5:], again[:, 4:])


def test_padding_on_the_left_changes_nothing():
    module = load().module
    ids = EXPECTED["input_ids"]
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(ids)], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = module(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(logits, EXPECTED["logits"], atol=2e-5, rtol=0)


def test_router_logits_and_hidden_states_are_among_the_outputs():
    outputs = load().module(EXPECTED["input_ids"], output_router_logits=True, output_hidden_states=True)
    for index in range(4):
        seen = {f"layers.{index}.router_logits": outputs.router_logits[index]}
        seen |= {f"hidden_states.{index}": outputs.hidden_states[index]}
        assert_equal(seen, EXPECTED, 2e-5, seen)


@pytest.mark.parametrize("fields", [{}, PUBLISHED_GATING, {"moe_use_mixtral_gating": True}], ids=str)
def test_training_reaches_every_parameter_that_is_used(fields):
    torch.manual_seed(0)
    module = MoePlusPlusForCausalLM(MoePlusPlusConfig(**{**SMALL, **fields})).train()
    ids = torch.randint(50, (4, 30))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = module(ids, labels=ids, output_router_logits=True).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    unused = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert unused == ["model.layers.0.mlp.gate.gate_map.weight"]
    assert all(parameter.grad.any() for parameter in module.parameters() if parameter.grad is not None)
    assert losses[-1] < 0.8 * losses[0]


def test_missing_unexpected_and_misshaped_keys_are_named(tmp_path):
    tensors = {key: tensor.read() for key, tensor in load().checkpoint.items()}
    here = "model.layers.2.mlp.moe."

    def refused(changed, match):
        shutil.copy(FOLDER / "config.json", tmp_path)
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(WeightError, match=match):
            load(tmp_path)

    def without(key):
        return {k: v for k, v in tensors.items() if k != key}

    refused(without(here + "experts.experts.7.down_proj.weight"), r"layers\.2\.mlp\.experts\.down_proj")
    refused(without(here + "experts.experts.9.constant"), r"layers\.2\.mlp\.experts\.constants")
    refused(without("model.layers.0.mlp.moe.gate.gate_map.weight"), r"layers\.0\.mlp\.gate\.gate_map")
    refused(
        tensors | {here + "gate.wg.weight": torch.ones(11, 64)}, r"layers\.2\.mlp\.gate\.wg.*\(11, 64\).*\(12, 64\)"
    )
    refused(tensors | {here + "gate.bias": torch.ones(12)}, r"'model\.layers\.2\.mlp\.moe\.gate\.bias' belongs to no")


@pytest.mark.parametrize(
    ("stored", "other", "kind"),
    [
        ("9.constant", "11.constant", "zero"),
        ("9.wg.weight", "3.wg.weight", "ffn"),
        ("3.up_proj.weight", "12.up_proj.weight", "missing"),
    ],
)
def test_experts_numbered_otherwise_are_refused(tmp_path, stored, other, kind):
    tensors = {key: tensor.read() for key, tensor in load().checkpoint.items()}
    here = "model.layers.2.mlp.moe.experts.experts."
    tensors[here + other] = tensors.pop(here + stored)
    shutil.copy(FOLDER / "config.json", tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightError, match=rf"experts\.{other}.*expert {other.split('.')[0]} is {kind}"):
        load(tmp_path)


def test_stray_rotary_frequencies_are_ignored(tmp_path):
    tensors = {key: tensor.read() for key, tensor in load().checkpoint.items()}
    shutil.copy(FOLDER / "config.json", tmp_path)
    stray = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(4)}
    save_file(tensors | stray, tmp_path / "model.safetensors")
    assert_equal({"logits": load(tmp_path).module(EXPECTED["input_ids"]).logits}, EXPECTED, 2e-5, ["logits"])


def test_dense_layers_are_refused():
    with pytest.raises(FamilyError, match="moe_expert_interval 2"):
        load(config={"moe_expert_interval": 2})


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"num_experts": [4]}, "no FFN expert"),
        ({"num_experts_per_tok": 1}, "num_experts_per_tok is 1; expected 2 to 12"),
        ({"num_experts_per_tok": 13}, "num_experts_per_tok is 13"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "yarn.*ntk"),
    ],
)
def test_configurations_without_meaning_are_refused(fields, match):
    with pytest.raises(CheckpointError, match=match):
        load(config=fields)
