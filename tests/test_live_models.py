"""Live models as people have them: wrapped, adapted, offloaded, packed, changed after load."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn
from transformers import MixtralForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

import moe_probe
from moe_probe import dynamic
from moe_probe.errors import NotFitting, WrongType

SOURCE = "ckpt/tiny-mixtral"


def live():
    return MixtralForCausalLM.from_pretrained(SOURCE, dtype=torch.float32).eval()


def with_all_parts():
    """A model with a dense layer, routed and shared experts."""
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
    )
    return Qwen2MoeForCausalLM(config).eval()


def everything(model):
    """Every matrix that analyses read, and the layers."""
    yield model.layers
    for layer in model.layers:
        labels = [*layer.weighted_experts, *(["S"] if layer.num_shared else [])] if layer.is_moe else ["F"]
        if layer.is_moe:
            yield model.router_weight(layer.index)
        for label in labels:
            yield from (model.expert_weight(layer.index, label, projection) for projection in layer.projections)


def assert_same(one, two):
    for first, second in zip(everything(one), everything(two), strict=True):
        assert first == second if isinstance(first, tuple) else torch.allclose(first.float(), second.float(), atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel], ids=["compile", "dp"])
def test_wrappers_are_looked_through(wrap):
    module = live()
    model = moe_probe.load(wrap(module))
    assert model.module is module
    assert_same(model, moe_probe.load(SOURCE))


def test_a_compiled_layer_is_looked_through():
    module = live()
    module.model.layers[1] = torch.compile(module.model.layers[1], backend="eager")
    assert_same(moe_probe.load(module), moe_probe.load(SOURCE))


def test_other_modules_are_refused():
    with pytest.raises(WrongType, match="Linear is not a transformers model"):
        moe_probe.load(nn.Linear(2, 2))


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
def test_offloaded_weights_are_fetched(offload, tmp_path):
    module = live()
    place = [tmp_path] if offload is disk_offload else []
    offload(module, *([str(place[0])] if place else []), execution_device=torch.device("cpu"))
    assert_same(moe_probe.load(module), moe_probe.load(SOURCE))
    weights = moe_probe.load(live()).identity_facts()["weights"]
    assert moe_probe.load(module).identity_facts()["weights"] == weights


def test_weights_without_values_are_refused():
    config = live().config
    with torch.device("meta"):
        module = MixtralForCausalLM(config)
    with pytest.raises(NotFitting, match="meta device"):
        moe_probe.load(module).expert_weight(0, "0", "up")


def test_a_replaced_parameter_is_seen():
    module = live()
    model = moe_probe.load(module)
    before = model.expert_weight(0, "0", "up").clone()
    experts = module.model.layers[0].mlp.experts
    experts.gate_up_proj = nn.Parameter(torch.zeros_like(experts.gate_up_proj))
    assert before.abs().max() > 0
    assert model.expert_weight(0, "0", "up").abs().max() == 0


def test_a_parametrized_weight_is_the_one_computed_with():
    module = with_all_parts()
    linear = module.model.layers[0].mlp.up_proj
    nn.utils.parametrizations.weight_norm(linear)
    linear.parametrizations.weight.original0.data *= 2
    assert torch.equal(moe_probe.load(module).expert_weight(0, "F", "up"), linear.weight)


class PackedLinear(nn.Linear):
    """As bitsandbytes keeps a layer: codes in a column."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        codes = torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(codes, requires_grad=False)


def test_packed_weights_are_refused_by_name():
    module = with_all_parts()
    module.model.layers[0].mlp.up_proj = PackedLinear(module.model.layers[0].mlp.up_proj)
    model = moe_probe.load(module)
    assert model.layer(0).intermediate_size == 64
    with pytest.raises(NotFitting, match=r"layers.0.mlp.up_proj.weight is packed \(uint8 in a PackedLinear\)"):
        model.expert_weight(0, "F", "up")


def adapted(module, **options):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, **options)
    return peft.get_peft_model(module, config).eval()


PARTS = {
    "attention": {"target_modules": ["q_proj"]},
    "linear layers": {"target_modules": ["up_proj", "gate_proj", "down_proj"]},
    "router": {"target_modules": [], "target_parameters": ["mlp.gate.weight"]},
    "experts": {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["gate"]},
}


@pytest.mark.parametrize("part", PARTS)
def test_adapters_count_as_if_merged(part):
    wrapped = adapted(with_all_parts(), **PARTS[part])
    if part == "saved":
        with torch.no_grad():
            wrapped.base_model.model.model.layers[1].mlp.gate.modules_to_save["default"].weight.mul_(2)
    model = moe_probe.load(wrapped)
    merged = moe_probe.load(copy.deepcopy(wrapped).merge_and_unload())
    assert_same(model, merged)
    if part != "attention":
        plain = list(everything(moe_probe.load(with_all_parts())))
        assert any(not torch.equal(a, b) for a, b in zip(list(everything(model))[1:], plain[1:], strict=True))
    assert model.fingerprint != moe_probe.load(with_all_parts()).fingerprint


def test_a_disabled_adapter_changes_nothing_and_another_fingerprint_says_so():
    wrapped = adapted(with_all_parts(), **PARTS["linear layers"])
    model = moe_probe.load(wrapped)
    enabled = model.fingerprint
    with wrapped.disable_adapter():
        assert_same(model, moe_probe.load(with_all_parts()))
        assert model.fingerprint != enabled


def test_files_and_live_model_count_the_same_parameters(tmp_path):
    module = with_all_parts()
    module.save_pretrained(tmp_path)
    assert moe_probe.load(tmp_path).counts == moe_probe.load(module).counts
    assert moe_probe.load(module).counts.language == sum(p.numel() for p in module.parameters())


def test_another_thread_that_loads_a_model_changes_no_dtype(mixtral):
    expected = dynamic.gate_choices(mixtral, [[4, 5, 6]], progress=False)
    torch.set_default_dtype(torch.bfloat16)  # as transformers does while it builds a model
    try:
        found = dynamic.gate_choices(mixtral, [[4, 5, 6]], progress=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.equals(expected)
