"""DeepSeekMoE v1 against what the publisher's code computes, and against its formulas in float64."""

import shutil

import pytest
import torch
from conftest import FIXTURES
from parity import assert_equal, run
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import moe_probe
from moe_probe.errors import CheckpointError, WeightError
from moe_probe.families.deepseek.configuration import DeepseekConfig
from moe_probe.families.deepseek.modeling import DeepseekForCausalLM

FOLDER = FIXTURES / "deepseek" / "checkpoint"
EXPECTED = load_file(FIXTURES / "deepseek" / "expected.safetensors")
SMALL = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "moe_intermediate_size": 12,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}


def load(folder=FOLDER, **options):
    return moe_probe.load(folder, **{"dtype": torch.float32, **options})


def reference_block(block, tokens, norm_topk_prob):
    """The formulas of the specification, one token and one expert at a time."""
    state = {name: value.double() for name, value in block.state_dict().items()}
    out = []
    for x in tokens.double():
        scores = (state["gate.weight"] @ x).softmax(0)
        chosen = scores.argsort(descending=True)[: block.gate.top_k]
        total = scores[chosen].sum() + 1e-20 if norm_topk_prob and len(chosen) > 1 else 1
        y = torch.zeros_like(x)
        for e in chosen:
            gate, up = (state["experts.gate_up_proj"][e] @ x).chunk(2)
            y += scores[e] / total * (state["experts.down_proj"][e] @ (torch.nn.functional.silu(gate) * up))
        if "shared_experts.up_proj.weight" in state:
            gate, up, down = (state[f"shared_experts.{name}_proj.weight"] for name in ("gate", "up", "down"))
            y += down @ (torch.nn.functional.silu(gate @ x) * (up @ x))
        out.append(y)
    return torch.stack(out)


def test_every_value_of_the_original_code_is_reproduced():
    seen = run(load().module, EXPECTED["input_ids"])
    assert_equal(seen, EXPECTED, 2e-5)
    assert_equal(seen, EXPECTED, 1e-5, [name for name in EXPECTED if name.endswith("topk_weight")])


@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_saved_again_it_computes_the_same(tmp_path, container):
    model = load()
    if container == "safetensors":
        model.module.save_pretrained(tmp_path)
        assert set(load_file(tmp_path / "model.safetensors")) == set(model.checkpoint)
    else:
        shutil.copy(FOLDER / "config.json", tmp_path)
        torch.save({key: tensor.read() for key, tensor in model.checkpoint.items()}, tmp_path / "pytorch_model.bin")
    expected = model.module(EXPECTED["input_ids"]).logits
    assert torch.equal(load(tmp_path).module(EXPECTED["input_ids"]).logits, expected)


def test_transformers_opens_it_by_itself_once_moe_probe_is_imported(tmp_path):
    load().module.save_pretrained(tmp_path)
    module = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", experts_implementation="eager")
    assert_equal({"logits": module(EXPECTED["input_ids"]).logits}, EXPECTED, 2e-5, ["logits"])


@pytest.mark.parametrize(
    "fields",
    [
        {"norm_topk_prob": True, "num_experts_per_tok": 3, "first_k_dense_replace": 2, "num_key_value_heads": 2},
        {"n_shared_experts": None, "num_experts_per_tok": 1, "norm_topk_prob": True, "first_k_dense_replace": 0},
        {"n_shared_experts": 3, "moe_layer_freq": 3, "num_hidden_layers": 13, "rope_theta": 500.0},
    ],
)
def test_other_configurations_follow_the_formulas(tmp_path, fields):
    torch.manual_seed(1)
    config = DeepseekConfig(**{**SMALL, "n_routed_experts": 9, "num_hidden_layers": 4, **fields})
    saved = DeepseekForCausalLM(config)
    saved.save_pretrained(tmp_path)
    model = load(tmp_path)
    seen = run(model.module, torch.randint(50, (2, 7)))
    first, freq = config.first_k_dense_replace, config.moe_layer_freq
    assert model.moe_layers == tuple(i for i in range(config.num_hidden_layers) if i >= first and i % freq == 0)
    for i in model.moe_layers:
        expected = reference_block(saved.model.layers[i].mlp, seen[f"layers.{i}.moe_input"], config.norm_topk_prob)
        torch.testing.assert_close(seen[f"layers.{i}.moe_output"].double(), expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_close_to_float32():
    logits = load(dtype=torch.bfloat16).module(EXPECTED["input_ids"]).logits.float()
    assert logits.isfinite().all()
    assert (logits - EXPECTED["logits"]).abs().mean() < 0.05 * EXPECTED["logits"].abs().mean()


def test_generation_with_the_cache_equals_a_forward_pass():
    module = load().module
    prompt = EXPECTED["input_ids"][:1, :5]
    generated = module.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
    again = module(generated[:, :-1]).logits.argmax(-1)
    assert torch.equal(generated[:, 5:], again[:, 4:])


def test_missing_unexpected_and_misshaped_keys_are_named(tmp_path):
    tensors = {key: tensor.read() for key, tensor in load().checkpoint.items()}
    key = "model.layers.2.mlp.experts.7.up_proj.weight"

    def refused(changed, match):
        shutil.copy(FOLDER / "config.json", tmp_path)
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(WeightError, match=match):
            load(tmp_path)

    refused({k: v for k, v in tensors.items() if k != key}, r"layers\.2\.mlp\.experts\.gate_up_proj")
    refused({k: v for k, v in tensors.items() if k != "model.norm.weight"}, r"'model\.norm\.weight'")
    shifted = {k.replace("layers.2.mlp.experts.7.", "layers.2.mlp.experts.16."): v for k, v in tensors.items()}
    refused(shifted, r"layers\.2\.mlp\.experts\.gate_up_proj.*number 7 is missing among 0 to 16")
    refused(tensors | {key: tensors[key][:5].clone()}, r"layers\.2\.mlp\.experts\.gate_up_proj")
    refused(tensors | {"lm_head.weight": torch.ones(3, 64)}, r"lm_head.*\(3, 64\).*\(320, 64\)")
    refused(tensors | {"model.layers.4.mlp.extra": torch.ones(1)}, r"'model\.layers\.4\.mlp\.extra' belongs to no")


def test_a_configuration_of_another_model_is_refused():
    with pytest.raises(CheckpointError, match="sigmoid"):
        load(config={"scoring_func": "sigmoid"})
