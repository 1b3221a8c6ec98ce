"""Every MoE of transformers: its published layout, opened lazily, against the live module's own parameters."""

import pytest
import torch
from budget import one_in_three
from tiny_configs import tiny_config
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import moe_probe
from moe_probe.facts import facts, numbers
from moe_probe.families import DENSE, SHARED
from moe_probe.families.headers import outline
from moe_probe.families.transformers_moe import FAMILY, meta_module

MODEL_TYPES = """
afmoe aria_text axk1 axk2 bailing_hybrid beam cohere2_moe dbrx deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4
dots1 dots3_note_text ernie4_5_moe exaone_moe flex_olmo flint gemma4_text glm4_moe glm4_moe_lite glm_moe_dsa
gpt_oss granitemoe granitemoe_swa granitemoehybrid granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 inkling2_text
inkling_text jamba jetmoe kimi_linear kolibri1 laguna lfm2_moe llama4_text longcat_flash mellum mimo_v2_flash
minimax minimax_m2 minimax_m3_vl_text mixtral nemotron_h olmoe phimoe qwen2_moe qwen3_5_moe_text qwen3_moe
qwen3_next qwen4_exp_text solar_open zaya
""".split()
PRESENT = [name for name in MODEL_TYPES if name in CONFIG_MAPPING]  # older versions of transformers lack the newest


def tiny_model(model_type: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = tiny_config(model_type)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(config).eval()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data.normal_(std=0.1)
    return model


def matrices(model):
    """Every expert's, shared block's and dense FFN's matrix: (layer, label, projection)."""
    for layer in model.layers:
        labels = [*layer.weighted_experts, *([SHARED] if layer.num_shared else [])] if layer.is_moe else [DENSE]
        yield from ((layer.index, label, projection) for label in labels for projection in layer.projections)


@pytest.mark.parametrize("model_type", one_in_three(PRESENT))
def test_published_files_hold_what_the_live_module_computes_with(model_type, tmp_path):
    module = tiny_model(model_type)
    module.save_pretrained(tmp_path)
    disk, live = moe_probe.load(tmp_path), moe_probe.load(module)
    assert disk.moe_layers
    assert disk.layers == live.layers
    told = outline(str(tmp_path))
    assert told is None or (facts(told), numbers(told)) == (facts(disk), numbers(disk))
    for index in disk.moe_layers:
        assert torch.equal(disk.router_weight(index), live.router_weight(index))
    for where in matrices(disk):
        assert torch.equal(disk.expert_weight(*where), live.expert_weight(*where)), where


@pytest.mark.parametrize("model_type", "mixtral deepseek_v2 gpt_oss llama4_text dbrx jetmoe nemotron_h".split())
def test_matrices_compute_what_the_experts_module_computes(model_type):
    """up, gate and down are told apart by running them: an FFN made of them equals the module's own output."""
    module = tiny_model(model_type)
    model = moe_probe.load(module)
    index = model.moe_layers[-1]
    block = module.get_submodule(model._architecture.blocks[index])
    x = torch.randn(5, model.layer(index).hidden_size)
    weights = {p: model.expert_weight(index, "3", p) for p in model.layer(index).projections}
    up = x @ weights["up"].T
    if model_type == "jetmoe":
        found = torch.nn.functional.silu(x @ weights["gate"].T) * up @ weights["down"].T
        sizes = [0, 0, 0, len(x), 0, 0]
        hidden = block.input_linear(x, sizes).chunk(2, dim=-1)
        expected = block.output_linear(block.activation(hidden[0]) * hidden[1], sizes)
    elif model_type == "llama4_text":
        found = torch.nn.functional.silu(x @ weights["gate"].T) * up @ weights["down"].T
        expected = block.experts(x.repeat(block.experts.num_experts, 1)).view(-1, *x.shape)[3]
    else:
        act = block.experts.act_fn if hasattr(block.experts, "act_fn") else torch.nn.functional.silu
        if model_type == "gpt_oss":
            bias = block.experts.gate_up_proj_bias[3]
            gate = (x @ weights["gate"].T + bias[0::2]).clamp(max=block.experts.limit)
            up = (up + bias[1::2]).clamp(-block.experts.limit, block.experts.limit)
            hidden = (up + 1) * gate * torch.sigmoid(gate * block.experts.alpha)
            found = hidden @ weights["down"].T + block.experts.down_proj_bias[3]
        else:
            hidden = act(x @ weights["gate"].T) * up if "gate" in weights else act(up)
            found = hidden @ weights["down"].T
        chosen = torch.full((len(x), 1), 3)
        expected = block.experts(x, chosen, torch.ones(len(x), 1)).reshape(found.shape)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_at_least_fifty_model_types_are_covered():
    assert len(set(MODEL_TYPES)) >= 50


def test_experts_without_weights_are_told_by_kind():
    kinds = moe_probe.load(tiny_model("longcat_flash")).layer(0).expert_kinds
    assert kinds.count("ffn") == 6
    assert kinds[6:] == ("copy", "copy")


@pytest.mark.parametrize("name", ["mixtral", "mistral"])
def test_families_by_hand_agree_with_the_model_that_transformers_builds(name, request):
    model = request.getfixturevalue(name)
    derived = FAMILY.open(model.checkpoint)
    for where in matrices(model):
        assert torch.equal(derived.expert(*where).read(), model.expert_weight(*where)), where


def test_meta_module_holds_no_memory():
    assert all(parameter.is_meta for parameter in meta_module(tiny_config("qwen3_moe")).parameters())
