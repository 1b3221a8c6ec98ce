"""Grok-1, the release and its ports, against what the original codes compute, and against their formulas in float64."""

import json
import math
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES
from parity import assert_equal, run
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import moe_probe
from moe_probe.errors import CheckpointError, InputError, WeightError
from moe_probe.families.grok1.configuration import Grok1Config
from moe_probe.families.grok1.modeling import Grok1ForCausalLM
from moe_probe.families.grok1.release import ORIGINAL, ffn_size

WRITER = runpy.run_path(str(Path(__file__).parents[2] / "ckpt" / "grok_release.py"))
CKPT = Path(__file__).parents[2] / "ckpt"
RELEASE, PORT = FIXTURES / "grok1_jax" / "checkpoint", FIXTURES / "grok1_hf" / "checkpoint"
FOLDERS = {"grok1_jax": RELEASE, "grok1_hf": PORT}
SMALL = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "embedding_multiplier_scale": 5.5,
    "output_multiplier_scale": 0.7,
    "attn_output_multiplier": 0.4,
    "initializer_range": 0.4,
}
VARIANTS = [
    {"num_hidden_layers": 13, "num_key_value_heads": 1, "head_dim": 10, "num_experts": 5, "num_experts_per_tok": 3},
    {"num_hidden_layers": 2, "num_key_value_heads": 4, "num_experts": 3, "num_experts_per_tok": 1, "pad_token_id": 7},
    {"num_hidden_layers": 1, "num_key_value_heads": 2, "num_experts": 9, "attn_output_multiplier": 40.0},
]


def load(folder, **options):
    return moe_probe.load(folder, **{"dtype": torch.float32, **options})


def expected_of(name, file="expected"):
    return load_file(FIXTURES / name / f"{file}.safetensors")


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def small_model(fields, **original):
    torch.manual_seed(1)
    config = Grok1Config(**{**SMALL, **fields, **original})
    model = Grok1ForCausalLM(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.uniform_(0.5, 1.5)
    return model


# ----------------------------------------------------------------------------------------------- an independent forward


def dequantized(tensors, groups):
    """The release's tensors as its files give them back, in float64."""
    out = {}
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and not name.endswith(("router", "embed")):
            by_row = name.endswith(("linear_1", "attention/linear"))
            weight, scales = WRITER["quantize"](tensor, groups if by_row else 1)
            spread = scales.double().repeat_interleave(weight.shape[-2] // scales.shape[-2], dim=-2)
            tensor = (weight.double() * spread).bfloat16()
        out[name] = tensor.double()
    return out


def reference(tensors, config, ids, original):
    """Logits and every layer's MoE output, by the formulas of the specification: one head, one token at a time."""

    def norm(x, scale):
        return scale * x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()

    def gelu(x):
        if original:
            return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    def rotate(x):
        half = x.shape[-1] // 2
        angle = torch.arange(len(x)).double()[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
        a, b = x[:, :half], x[:, half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)

    def attention(x, part):
        size, heads = config.head_dim, []
        for head in range(config.num_attention_heads):
            shared = head // (config.num_attention_heads // config.num_key_value_heads)
            q = rotate(x @ part["query"][:, head * size : (head + 1) * size])
            k = rotate(x @ part["key"][:, shared * size : (shared + 1) * size])
            logits = config.max_attn_value * torch.tanh(config.attn_output_multiplier * q @ k.T / config.max_attn_value)
            hidden = torch.ones(len(x), len(x)).triu(1).bool()
            if original:
                hidden = hidden | (ids == config.pad_token_id)
            weights = torch.where(hidden, -1e30, logits).softmax(-1)
            heads.append(weights @ (x @ part["value"][:, shared * size : (shared + 1) * size]))
        return torch.cat(heads, dim=-1) @ part["linear"]

    def moe(x, part):
        out = torch.zeros_like(x)
        for token, row in enumerate(x):
            scores = (row @ part["router"]).softmax(0)
            for e in scores.argsort(descending=True)[: config.num_experts_per_tok]:
                neurons = gelu(row @ part["moe/linear"][e]) * (row @ part["moe/linear_v"][e])
                out[token] += scores[e] * (neurons @ part["moe/linear_1"][e])
        return out

    hidden, outputs = tensors["in_out_embed"][ids] * config.embedding_multiplier_scale, []
    for layer in range(config.num_hidden_layers):
        prefix = f"transformer/decoder_layer_{layer}/"
        part = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        heads = {name.rpartition("/")[2]: value for name, value in part.items() if "attention" in name}
        hidden = hidden + norm(attention(norm(hidden, part["rms_norm"]), heads), part["rms_norm_1"])
        outputs.append(moe(norm(hidden, part["rms_norm_2"]), part))
        hidden = hidden + norm(outputs[-1], part["rms_norm_3"])
    logits = norm(hidden, tensors["rms_norm"]) @ tensors["in_out_embed"].T * config.output_multiplier_scale
    return logits, outputs


def assert_follows_formulas(model, tensors, ids, original):
    seen = run(model.module, ids)
    for row, sequence in enumerate(ids):
        logits, outputs = reference(tensors, model.config, sequence, original)
        torch.testing.assert_close(seen["logits"][row].double(), logits, atol=1e-4, rtol=1e-4)
        for layer, output in enumerate(outputs):
            block = seen[f"layers.{layer}.moe_output"].unflatten(0, ids.shape)[row].double()
            torch.testing.assert_close(block, output, atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("name", FOLDERS)
def test_every_value_of_the_original_code_is_reproduced(name):
    expected = expected_of(name)
    seen = run(load(FOLDERS[name]).module, expected["input_ids"])
    assert_equal(seen, expected, 1e-4)
    assert_equal(seen, expected, 1e-5, [key for key in expected if key.endswith("topk_weight")])


def test_the_release_masks_pad_tokens_by_itself_and_the_port_does_not():
    expected = expected_of("grok1_jax", "expected_pad")
    seen = {"logits": load(RELEASE).module(expected["input_ids"]).logits}
    assert_equal(seen, expected, 1e-4, ["logits"])
    expected, module = expected_of("grok1_hf", "expected_pad"), load(PORT).module
    ids = expected["input_ids"]
    seen = {
        "logits": module(ids, attention_mask=expected["attention_mask"]).logits,
        "logits_no_mask": module(ids).logits,
    }
    assert_equal(seen, expected, 1e-4, ["logits", "logits_no_mask"])


def test_release_and_port_differ_by_the_gelu_alone():
    expected = expected_of("grok1_hf")
    exact = load(RELEASE, config={"hidden_act": "gelu"}).module(expected["input_ids"]).logits
    assert_equal({"logits": exact}, expected, 1e-4, ["logits"])
    assert (load(RELEASE).module(expected["input_ids"]).logits - expected["logits"]).abs().max() > 1e-3


def test_release_and_port_hold_the_same_weights():
    release, port = load(RELEASE), load(PORT)
    for layer, expert in [(0, 0), (2, 7), (10, 3), (11, 5)]:
        assert torch.equal(release.router_weight(layer), port.router_weight(layer).float())
        for projection in ("up", "gate", "down"):
            weights = [model.expert_weight(layer, expert, projection) for model in (release, port)]
            assert torch.equal(*weights)
            assert weights[0].shape == ((64, 32) if projection == "down" else (32, 64))


def test_static_analyses_run_on_the_release_as_on_the_port():
    release, port = (moe_probe.static.similarity(load(folder)) for folder in (RELEASE, PORT))
    for name in release.data_vars:
        torch.testing.assert_close(torch.tensor(release[name].values), torch.tensor(port[name].values))


# ------------------------------------------------------------------------------------------------- other configurations


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("fields", VARIANTS)
def test_other_releases_follow_the_formulas(tmp_path, fields, groups):
    written = small_model(fields, **ORIGINAL)
    WRITER["write_release"](written, tmp_path, groups)
    model = load(tmp_path)
    assert model.num_layers == fields["num_hidden_layers"]
    ids = torch.randint(1, 50, (2, 9))
    ids[0, 2:4] = ids[1, 0] = written.config.pad_token_id
    assert_follows_formulas(model, dequantized(WRITER["release_tensors"](written), groups), ids, original=True)


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_other_ports_follow_the_formulas(tmp_path, fields, container):
    written = small_model({**fields, "max_attn_value": 3.0}, head_dim=None)
    written.save_pretrained(tmp_path, max_shard_size="20kB")
    if container == "bin":
        tensors = {key: tensor.read().clone() for key, tensor in moe_probe.load(tmp_path).checkpoint.items()}
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir()
        written.config.save_pretrained(tmp_path)
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    edit_config(tmp_path, model_type=None, architectures=["Grok1ModelForCausalLM"])
    tensors = {name: value.double() for name, value in WRITER["release_tensors"](written).items()}
    assert_follows_formulas(load(tmp_path), tensors, torch.randint(50, (2, 9)), original=False)


def to_keyfan(key):
    """A key of hpcai's layout in keyfan's."""
    for old, new in [
        ("model.embed_tokens.", "transformer.in_out_embed."),
        ("model.norm.scale", "transformer.rms_norm.weight"),
        ("model.layers.", "transformer.decoder_layer."),
        ("moe_block.gate.", "router."),
        ("moe_block.experts.", "moe."),
        ("attn.q_proj", "multi_head_attention.query"),
        ("attn.k_proj", "multi_head_attention.key"),
        ("attn.v_proj", "multi_head_attention.value"),
        ("attn.o_proj", "multi_head_attention.linear"),
        ("pre_attn_norm.scale", "rms_norm.weight"),
        ("post_attn_norm.scale", "rms_norm_1.weight"),
        ("pre_moe_norm.scale", "rms_norm_2.weight"),
        ("post_moe_norm.scale", "rms_norm_3.weight"),
    ]:
        key = key.replace(old, new)
    return key


@pytest.mark.parametrize("model_type", ["grok", "grok-1"])
def test_the_keyfan_layout_computes_what_the_hpcai_layout_computes(tmp_path, model_type):
    port = load(PORT)
    save_file(
        {to_keyfan(key): value.read().clone() for key, value in port.checkpoint.items()}, tmp_path / "model.safetensors"
    )
    fields = {**port.checkpoint.config, "architectures": ["GrokForCausalLM"], "model_type": model_type}
    fields["num_local_experts"] = fields.pop("num_experts")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert_equal(run(load(tmp_path).module, expected_of("grok1_hf")["input_ids"]), expected_of("grok1_hf"), 1e-4)


# ------------------------------------------------------------------------------------------------------- saved and run


@pytest.mark.parametrize("name", FOLDERS)
def test_saved_again_it_computes_the_same(tmp_path, name):
    ids = expected_of(name, "expected_pad")["input_ids"]
    module = load(FOLDERS[name]).module
    module.save_pretrained(tmp_path)
    keys = set(load_file(tmp_path / "model.safetensors")) | {"lm_head.weight"}
    assert keys == set(load(PORT).checkpoint)
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    for again in (load(tmp_path).module, AutoModelForCausalLM.from_pretrained(tmp_path, **options)):
        parameters = dict(again.named_parameters())
        assert all(torch.equal(value, parameters[key]) for key, value in module.named_parameters())
        torch.testing.assert_close(again(ids).logits, module(ids).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", FOLDERS)
def test_bfloat16_stays_close_to_float32_with_the_router_as_in_the_original(name):
    expected = expected_of(name)
    module = load(FOLDERS[name], dtype=torch.bfloat16).module
    router = torch.float32 if name == "grok1_jax" else torch.bfloat16
    assert {layer.mlp.gate.weight.dtype for layer in module.model.layers} == {router}
    assert module.model.layers[0].mlp.experts.gate_up_proj.dtype == torch.bfloat16
    seen = run(module, expected["input_ids"])
    assert seen["layers.3.router_logits"].dtype == router
    logits = seen["logits"].float()
    assert logits.isfinite().all()
    assert (logits - expected["logits"]).abs().mean() < 0.2 * expected["logits"].abs().mean()


@pytest.mark.parametrize("name", FOLDERS)
def test_generation_with_the_cache_equals_a_forward_pass(name):
    module = load(FOLDERS[name]).module
    prompt = expected_of(name, "expected_pad")["input_ids"][:1]  # pad tokens inside, in the release masked by itself
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    made = module.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, **options)
    again = module(made.sequences[:, :-1]).logits[:, prompt.shape[1] - 1 :]
    torch.testing.assert_close(torch.stack(made.logits, dim=1), again, atol=1e-4, rtol=0)


def test_a_loss_with_load_balancing_reaches_every_parameter():
    model = small_model(VARIANTS[0], **ORIGINAL).train()
    ids = torch.randint(1, 50, (4, 30))
    outputs = model(ids, labels=ids, output_router_logits=True, output_hidden_states=True)
    outputs.loss.backward()
    assert outputs.aux_loss.item() >= 3
    assert len(outputs.router_logits) == 13
    assert len(outputs.hidden_states) == 14
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


# ----------------------------------------------------------------------------------------- options, and what is refused


def test_options_come_from_the_file_from_load_or_are_the_published_ones(tmp_path):
    shutil.copytree(RELEASE, tmp_path / "copy")
    fields = json.loads((FIXTURES / "grok1_jax" / "model_config.json").read_text())
    ids = expected_of("grok1_jax")["input_ids"]
    expected = load(RELEASE).module(ids).logits
    flat = {**fields["model"], **{key: value for key, value in fields.items() if key != "model"}}
    for options in (fields, flat):
        assert torch.equal(load(tmp_path / "copy", config=options).module(ids).logits, expected)
    changed = load(RELEASE, config={"num_selected_experts": 3, "rms_norm_eps": 1e-3})
    assert (changed.layer(0).top_k, changed.config.rms_norm_eps) == (3, 1e-3)
    with pytest.raises(CheckpointError, match="12 layers, but the model has 64"):
        load(tmp_path / "copy")
    with pytest.raises(WeightError, match=r"tensor00000 .*\(in_out_embed\).*\(256, 64\).*\(131072, 6144\)"):
        load(tmp_path / "copy", config={"num_layers": 12})


@pytest.mark.parametrize(("emb_size", "factor", "neurons"), [(6144, 8, 32768), (64, 0.7, 32), (768, 4.0, 2048)])
def test_the_number_of_neurons_is_the_releases(emb_size, factor, neurons):
    assert ffn_size(emb_size, factor) == neurons


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_q_head": 4}, CheckpointError, "'num_q_head'.*unknown.*num_q_heads"),
        ({"model": 3}, CheckpointError, "'model'"),
        ({"num_q_heads": "four"}, CheckpointError, "'num_q_heads'.*'four'.*number"),
        ({"widening_factor": "wide"}, CheckpointError, "widening_factor"),
        ({"num_kv_heads": 3}, WeightError, r"decoder_layer_0/multi_head_attention/key.*\(64, 32\).*\(64, 48\)"),
        ({"num_selected_experts": 9}, CheckpointError, "9 of 8 experts"),
        ({"num_layers": 11}, CheckpointError, "12 layers, but the model has 11"),
        (
            {"widening_factor": 8},
            WeightError,
            r"tensor00002 .*decoder_layer_0/moe/linear.*\(8, 64, 32\).*\(8, 64, 344\)",
        ),
        ({"key_size": 8}, WeightError, r"decoder_layer_0/multi_head_attention/key.*\(64, 32\).*\(64, 16\)"),
    ],
)
def test_options_that_do_not_fit_are_named(options, error, words):
    with pytest.raises(error, match=words):
        load(RELEASE, config=options)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_key_value_heads": 3}, "4 query heads for 3"),
        ({"num_key_value_heads": 0}, "4 query heads for 0"),
        ({"num_experts_per_tok": 9}, "9 of 8 experts"),
        ({"mask_pad_tokens": True, "pad_token_id": None}, "pad_token_id"),
    ],
)
def test_a_port_whose_config_fits_no_model_is_refused(fields, words):
    with pytest.raises(CheckpointError, match=words):
        load(PORT, config=fields)


def test_an_output_matrix_of_its_own_is_used_where_the_config_says_so(tmp_path):
    written = small_model(VARIANTS[1], tie_word_embeddings=False)
    written.save_pretrained(tmp_path)
    module, ids = load(tmp_path).module, torch.randint(50, (1, 9))
    assert not torch.equal(module.lm_head.weight, module.model.embed_tokens.weight)
    torch.testing.assert_close(module(ids).logits, written(ids).logits)


def test_a_model_that_a_release_cannot_describe_is_not_written(tmp_path):
    for fields in ({"hidden_act": "gelu"}, {"tie_word_embeddings": False}, {"intermediate_size": 20}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            WRITER["write_release"](small_model(VARIANTS[1], **{**ORIGINAL, **fields}), tmp_path)


def test_a_number_of_files_that_fits_no_layer_count_is_refused(tmp_path):
    for number in (145, 144, 135, 2):
        folder = tmp_path / str(number) / "ckpt-0"
        folder.mkdir(parents=True)
        for path in sorted((RELEASE / "ckpt-0").iterdir())[:number]:
            shutil.copy(path, folder)
        with pytest.raises(CheckpointError, match=f"{number} tensor files, which fits no number of layers"):
            load(folder)


def test_a_layer_that_is_missing_at_the_end_is_noticed(tmp_path):
    shutil.copytree(RELEASE, tmp_path / "copy")
    for number in range(134, 146):
        (tmp_path / "copy" / "ckpt-0" / f"tensor{number:05d}_000").unlink()
    shutil.copy(FIXTURES / "grok1_jax" / "model_config.json", tmp_path)
    with pytest.raises(CheckpointError, match="134 tensor files, those of 11 layers, but the model has 12"):
        load(tmp_path / "copy")


def test_keys_of_a_port_that_are_missing_or_too_many_are_named(tmp_path):
    tensors = {key: tensor.read().clone() for key, tensor in load(PORT).checkpoint.items()}
    key = "model.layers.6.moe_block.experts.3.linear_v.weight"

    def refused(changed, match):
        shutil.copy(PORT / "config.json", tmp_path)
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(WeightError, match=match):
            load(tmp_path)

    refused({k: v for k, v in tensors.items() if k != key}, r"layers\.6\.mlp\.experts\.gate_up_proj")
    refused(
        {k: v for k, v in tensors.items() if "layers.4.post_moe" not in k}, r"layers\.4\.post_feedforward_layernorm"
    )
    refused(tensors | {key: tensors[key][:5].clone()}, r"layers\.6\.mlp\.experts\.gate_up_proj")
    refused(tensors | {"model.layers.2.attn.bias": torch.ones(1)}, "'model.layers.2.attn.bias' belongs to no")


def test_the_tokenizer_is_found_beside_and_up_to_two_folders_above(tmp_path):
    folder = tmp_path / "grok-1" / "checkpoints"
    shutil.copytree(FIXTURES / "grok1_jax" / "checkpoint" / "ckpt-0", folder / "ckpt-0")
    shutil.copy(FIXTURES / "grok1_jax" / "model_config.json", folder)
    with pytest.raises(InputError, match=r"no tokenizer\.json or tokenizer\.model"):
        moe_probe.load(folder / "ckpt-0").tokenizer  # noqa: B018
    shutil.copy(CKPT / "tiny-mixtral" / "tokenizer.json", tmp_path / "grok-1")
    for path in (folder, folder / "ckpt-0"):
        tokenizer = moe_probe.load(path).tokenizer
        assert tokenizer.decode(tokenizer("def f(x)")["input_ids"]).endswith("def f(x)")
