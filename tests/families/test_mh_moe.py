"""MH-MoE and X-MoE against what the original code computes, and against their formulas in float64."""

import argparse
import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES
from mh_moe_reference import reference
from parity import assert_equal, run
from safetensors.torch import load_file

import moe_probe
from moe_probe.errors import CheckpointError, FamilyError, WeightError
from moe_probe.families.mh_moe.configuration import MhMoeConfig
from moe_probe.families.mh_moe.modeling import MhMoeForCausalLM, arrival, balance_loss, capacity

WRITER = runpy.run_path(str(Path(__file__).parents[2] / "ckpt" / "fairseq_release.py"))
SMALL = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 20,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_experts": 6,
    "initializer_range": 0.4,
}
VARIANTS = [
    {"mhmoe_heads_number": 2, "num_experts_per_tok": 3, "num_key_value_heads": 2},
    {"mhmoe_heads_number": 8, "num_experts_per_tok": 1, "moe_freq": 1, "num_experts": 4},
    {"mhmoe_heads_number": 1, "router": "cosine", "num_experts_per_tok": 2, "tie_word_embeddings": False},
    {"mhmoe_heads_number": 4, "router": "cosine", "num_hidden_layers": 12, "moe_freq": 3, "scale_embedding": True},
    {"mhmoe_heads_number": 2, "attention_bias": True, "mlp_bias": True, "rms_norm": False},
    {"mhmoe_heads_number": 2, "hidden_act": "gelu", "gated": False, "mlp_bias": True, "attention_bias": True},
    {"mhmoe_heads_number": 2, "hidden_act": "relu", "gated": True, "num_key_value_heads": 1},
]


def load(folder, **config):
    return moe_probe.load(folder, dtype=torch.float32, config=config or None)


def write(folder, ranks=2, seed=0, **fields):
    """A checkpoint as fairseq writes it, of a random model; returns its options and tensors."""
    torch.manual_seed(seed)
    module = MhMoeForCausalLM(MhMoeConfig(**{**SMALL, **fields}))
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    WRITER["write_release"](module, folder, ranks)
    return WRITER["options"](module.config), WRITER["state"](module)


def observed(module, input_ids):
    """What `run` sees, and what the specification derives from it."""
    merged, handles = {}, []
    for index, layer in enumerate(module.model.layers):
        if hasattr(layer.mlp, "out_proj"):
            name = f"layers.{index}.merged"
            handle = layer.mlp.out_proj.register_forward_pre_hook(
                lambda _, args, name=name: merged.update({name: args[0].flatten(0, 1)})
            )
            handles.append(handle)
    seen = run(module, input_ids)
    for handle in handles:
        handle.remove()
    config, divergences = module.config, []
    for index, layer in enumerate(module.model.layers):
        if not hasattr(layer.mlp, "experts"):
            continue
        here = f"layers.{index}."
        seen[here + "subtoken_input"] = seen[here + "experts_input"]
        seen[here + "l_aux"] = balance_loss(seen[here + "router_logits"], config.num_experts)
        index_, weight = layer.mlp.gate(seen[here + "experts_input"])[2:0:-1]
        seen[here + "topk_weight"] = weight  # before dropping
        seen[here + "location"] = arrival(index_, config.num_experts)
        if config.eval_capacity_fraction is not None:
            seen[here + "capacity"] = torch.tensor(capacity(config, len(index_)))
            seen[here + "kept"] = seen[here + "location"] < seen[here + "capacity"]
        tokens = index_.view(-1, config.mhmoe_heads_number, index_.shape[1])
        seen[here + "divergence"] = torch.tensor([len(token.unique()) for token in tokens])
        seen[here + "divergence_topk"] = seen[here + "divergence"]
        seen[here + "divergence_top1"] = torch.tensor([len(token[:, 0].unique()) for token in tokens])
        divergences.append(seen[here + "divergence"].float())
    seen["divergence_mean"] = torch.stack(divergences).mean(0)
    return seen | {name: value.detach() for name, value in merged.items()}


@pytest.mark.parametrize("container", ["checkpoint", "checkpoint_legacy"])
@pytest.mark.parametrize("family", ["mh_moe", "x_moe"])
@pytest.mark.parametrize("dropping", [False, True])
def test_every_value_of_the_original_code_is_reproduced(family, container, dropping):
    expected = load_file(FIXTURES / family / f"expected{'_capacity' if dropping else ''}.safetensors")
    model = load(FIXTURES / family / container, **({"eval_capacity_fraction": -1} if dropping else {}))
    seen = observed(model.module, expected["input_ids"])
    for name, value in expected.items():
        if name != "input_ids" and not value.is_floating_point():
            assert torch.equal(seen[name].to(value.dtype).view(value.shape), value), name
    assert_equal(seen, expected, 1e-4, [name for name, value in expected.items() if value.is_floating_point()])


@pytest.mark.parametrize("fields", VARIANTS)
def test_other_configurations_follow_the_formulas(fields, tmp_path):
    options, tensors = write(tmp_path, **fields)
    options["relu_squared"] = False
    ids = torch.randint(40, (2, 7))
    logits, blocks = reference(options, tensors, ids)
    model = load(tmp_path)
    seen = run(model.module, ids)
    assert model.moe_layers == tuple(blocks)
    for index, block in blocks.items():
        torch.testing.assert_close(seen[f"layers.{index}.moe_output"].double(), block, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen["logits"].double(), logits, atol=1e-4, rtol=1e-4)


def test_torchscales_own_x_moe_divides_two_weights_by_their_sum(tmp_path):
    options, tensors = write(tmp_path, mhmoe_heads_number=1, router="cosine")
    for path in tmp_path.glob("*.pt"):
        value = torch.load(path, weights_only=True)
        del value["cfg"]["model"]["moe_top_k"], value["cfg"]["model"]["mhmoe_heads_number"]
        torch.save(value, path)
    del options["moe_top_k"], options["mhmoe_heads_number"]
    ids = torch.randint(40, (1, 6))
    logits = reference(options, tensors, ids)[0]
    torch.testing.assert_close(load(tmp_path).module(ids).logits.double(), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_any_number_of_ranks_gives_the_same_model(tmp_path, ranks):
    write(tmp_path / "all", ranks=1)
    write(tmp_path / "split", ranks=ranks)
    ids = torch.randint(40, (2, 5))
    assert torch.equal(load(tmp_path / "split").module(ids).logits, load(tmp_path / "all").module(ids).logits)
    layer = load(tmp_path / "split").layer(1)
    assert (layer.subtokens, layer.hidden_size, layer.expert_hidden_size, layer.num_experts) == (4, 24, 6, 6)


def test_saved_as_transformers_does_it_computes_the_same(tmp_path):
    expected = load_file(FIXTURES / "mh_moe" / "expected.safetensors")
    model = load(FIXTURES / "mh_moe" / "checkpoint")
    model.module.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).module(expected["input_ids"]).logits, model.module(expected["input_ids"]).logits)


def test_generation_with_the_cache_equals_a_forward_pass():
    module = load(FIXTURES / "mh_moe" / "checkpoint").module
    prompt = torch.randint(4, 90, (1, 5))
    generated = module.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
    again = module(generated[:, :-1]).logits.argmax(-1)
    assert torch.equal(generated[:, 5:], again[:, 4:])


def test_bfloat16_stays_close_to_float32():
    ids = load_file(FIXTURES / "mh_moe" / "expected.safetensors")["input_ids"]
    exact = load(FIXTURES / "mh_moe" / "checkpoint").module(ids).logits
    rough = moe_probe.load(FIXTURES / "mh_moe" / "checkpoint", dtype=torch.bfloat16).module(ids).logits.float()
    assert rough.isfinite().all()
    assert (rough - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_pad_tokens_are_masked_where_training_did_not_use_flash_attention(tmp_path):
    write(tmp_path, mask_pad_tokens=True)
    module = load(tmp_path).module
    ids = torch.tensor([[5, 1, 7, 9]])
    masked = module(ids, attention_mask=(ids != 1).long()).logits
    assert torch.equal(module(ids).logits, masked)
    assert not torch.allclose(module(ids, attention_mask=torch.ones_like(ids)).logits, masked)


def test_options_beside_the_files_stand_in_for_those_that_are_missing(tmp_path):
    write(tmp_path)
    path = tmp_path / "checkpoint_last-shared.pt"
    value = torch.load(path, weights_only=True)
    options = value.pop("cfg")["model"]
    torch.save(value | {"cfg": None}, path)
    with pytest.raises(CheckpointError, match=r"lack 'decoder_embed_dim'.*config\.json"):
        load(tmp_path)
    (tmp_path / "options.json").write_text(json.dumps({"model": options}))
    assert load(tmp_path).layer(1).num_experts == 6


def test_options_that_are_not_known_and_keys_that_do_not_fit_are_named(tmp_path):
    write(tmp_path)
    with pytest.raises(FamilyError, match="subln=True"):
        load(tmp_path, subln=True)
    with pytest.raises(FamilyError, match="tanhshrink"):
        load(tmp_path, activation_fn="tanhshrink")
    with pytest.raises(CheckpointError, match="6 of 7 experts"):
        load(tmp_path, moe_expert_count=7)
    with pytest.raises(WeightError, match=r"layers\.2"):
        load(tmp_path, decoder_layers=2)
    with pytest.raises(WeightError, match=r"experts\.gate_up_proj"):
        load(tmp_path, moe_ffn_dim=13)


def test_a_namespace_of_options_is_read_without_its_class(tmp_path):
    write(tmp_path)
    path = tmp_path / "checkpoint_last-shared.pt"
    value = torch.load(path, weights_only=True)
    value["args"], value["cfg"] = argparse.Namespace(**value["cfg"]["model"]), None
    torch.save(value, path)
    assert load(tmp_path).layer(3).top_k == 2


def test_static_analyses_see_sub_token_wide_experts():
    dataset = moe_probe.static.similarity(FIXTURES / "mh_moe" / "checkpoint")
    assert dataset.cosine.shape == (2, 3, 8, 8)
    gate = moe_probe.static.gate_similarity(FIXTURES / "x_moe" / "checkpoint")
    wg = moe_probe.load(FIXTURES / "x_moe" / "checkpoint").router_weight(1).double()
    cosine = torch.nn.functional.cosine_similarity(wg[2], wg[5], dim=0)
    assert abs(float(gate.cosine[0, 2, 5]) - float(cosine)) < 1e-6


def test_a_folder_of_one_file_opens_too(tmp_path):
    shutil.copy(FIXTURES / "x_moe" / "checkpoint_legacy" / "checkpoint_last.pt", tmp_path / "checkpoint_3_700.pt")
    assert load(tmp_path).layer(1).top_k == 1
