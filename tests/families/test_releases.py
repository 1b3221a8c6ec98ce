"""Releases that spell a model otherwise give the numbers of the layout that transformers has; all by hand."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import moe_probe
from moe_probe import dynamic, static
from moe_probe.errors import CheckpointError, FamilyError, MoEProbeError
from moe_probe.facts import facts
from moe_probe.families.declared import Declared, named
from moe_probe.model import MoEModel

pytestmark = pytest.mark.usefixtures("headers_say_the_same")
D, FF, E, L, H, KV, HD, V = 32, 24, 4, 2, 4, 2, 8, 48
IDS = torch.tensor([[5, 9, 3, 7, 11, 2, 40, 8]])
SMALL = {
    "hidden_size": D,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "num_key_value_heads": KV,
    "vocab_size": V,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 2,
    "torch_dtype": "float32",
    "max_position_embeddings": 64,
}


class Made(dict):
    """Random tensors by their published names."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def new(self, name, *shape):
        self[name] = torch.randn(*shape, generator=self.generator) * (0.3 if len(shape) > 1 else 0.1) + (
            len(shape) == 1
        )
        return self[name]


def mixtral():
    made = Made()
    for name, shape in {"embed_tokens.weight": (V, D), "norm.weight": (D,)}.items():
        made.new(f"model.{name}", *shape)
    made.new("lm_head.weight", V, D)
    for layer in range(L):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            made.new(f"{prefix}{name}.weight", D)
        for name, rows, columns in (("q", D, D), ("k", KV * HD, D), ("v", KV * HD, D), ("o", D, D)):
            made.new(f"{prefix}self_attn.{name}_proj.weight", rows, columns)
        made.new(f"{prefix}block_sparse_moe.gate.weight", E, D)
        for expert in range(E):
            for name, shape in {"w1": (FF, D), "w3": (FF, D), "w2": (D, FF)}.items():
                made.new(f"{prefix}block_sparse_moe.experts.{expert}.{name}.weight", *shape)
    return made


MIXTRAL = {
    **SMALL,
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "intermediate_size": FF,
    "num_local_experts": E,
    "sliding_window": None,
}
PARAMS = {
    "dim": D,
    "n_layers": L,
    "head_dim": HD,
    "hidden_dim": FF,
    "n_heads": H,
    "n_kv_heads": KV,
    "rope_theta": 1e4,
    "norm_eps": 1e-5,
    "vocab_size": V,
    "moe": {"num_experts_per_tok": 2, "num_experts": E},
}


def write(folder, tensors, config, name="model.safetensors", config_name="config.json"):
    folder.mkdir(exist_ok=True)
    (folder / config_name).write_text(json.dumps(config))
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, folder / name)
    return folder


def logits(model):
    with torch.no_grad():
        return model.module(IDS).logits


def assert_same(model, plain):
    """Weights and logits are those of another layout of the same model."""
    for layer in plain.moe_layers:
        assert torch.equal(model.router_weight(layer), plain.router_weight(layer))
        for expert in plain.layer(layer).weighted_experts:
            for projection in plain.layer(layer).projections:
                found, expected = (each.expert_weight(layer, expert, projection) for each in (model, plain))
                assert torch.equal(found, expected)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-5)
    layerwise, resident = (
        dynamic.run(model, [[5, 9, 3]], dynamic.ExpertLoad(), execution=execution)["expert_load"]
        for execution in ("layerwise", "resident")
    )
    assert layerwise.equals(resident)


def neighbors(rows, heads):
    """Rows half a head apart, put next to each other."""
    return rows.view(heads, 2, -1, rows.shape[-1]).transpose(1, 2).reshape(rows.shape)


def consolidated(made, flat):
    ends = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.v_proj": "attention.wv",
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.o_proj": "attention.wo",
    }
    out = {}
    for key, value in made.items():
        key = key.removesuffix(".weight")
        if key in ends:
            out[f"{ends[key]}.weight"] = value
            continue
        _, _, layer, name = key.split(".", 3)
        value = neighbors(value, H if "q_proj" in name else KV) if name.endswith(("q_proj", "k_proj")) else value
        block = "block_sparse_moe" if flat else "feed_forward"
        out[f"layers.{layer}.{parts.get(name, name.replace('block_sparse_moe', block))}.weight"] = value
    if flat:
        for layer in range(L):
            for name in ("w1", "w2", "w3"):
                keys = [f"layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight" for expert in range(E)]
                matrices = [out.pop(key) for key in keys]
                rows = torch.cat([matrix.T if name == "w2" else matrix for matrix in matrices])
                out[f"layers.{layer}.block_sparse_moe.{name}"] = rows
    return out


@pytest.fixture
def plain(tmp_path):
    return moe_probe.load(write(tmp_path / "plain", mixtral(), MIXTRAL))


def test_mistrals_consolidated_safetensors(tmp_path, plain):
    tensors = consolidated(mixtral(), flat=False)
    folder = write(tmp_path / "m", tensors, PARAMS, "consolidated.safetensors", "params.json")
    assert_same(moe_probe.load(folder), plain)


def test_mistrals_pickles_hold_all_experts_below_each_other(tmp_path, plain):
    folder, tensors = tmp_path / "m", consolidated(mixtral(), flat=True)
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(PARAMS))
    keys = list(tensors)
    for number in range(3):
        torch.save({key: tensors[key] for key in keys[number::3]}, folder / f"consolidated.{number:02}.pt")
    assert_same(moe_probe.load(folder), plain)
    (folder / "consolidated.01.pt").unlink()
    with pytest.raises(CheckpointError, match=r"consolidated.01.pt is missing"):
        moe_probe.load(folder)


def test_mlx_stacks_experts(tmp_path, plain):
    tensors = dict(mixtral())
    for layer in range(L):
        block = f"model.layers.{layer}.block_sparse_moe."
        for old, new in {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.items():
            stack = torch.stack([tensors.pop(f"{block}experts.{expert}.{old}.weight") for expert in range(E)])
            tensors[f"{block}switch_mlp.{new}.weight"] = stack
    assert_same(moe_probe.load(write(tmp_path / "m", tensors, MIXTRAL)), plain)
    with pytest.raises(FamilyError, match="MLX changes weights of 'qwen3_next'"):
        moe_probe.load(write(tmp_path / "n", tensors, {**MIXTRAL, "model_type": "qwen3_next"}))


DEEPSEEK = {
    **SMALL,
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "intermediate_size": 40,
    "moe_intermediate_size": FF,
    "n_routed_experts": E,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": H,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.0,
}


def deepseek(prefix=""):
    made = Made()
    made.new(f"{prefix}model.embed_tokens.weight", V, D)
    made.new(f"{prefix}model.norm.weight", D)
    made.new(f"{prefix}lm_head.weight", V, D)
    for layer in range(L):
        at = f"{prefix}model.layers.{layer}."
        shapes = {
            "q_a_proj": (12, D),
            "q_a_layernorm": (12,),
            "q_b_proj": (H * 16, 12),
            "kv_a_proj_with_mqa": (20, D),
            "kv_a_layernorm": (12,),
            "kv_b_proj": (H * 16, 12),
            "o_proj": (D, H * 8),
        }
        for name in ("input_layernorm", "post_attention_layernorm"):
            made.new(f"{at}{name}.weight", D)
        for name, shape in shapes.items():
            made.new(f"{at}self_attn.{name}.weight", *shape)
        blocks = ["mlp"] if layer < 1 else [*(f"mlp.experts.{expert}" for expert in range(E)), "mlp.shared_experts"]
        for block in blocks:
            neurons = 40 if block == "mlp" else FF
            for name, shape in {"gate": (neurons, D), "up": (neurons, D), "down": (D, neurons)}.items():
                made.new(f"{at}{block}.{name}_proj.weight", *shape)
        if layer:
            made.new(f"{at}mlp.gate.weight", E, D)
            made.new(f"{at}mlp.gate.e_score_correction_bias", E)
    return made


@pytest.mark.parametrize("whole", ["kimi_k25", "kimi_vl", "some_vl"])
@pytest.mark.parametrize("inner", ["kimi_k2", "deepseek_v3"])
def test_a_language_model_inside_of_another_model(tmp_path, whole, inner):
    plain = moe_probe.load(write(tmp_path / "plain", deepseek(), DEEPSEEK))
    text = {key: value for key, value in DEEPSEEK.items() if key != "architectures"} | {"model_type": inner}
    config = {
        "model_type": whole,
        "architectures": ["SomeForConditionalGeneration"],
        "text_config": text,
        "vision_config": {"model_type": "moonvit"},
        "tie_word_embeddings": False,
    }
    tensors = {**deepseek("language_model."), "vision_tower.blocks.0.wqkv.weight": torch.ones(6, 4)}
    model = moe_probe.load(write(tmp_path / "m", tensors, config))
    assert_same(model, plain)
    assert set(model.unused) == {"vision_tower.blocks.0.wqkv.weight"}
    assert dict(facts(model))["parameters"] == dict(facts(plain))["parameters"]


def test_kimi_k2_is_deepseek_v3(tmp_path):
    plain = moe_probe.load(write(tmp_path / "plain", deepseek(), DEEPSEEK))
    assert_same(moe_probe.load(write(tmp_path / "m", deepseek(), {**DEEPSEEK, "model_type": "kimi_k2"})), plain)
    with pytest.raises(FamilyError, match=r"--config model_type=deepseek_v3"):
        moe_probe.load(write(tmp_path / "n", deepseek(), {**DEEPSEEK, "model_type": "brand_new"}))


def test_layers_that_predict_several_tokens_are_counted_apart(tmp_path, capfd):
    tensors = deepseek()
    extra = {key.replace("layers.1.", "layers.2."): value for key, value in tensors.items() if "layers.1." in key}
    model = moe_probe.load(write(tmp_path / "m", {**tensors, **extra}, {**DEEPSEEK, "num_nextn_predict_layers": 1}))
    lines = dict(facts(model))
    parameters = sum(value.numel() for key, value in tensors.items() if not key.endswith("correction_bias"))
    assert lines["parameters"].startswith(f"{parameters:,} in all")
    assert f"{sum(value.numel() for value in extra.values()):,} that the module does not use" in lines["also on disk"]
    logits(model)
    assert "UNEXPECTED" not in capfd.readouterr().err


def gpt_oss():
    made = Made()
    made.new("model.embed_tokens.weight", V, D)
    made.new("model.norm.weight", D)
    made.new("lm_head.weight", V, D)
    for layer in range(L):
        at = f"model.layers.{layer}."
        made.new(at + "input_layernorm.weight", D)
        made.new(at + "post_attention_layernorm.weight", D)
        for name, rows in (("q", H * HD), ("k", KV * HD), ("v", KV * HD), ("o", D)):
            made.new(f"{at}self_attn.{name}_proj.weight", rows, H * HD if name == "o" else D)
            made.new(f"{at}self_attn.{name}_proj.bias", rows)
        made.new(at + "self_attn.sinks", H)
        made.new(at + "mlp.router.weight", E, D)
        made.new(at + "mlp.router.bias", E)
        for name, shape in {"gate_up_proj": (E, D, 2 * FF), "down_proj": (E, FF, D)}.items():
            made.new(f"{at}mlp.experts.{name}", *shape)
            made.new(f"{at}mlp.experts.{name}_bias", E, shape[-1])
    return made


GPT_OSS_SCALING = {
    "rope_type": "yarn",
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 16,
}
GPT_OSS = {
    **SMALL,
    "model_type": "gpt_oss",
    "architectures": ["GptOssForCausalLM"],
    "intermediate_size": FF,
    "num_local_experts": E,
    "head_dim": HD,
    "sliding_window": 4,
    "rope_scaling": GPT_OSS_SCALING,
    "attention_bias": True,
    "layer_types": ["sliding_attention", "full_attention"],
}


def test_gpt_oss_as_openais_program_has_it(tmp_path):
    plain = moe_probe.load(write(tmp_path / "plain", gpt_oss(), GPT_OSS))
    names = {
        "input_layernorm.weight": "attn.norm.scale",
        "post_attention_layernorm.weight": "mlp.norm.scale",
        "self_attn.o_proj.weight": "attn.out.weight",
        "self_attn.o_proj.bias": "attn.out.bias",
        "self_attn.sinks": "attn.sinks",
        "mlp.router.weight": "mlp.gate.weight",
        "mlp.router.bias": "mlp.gate.bias",
        "mlp.experts.gate_up_proj_bias": "mlp.mlp1_bias",
        "mlp.experts.down_proj_bias": "mlp.mlp2_bias",
        "mlp.experts.gate_up_proj": "mlp.mlp1_weight",
        "mlp.experts.down_proj": "mlp.mlp2_weight",
    }
    made, tensors = gpt_oss(), {}
    ends = {
        "model.embed_tokens.weight": "embedding.weight",
        "model.norm.weight": "norm.scale",
        "lm_head.weight": "unembedding.weight",
    }
    for key, value in made.items():
        layer, _, name = key.removeprefix("model.layers.").partition(".")
        if key in ends:
            tensors[ends[key]] = value
        elif name in names:
            tensors[f"block.{layer}.{names[name]}"] = value.transpose(1, 2) if value.ndim == 3 else value
    for layer in range(L):
        for kind in ("weight", "bias"):
            rows = [made[f"model.layers.{layer}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            tensors[f"block.{layer}.attn.qkv.{kind}"] = torch.cat(rows)
    original = {
        "num_hidden_layers": L,
        "num_experts": E,
        "experts_per_token": 2,
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": FF,
        "swiglu_limit": 7.0,
        "head_dim": HD,
        "num_attention_heads": H,
        "num_key_value_heads": KV,
        "sliding_window": 4,
        "initial_context_length": 16,
        "rope_theta": 10000,
        "rope_scaling_factor": 4.0,
        "rope_ntk_alpha": 1,
        "rope_ntk_beta": 32,
    }
    assert_same(moe_probe.load(write(tmp_path / "m", tensors, original)), plain)


LONGCAT = {
    "model_type": "longcat_flash",
    "architectures": ["LongcatFlashForCausalLM"],
    "hidden_size": D,
    "ffn_hidden_size": 40,
    "expert_ffn_hidden_size": FF,
    "moe_topk": 2,
    "n_routed_experts": E,
    "zero_expert_num": 2,
    "zero_expert_type": "identity",
    "num_attention_heads": H,
    "num_layers": 1,
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": V,
    "routed_scaling_factor": 3.0,
    "torch_dtype": "float32",
}


def longcat(experts=E):
    made = Made()
    made.new("model.embed_tokens.weight", V, D)
    made.new("model.norm.weight", D)
    made.new("lm_head.weight", V, D)
    at = "model.layers.0."
    for part in range(2):
        shapes = {
            "q_a_proj": (12, D),
            "q_a_layernorm": (12,),
            "q_b_proj": (H * 16, 12),
            "kv_a_proj_with_mqa": (20, D),
            "kv_a_layernorm": (12,),
            "kv_b_proj": (H * 16, 12),
            "o_proj": (D, H * 8),
        }
        made.new(f"{at}input_layernorm.{part}.weight", D)
        made.new(f"{at}post_attention_layernorm.{part}.weight", D)
        for name, shape in shapes.items():
            made.new(f"{at}self_attn.{part}.{name}.weight", *shape)
        for name, shape in {"gate": (40, D), "up": (40, D), "down": (D, 40)}.items():
            made.new(f"{at}mlps.{part}.{name}_proj.weight", *shape)
    made.new(f"{at}mlp.router.classifier.weight", E + 2, D)
    made.new(f"{at}mlp.router.e_score_correction_bias", E + 2)
    for expert in range(experts):
        for name, shape in {"gate": (FF, D), "up": (FF, D), "down": (D, FF)}.items():
            made.new(f"{at}mlp.experts.{expert}.{name}_proj.weight", *shape)
    return made


def test_longcat_flash_has_no_rows_for_experts_that_return_their_input(tmp_path):
    made = longcat()
    model = moe_probe.load(write(tmp_path / "m", made, LONGCAT))
    assert model.layer(0).expert_kinds == ("ffn",) * E + ("copy",) * 2
    assert torch.equal(model.expert_weight(0, "3", "up"), made["model.layers.0.mlp.experts.3.up_proj.weight"])
    buffers = made["model.layers.0.mlp.router.e_score_correction_bias"].numel()
    assert model.counts.language == sum(value.numel() for value in made.values()) - buffers
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize("fused", [False, True])
def test_rows_that_transformers_writes_for_longcats_experts_without_weights_are_left_out(tmp_path, fused):
    made = longcat()
    for layer in {key.split(".")[2] for key in made if ".experts." in key}:
        place = f"model.layers.{layer}.mlp.experts"
        for expert in (E, E + 1):
            for name in ("gate_proj", "up_proj"):
                made[f"{place}.{expert}.{name}.weight"] = torch.randn_like(made[f"{place}.0.{name}.weight"])
        if fused:
            rows = [
                torch.cat([made.pop(f"{place}.{expert}.{name}.weight") for name in ("gate_proj", "up_proj")])
                for expert in range(E + 2)
            ]
            made[f"{place}.gate_up_proj"] = torch.stack(rows)
            down = [made.pop(f"{place}.{expert}.down_proj.weight") for expert in range(E)]
            made[f"{place}.down_proj"] = torch.stack(down)
    model, released = (
        moe_probe.load(write(tmp_path / name, of, LONGCAT)) for name, of in (("a", made), ("b", longcat()))
    )
    assert torch.equal(model.expert_weight(0, "3", "up"), released.expert_weight(0, "3", "up"))
    assert torch.equal(logits(model), logits(released))


def test_experts_that_do_not_fit_are_refused_when_the_model_opens(tmp_path):
    with pytest.raises(MoEProbeError, match=r"gate_up_proj|down_proj"):
        moe_probe.load(write(tmp_path / "m", longcat(E - 1), LONGCAT))
    made = mixtral()
    made["model.layers.1.block_sparse_moe.experts.2.w3.weight"] = torch.ones(FF, D + 1)
    with pytest.raises(MoEProbeError, match=r"experts.2.w3"):
        moe_probe.load(write(tmp_path / "n", made, MIXTRAL))


M, B = "model.layers.{}.mlp", "model.layers.{}.block_sparse_moe"
FAMILIES = {
    "bailing_moe": (f"{M}.gate.weight", f"{M}.experts.{{}}.{{}}_proj.weight", {}),
    "bailing_moe_v2": (f"{M}.gate.weight", f"{M}.experts.{{}}.{{}}_proj.weight", {}),
    "minimax_text_01": (f"{B}.gate.weight", f"{B}.experts.{{}}.{{}}.weight", {"gate": "w1", "up": "w3", "down": "w2"}),
    "hunyuan": (f"{M}.gate.wg.weight", f"{M}.experts.{{}}.{{}}_proj.weight", {}),
    "arctic": (f"{B}.gate.weight", f"{B}.experts.{{}}.{{}}.weight", {"gate": "w1", "up": "w3", "down": "w2"}),
    "xverse": (f"{M}.router.weight", f"{M}.experts.{{}}.{{}}_proj.weight", {}),
    "smallthinker": (f"{B}.primary_router.weight", f"{B}.experts.{{}}.{{}}.weight", {}),
    "skywork": (f"{M}.gate.weight", f"{M}.experts.mlp_experts.{{}}.{{}}_proj.weight", {}),
}
CHOSEN = {"smallthinker": "moe_num_active_primary_experts", "hunyuan": "moe_topk"}


@pytest.mark.parametrize("kind", FAMILIES)
def test_families_that_transformers_lacks_open_for_static_analyses(tmp_path, kind):
    router, experts, names = FAMILIES[kind]
    made = Made()
    made.new("model.embed_tokens.weight", V, D)
    for layer in range(L):
        made.new(router.format(layer), E, D)
        for expert in range(E):
            for name, shape in {"gate": (FF, D), "up": (FF, D), "down": (D, FF)}.items():
                made.new(experts.format(layer, expert, names.get(name, name)), *shape)
    config = {"model_type": kind, "hidden_size": D, "num_hidden_layers": L, CHOSEN.get(kind, "num_experts_per_tok"): 2}
    model = moe_probe.load(write(tmp_path / "m", made, config))
    assert model.layer(1).top_k == 2
    for name in ("gate", "up", "down"):
        assert torch.equal(model.expert_weight(1, "2", name), made[experts.format(1, 2, names.get(name, name))])
    static.similarity(model, level="neuron_mean")
    static.gate_similarity(model)
    assert dict(facts(model))["parameters"].startswith(f"{sum(value.numel() for value in made.values()):,} in all")
    for execution in ("resident", "layerwise"):
        with pytest.raises(FamilyError, match=f"{model.family} models open for static analyses only"):
            dynamic.run(model, [[1, 2]], dynamic.ExpertLoad(), execution=execution)
    del made[experts.format(1, 2, names.get("down", "down"))]
    with pytest.raises(MoEProbeError, match=re.escape(experts.format(1, 2, names.get("down", "down")))):
        moe_probe.load(write(tmp_path / "n", made, config))


def test_openmoe_is_not_taken_for_a_dense_llama(tmp_path):
    made = Made()
    for layer in range(L):
        made.new(f"model.layers.{layer}.mlp.gate_weight", E, D)
        for name, shape in {"wi_gate": (E, D, FF), "wi_up": (E, D, FF), "wo": (E, FF, D)}.items():
            made.new(f"model.layers.{layer}.mlp.experts.{name}", *shape)
    config = {"model_type": "llama", "hidden_size": D, "num_hidden_layers": L, "topk": 2, "hidden_act": "swiglu"}
    model = moe_probe.load(write(tmp_path / "m", made, config))
    assert (model.family, model.moe_layers) == ("openmoe", (0, 1))
    assert torch.equal(model.expert_weight(1, "3", "down"), made["model.layers.1.mlp.experts.wo"][3].T)


def test_a_declaration_of_ones_own(tmp_path):
    made = mixtral()
    folder = write(tmp_path / "m", made, {**MIXTRAL, "model_type": "mine"})
    block = "model.layers.{layer}.block_sparse_moe"
    family = Declared("mine", ("mine",), named(f"{block}.experts.{{expert}}", "w3 w1 w2"), f"{block}.gate.weight")
    checkpoint = moe_probe.checkpoint.open_checkpoint(folder)
    assert family.recognises(checkpoint)
    model = MoEModel("mine", family.name, family.open(checkpoint), checkpoint)
    assert torch.equal(model.router_weight(1), made["model.layers.1.block_sparse_moe.gate.weight"])


def test_a_released_configuration_is_read_as_it_is_meant_with_a_word(tmp_path):
    with pytest.warns(UserWarning, match=r"output_router_logits=0 as False"):
        moe_probe.load(write(tmp_path / "m", mixtral(), {**MIXTRAL, "output_router_logits": 0}))
    with pytest.warns(UserWarning, match=r"hidden_act='swiglu' as 'silu'"):
        moe_probe.load(write(tmp_path / "n", mixtral(), {**MIXTRAL, "hidden_act": "swiglu"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moe_probe.load(write(tmp_path / "o", mixtral(), MIXTRAL))


@pytest.mark.parametrize(
    "ending", ["weight_scale", "scales", "qzeros", "weight.absmax", "lora_A.weight", "weight_zero_point"]
)
def test_what_stands_unexplained_beside_a_weight_is_refused_by_name(tmp_path, ending):
    key = f"model.layers.0.block_sparse_moe.experts.1.w2.{ending}"
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        moe_probe.load(write(tmp_path / "m", {**mixtral(), key: torch.ones(4, 4)}, MIXTRAL))


def qwen3_vl(neurons):
    """Configuration and experts of Qwen3-VL-MoE; stacks are (E, out, in)."""
    made = Made()
    text = {
        **SMALL,
        "model_type": "qwen3_vl_moe_text",
        "num_experts": E,
        "moe_intermediate_size": neurons,
        "intermediate_size": 40,
        "head_dim": HD,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "rope_scaling": {"mrope_section": [2, 1, 1], "rope_type": "default"},
    }
    config = {
        "model_type": "qwen3_vl_moe",
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "text_config": text,
        "vision_config": {
            "depth": 0,
            "hidden_size": 16,
            "num_heads": 2,
            "out_hidden_size": D,
            "deepstack_visual_indexes": [],
        },
    }
    for layer in range(L):
        at = f"model.language_model.layers.{layer}.mlp."
        made.new(f"{at}gate.weight", E, D)
        made.new(f"{at}experts.gate_up_proj", E, 2 * neurons, D)
        made.new(f"{at}experts.down_proj", E, D, neurons)
    return config, made


@pytest.mark.parametrize("neurons", [D // 2, D, 24])
@pytest.mark.parametrize("turned", [True, False])
def test_a_square_stack_is_turned_as_its_sibling_is(tmp_path, neurons, turned):
    config, made = qwen3_vl(neurons)
    stored = {key: value.transpose(1, 2) if value.ndim == 3 and turned else value for key, value in made.items()}
    model = moe_probe.load(write(tmp_path / "m", stored, config))
    experts = "model.language_model.layers.1.mlp.experts."
    rows = made[experts + "gate_up_proj"][2]
    assert torch.equal(model.expert_weight(1, "2", "gate"), rows[:neurons])
    assert torch.equal(model.expert_weight(1, "2", "up"), rows[neurons:])
    assert torch.equal(model.expert_weight(1, "2", "down"), made[experts + "down_proj"][2])


def llama4():
    """Configuration and experts of Llama 4; stacks are (E, out, in)."""
    made = Made()
    text = {**SMALL, "model_type": "llama4_text", "num_local_experts": E, "intermediate_size": FF, "head_dim": HD,
            "intermediate_size_mlp": 40, "interleave_moe_layer_step": 1, "num_experts_per_tok": 1}  # fmt: skip
    vision = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    config = {
        "model_type": "llama4",
        "architectures": ["Llama4ForConditionalGeneration"],
        "text_config": text,
        "vision_config": vision,
    }
    for layer in range(L):
        at = f"language_model.model.layers.{layer}.feed_forward."
        made.new(f"{at}router.weight", E, D)
        made.new(f"{at}experts.gate_up_proj", E, 2 * FF, D)
        made.new(f"{at}experts.down_proj", E, D, FF)
        for name, shape in {"gate": (FF, D), "up": (FF, D), "down": (D, FF)}.items():
            made.new(f"{at}shared_expert.{name}_proj.weight", *shape)
    return config, made


def parted(made, neurons):
    """Stacks (E, out, in) as quantizers part them: gate, up and down of each expert."""
    tensors = {}
    for key, value in made.items():
        block, _, name = key.rpartition(".")
        if value.ndim != 3:
            tensors[key] = value
        for expert in range(E if value.ndim == 3 else 0):
            parts = {"up": value[expert, neurons:], "gate": value[expert, :neurons]}
            for part, matrix in ({"down": value[expert]} if name == "down_proj" else parts).items():
                tensors[f"{block}.{expert}.{part}_proj.weight"] = matrix
    return tensors


@pytest.mark.parametrize("kind", ["qwen3_vl", "llama4"])
def test_stacks_that_quantizers_part_by_expert(tmp_path, kind):
    config, made = qwen3_vl(FF) if kind == "qwen3_vl" else llama4()
    tensors = parted(made, FF)
    model = moe_probe.load(write(tmp_path / "m", tensors, config))
    blocks = {"qwen3_vl": "model.language_model.layers.{}.mlp", "llama4": "language_model.model.layers.{}.feed_forward"}
    block = blocks[kind]
    for layer in range(L):
        for expert in range(E):
            for name in ("gate", "up", "down"):
                key = f"{block.format(layer)}.experts.{expert}.{name}_proj.weight"
                assert torch.equal(model.expert_weight(layer, str(expert), name), tensors[key])
    assert model.layer(1).num_experts == E
    del tensors[f"{block.format(1)}.experts.2.up_proj.weight"]
    with pytest.raises(MoEProbeError, match=r"experts' has no up of expert 2"):
        moe_probe.load(write(tmp_path / "gap", tensors, config))


@pytest.mark.parametrize("listed", [True, False])
def test_gpt_oss_by_expert_alternates_gate_and_up(tmp_path, listed):
    plain = moe_probe.load(write(tmp_path / "plain", gpt_oss(), GPT_OSS))
    tensors = {}
    for key, value in gpt_oss().items():
        block, _, name = key.rpartition(".experts.")
        is_bias, name = name.endswith("_bias"), name.removesuffix("_bias").removesuffix("_proj")
        for expert in range(E) if block else ():
            rows, role = (value[expert], "bias") if is_bias else (value[expert].T, "weight")
            if listed:
                tensors[f"{block}.experts.{name}_projs.{expert}.{role}"] = rows
            elif name == "down":
                tensors[f"{block}.experts.{expert}.down_proj.{role}"] = rows
            else:
                tensors[f"{block}.experts.{expert}.gate_proj.{role}"] = rows[0::2]
                tensors[f"{block}.experts.{expert}.up_proj.{role}"] = rows[1::2]
        if not block:
            tensors[key] = value
    assert_same(moe_probe.load(write(tmp_path / "m", tensors, GPT_OSS)), plain)


def adapter(folder, base, rank=3, **config):
    generator = torch.Generator().manual_seed(7)
    factors, changed = {}, {}
    for module, (rows, columns) in {
        "model.layers.0.block_sparse_moe.experts.1.w2": (D, FF),
        "model.layers.1.block_sparse_moe.gate": (E, D),
        "model.layers.1.self_attn.q_proj": (D, D),
    }.items():
        down, up = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
        factors[f"base_model.model.{module}.lora_A.weight"], factors[f"base_model.model.{module}.lora_B.weight"] = (
            down,
            up,
        )
        changed[module] = up.double() @ down.double()
    said = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": rank, "lora_alpha": 6, **config}
    write(folder, factors, said, "adapter_model.safetensors", "adapter_config.json")
    return changed


@pytest.mark.parametrize(("config", "scale"), [({}, 2.0), ({"use_rslora": True}, 6 / 3**0.5)])
def test_an_adapter_opens_with_its_base(tmp_path, plain, config, scale):
    changed = adapter(tmp_path / "lora", plain.checkpoint.path, **config)
    model = moe_probe.load(tmp_path / "lora")
    made = mixtral()
    for key, (layer, name) in {
        "model.layers.0.block_sparse_moe.experts.1.w2": (0, "down"),
        "model.layers.1.block_sparse_moe.gate": (1, None),
    }.items():
        found = model.expert_weight(layer, "1", name) if name else model.router_weight(layer)
        expected = made[f"{key}.weight"].double() + scale * changed[key]
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.expert_weight(0, "2", "down"), plain.expert_weight(0, "2", "down"))
    assert model.fingerprint != plain.fingerprint
    assert (logits(model) - logits(plain)).abs().max() > 0.1
    assert "LoRA of rank 3" in dict(facts(model))["stored as"]


def test_an_adapter_gives_what_peft_merges(tmp_path, plain):
    peft = pytest.importorskip("peft")
    adapter(tmp_path / "lora", plain.checkpoint.path)
    model = moe_probe.load(tmp_path / "lora")
    attention = "model.layers.1.self_attn.q_proj"
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=[attention], lora_dropout=0.0)
    wrapped = peft.get_peft_model(plain.module, config)
    factors = {
        key: model.checkpoint.stored[f"adapter base_model.model.{attention}.lora_{key}.weight"].read() for key in "AB"
    }
    layer = wrapped.get_submodule(f"base_model.model.{attention}")
    layer.lora_A.default.weight.data.copy_(factors["A"])
    layer.lora_B.default.weight.data.copy_(factors["B"])
    merged = wrapped.merge_and_unload().get_submodule(attention).weight
    torch.testing.assert_close(model.published[f"{attention}.weight"].read(), merged.data, rtol=1e-6, atol=1e-6)


def dora(folder, base):
    """A DoRA adapter, and the length that each row of its modules has in the end."""
    changed = adapter(folder, base, use_dora=True)
    path, generator = folder / "adapter_model.safetensors", torch.Generator().manual_seed(8)
    lengths = {module: torch.rand(len(change), generator=generator) + 0.5 for module, change in changed.items()}
    more = {f"base_model.model.{module}.lora_magnitude_vector": length for module, length in lengths.items()}
    save_file({**load_file(path), **more}, path)
    return changed, lengths


def test_a_dora_adapter_gives_each_row_its_length(tmp_path, plain):
    changed, lengths = dora(tmp_path / "dora", plain.checkpoint.path)
    model, made = moe_probe.load(tmp_path / "dora"), mixtral()
    for module, change in changed.items():
        whole = made[f"{module}.weight"].double() + 2 * change
        expected = whole / whole.norm(dim=1, keepdim=True) * lengths[module].double()[:, None]
        tensor = model.published[f"{module}.weight"]
        torch.testing.assert_close(tensor.read().double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(tensor[1:3, 2:9].read(), tensor.read()[1:3, 2:9])
        torch.testing.assert_close(tensor[2].read(), tensor.read()[2])
    assert "DoRA of rank 3" in dict(facts(model))["stored as"]


def test_a_dora_adapter_gives_what_peft_merges(tmp_path, plain):
    peft = pytest.importorskip("peft")
    dora(tmp_path / "dora", plain.checkpoint.path)
    model, attention = moe_probe.load(tmp_path / "dora"), "model.layers.1.self_attn.q_proj"
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=[attention], lora_dropout=0.0, use_dora=True)
    wrapped = peft.get_peft_model(plain.module, config)
    stored = load_file(tmp_path / "dora" / "adapter_model.safetensors")
    layer = wrapped.get_submodule(f"base_model.model.{attention}")
    for name, value in {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}.items():
        getattr(layer, name).default.weight.data.copy_(stored[f"base_model.model.{attention}.{value}"])
    length = stored[f"base_model.model.{attention}.lora_magnitude_vector"]
    layer.lora_magnitude_vector.default.weight.data.copy_(length)
    merged = wrapped.merge_and_unload().get_submodule(attention).weight
    torch.testing.assert_close(model.published[f"{attention}.weight"].read(), merged.data, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gone", ["lora_magnitude_vector", "lora_B"])
def test_a_dora_adapter_without_a_part_is_refused(tmp_path, plain, gone):
    dora(tmp_path / "dora", plain.checkpoint.path)
    path = tmp_path / "dora" / "adapter_model.safetensors"
    stored = load_file(path)
    del stored[next(key for key in stored if gone in key)]
    save_file(stored, path)
    with pytest.raises(CheckpointError, match="save the adapter again"):
        moe_probe.load(tmp_path / "dora")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "use_dora=True.*holds 0 magnitudes"),
        ({"use_qalora": True}, "use_qalora"),
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"base_model_name_or_path": None}, "names no base"),
        ({"lora_alpha": "x"}, "lora_alpha"),
    ],
)
def test_adapters_of_other_kinds_are_refused(tmp_path, plain, config, words):
    adapter(tmp_path / "lora", plain.checkpoint.path, **config)
    with pytest.raises(CheckpointError, match=words):
        moe_probe.load(tmp_path / "lora")


def test_folders_that_hold_something_else_say_what_to_give(tmp_path):
    for step in (500, 1000):
        write(tmp_path / f"checkpoint-{step}", mixtral(), MIXTRAL)
    with pytest.raises(CheckpointError, match=r"trainer's output: pass one of .*checkpoint-1000"):
        moe_probe.load(tmp_path)
    with pytest.raises(CheckpointError, match="pass its folder"):
        moe_probe.load(tmp_path / "checkpoint-500" / "model.safetensors")


def test_computed_buffers_are_not_asked_of_the_files(tmp_path):
    kinds = ["linear_attention", "full_attention"]
    made = {key: value for key, value in mixtral().items() if "layers.0.self_attn" not in key}
    for name, shape in {
        "qkv_proj": (3 * H * HD, D),
        "output_gate": (H * HD, D),
        "out_proj": (D, H * HD),
        "norm": (H * HD,),
    }.items():
        made[f"model.layers.0.self_attn.{name}.weight"] = torch.full(shape, 0.05)
    config = {
        **MIXTRAL,
        "model_type": "minimax",
        "architectures": ["MiniMaxForCausalLM"],
        "layer_types": kinds,
        "head_dim": HD,
        "block_size": 16,
    }
    model = moe_probe.load(write(tmp_path / "m", made, config))
    texts, options = [[5, 9, 3, 7]], {"execution": "layerwise"}
    layerwise = dynamic.run(model, texts, dynamic.ExpertLoad(), **options)["expert_load"]
    assert layerwise.equals(dynamic.run(model, texts, dynamic.ExpertLoad())["expert_load"])


GROK2 = {
    "architectures": ["Grok1ForCausalLM"],
    "model_type": "git",
    "hidden_size": D,
    "intermediate_size": 40,
    "moe_intermediate_size": FF,
    "num_hidden_layers": L,
    "num_local_experts": E,
    "num_experts_per_tok": 2,
    "residual_moe": True,
    "vocab_size": V,
}
GROK2_ENDS = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
GROK2_KINDS = ["mlp.gate_proj", "mlp.down_proj", "mlp.up_proj", "w1", "w2", "w3"]
GROK2_KINDS += [f"self_attn.{name}_proj" for name in "koqv"]
GROK2_KINDS += ["pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm", "block_sparse_moe.gate"]


def grok2(folder, ranks=4):
    """Grok-2's files: one kind of tensor of all layers each; experts cut along their neurons, one file per rank."""
    made = Made()
    for name, shape in zip(GROK2_ENDS, [(V, D), (V, D), (D,)], strict=True):
        made.new(name, *shape)
    shapes = {
        "mlp.gate_proj": (40, D),
        "mlp.down_proj": (D, 40),
        "mlp.up_proj": (40, D),
        "block_sparse_moe.gate": (E, D),
    }
    shapes |= {"w1": (FF, D), "w2": (D, FF), "w3": (FF, D), "self_attn.k_proj": (16, D)}
    shapes |= {"self_attn.v_proj": (16, D), "self_attn.o_proj": (D, D), "self_attn.q_proj": (D, D)}
    files = {f"{number:05}-TP-common": [name] for number, name in enumerate(GROK2_ENDS)}
    for number, kind in enumerate(GROK2_KINDS, len(GROK2_ENDS)):
        routed = kind in ("w1", "w2", "w3")
        names = [f"experts.{e}.{kind}" for e in range(E)] if routed else [kind]
        keys = [
            f"model.layers.{n}.{'block_sparse_moe.' if routed else ''}{name}.weight" for n in range(L) for name in names
        ]
        for key in keys:
            made.new(key, *shapes.get(kind, (D,)))
        for rank in range(ranks) if routed else ["common"]:
            files[f"{number:05}-TP-{rank if rank == 'common' else format(rank, '03')}"] = keys
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GROK2))
    for name, keys in files.items():
        rank = name.rpartition("-")[2]
        part = {key: made[key] for key in keys}
        if rank != "common":
            part = {key: value.chunk(ranks, int(".w2." in key))[int(rank)].contiguous() for key, value in part.items()}
        save_file(part, folder / f"pytorch_model-{name}.safetensors")
    return made


def test_grok_2_opens_from_its_files_by_rank(tmp_path):
    made = grok2(tmp_path / "m")
    model = moe_probe.load(tmp_path / "m")
    assert (model.family, model.layer(1).num_experts, model.layer(1).intermediate_size) == ("grok2", E, FF)
    assert torch.equal(model.router_weight(1), made["model.layers.1.block_sparse_moe.gate.weight"])
    for expert in range(E):
        for projection, name in {"gate": "w1", "up": "w3", "down": "w2"}.items():
            expected = made[f"model.layers.1.block_sparse_moe.experts.{expert}.{name}.weight"]
            tensor = model.expert_tensor(1, expert, projection)
            assert torch.equal(tensor.read(), expected)
            assert torch.equal(tensor[5:17].read(), expected[5:17])
    assert dict(facts(model))["parameters"].startswith(f"{sum(value.numel() for value in made.values()):,} in all")
    cosine = static.similarity(model, "matrix", layers=[0]).cosine.sel(layer=0, projection="down").values
    rows = torch.stack([made[f"model.layers.0.block_sparse_moe.experts.{e}.w2.weight"].flatten() for e in range(E)])
    rows = torch.nn.functional.normalize(rows.double(), dim=1)
    np.testing.assert_allclose(cosine, rows @ rows.T, atol=1e-6)
    with pytest.raises(FamilyError, match="grok2 models open for static analyses only"):
        dynamic.run(model, [[1, 2]], dynamic.ExpertLoad())


@pytest.mark.parametrize("gone", ["00000-TP-common", "00007-TP-002", "00006-TP-003"])
def test_a_missing_file_of_a_rank_is_named(tmp_path, gone):
    grok2(tmp_path / "m")
    (tmp_path / "m" / f"pytorch_model-{gone}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"{gone}.safetensors is missing"):
        moe_probe.load(tmp_path / "m")


def test_ranks_that_do_not_fit_are_refused(tmp_path):
    grok2(tmp_path / "m")
    path = tmp_path / "m" / "pytorch_model-00006-TP-001.safetensors"
    save_file({"model.layers.0.block_sparse_moe.experts.0.w1.weight": torch.ones(3, D)}, path)
    with pytest.raises(CheckpointError, match="expected one part of each of 4 ranks"):
        moe_probe.load(tmp_path / "m")


@pytest.mark.parametrize("block", ["experts.{}.{}", "experts.{1}.{0}", "experts.experts.{}.{}"])
def test_yuan_opens_under_each_of_its_names(tmp_path, block):
    made = Made()
    made.new("model.embed_tokens.weight", V, D)
    for layer in range(L):
        made.new(f"model.layers.{layer}.mlp.gate.query_key_value.weight", 3 * E, D)
        for expert in range(E):
            for name, shape in {"w1": (2 * FF, D), "w2": (D, FF)}.items():
                made.new(f"model.layers.{layer}.mlp.{block.format(expert, name)}.weight", *shape)
    chosen = {"moe_config": {"moe_num_experts": E, "moe_top_k": 2}}
    config = {"model_type": "yuan", "hidden_size": D, "num_hidden_layers": L, **chosen}
    model = moe_probe.load(write(tmp_path / "m", made, config))
    assert (model.layer(1).num_experts, model.layer(1).top_k) == (E, 2)
    both = made[f"model.layers.1.mlp.{block.format(2, 'w1')}.weight"]
    assert torch.equal(model.expert_weight(1, "2", "gate"), both[:FF])
    assert torch.equal(model.expert_weight(1, "2", "up"), both[FF:])
    assert torch.equal(model.expert_weight(1, "2", "down"), made[f"model.layers.1.mlp.{block.format(2, 'w2')}.weight"])


SKYWORK_EXPERTS = ("experts.mlp_experts.", "moe.experts.experts.")


@pytest.mark.parametrize("gate", ["gate.wg.weight", "gate.wg.2.weight", "gate.weight", "moe.gate.wg.2.weight"])
@pytest.mark.parametrize("experts", [*SKYWORK_EXPERTS, "stack"])
def test_skywork_opens_with_each_of_its_gates_and_experts(tmp_path, gate, experts):
    made = Made()
    made.new("model.embed_tokens.weight", V, D)
    for layer in range(L):
        block = f"model.layers.{layer}.mlp."
        if ".2." in gate:
            made.new(block + gate.replace(".2.", ".0."), 8 * E, D)
        made.new(block + gate, E, 8 * E if ".2." in gate else D)
        if experts == "stack":
            made.new(f"{block}moe.w_up_proj_weight", E, 2 * FF, D)
            made.new(f"{block}moe.w_down_proj_weight", E, D, FF)
        for expert in range(0 if experts == "stack" else E):
            for name, shape in {"gate": (FF, D), "up": (FF, D), "down": (D, FF)}.items():
                made.new(f"{block}{experts}{expert}.{name}_proj.weight", *shape)
    config = {"model_type": "skywork", "hidden_size": D, "num_hidden_layers": L, "num_experts": [E]}
    model = moe_probe.load(write(tmp_path / "m", made, config))
    block = "model.layers.1.mlp."
    assert torch.equal(model.router_weight(1), made[block + gate])
    if experts == "stack":
        gate_up = made[f"{block}moe.w_up_proj_weight"][2]
        expected = {"gate": gate_up[:FF], "up": gate_up[FF:], "down": made[f"{block}moe.w_down_proj_weight"][2]}
    else:
        expected = {name: made[f"{block}{experts}2.{name}_proj.weight"] for name in ("gate", "up", "down")}
    for name, matrix in expected.items():
        assert torch.equal(model.expert_weight(1, "2", name), matrix)


def test_hunyuan_with_up_above_gate_in_one_matrix(tmp_path):
    made = Made()
    made.new("model.embed_tokens.weight", V, D)
    places = [f"experts.{expert}." for expert in range(E)] + ["shared_mlp."]
    for layer in range(L):
        made.new(f"model.layers.{layer}.mlp.gate.wg.weight", E, D)
        for place in places:
            made.new(f"model.layers.{layer}.mlp.{place}gate_and_up_proj.weight", 2 * FF, D)
            made.new(f"model.layers.{layer}.mlp.{place}down_proj.weight", D, FF)
    counts = {"moe_topk": [1, 2], "num_experts": E, "num_shared_expert": [1, 1]}
    config = {"model_type": "hunyuan", "hidden_size": D, "num_hidden_layers": L, **counts}
    model = moe_probe.load(write(tmp_path / "m", made, config))
    assert [model.layer(layer).top_k for layer in range(L)] == [1, 2]
    for label, place in {"2": "experts.2.", "S": "shared_mlp."}.items():
        rows = made[f"model.layers.1.mlp.{place}gate_and_up_proj.weight"]
        assert torch.equal(model.expert_weight(1, label, "up"), rows[:FF])
        assert torch.equal(model.expert_weight(1, label, "gate"), rows[FF:])
