"""What JSON alone says of a checkpoint is what the opened model says; of anything odd it says nothing."""

import json
import shutil
from pathlib import Path

import pytest

import moe_probe
from moe_probe.errors import MoEProbeError
from moe_probe.facts import facts, numbers
from moe_probe.families.headers import outline

ROOT = Path(__file__).parents[2]
PLAIN = [ROOT / "ckpt" / name for name in ("tiny-mixtral", "tiny-mistral", "tiny-deepseek-moe")]
PLAIN += [ROOT / "tests" / "fixtures" / "interventions" / name / "checkpoint" for name in ("qwen3_moe", "deepseek_v3")]
ODD = [
    {"num_hidden_layers": 3},
    {"num_hidden_layers": "4"},
    {"hidden_size": 32},
    {"intermediate_size": 48},
    {"num_local_experts": 4},
    {"num_experts_per_tok": 9},
    {"num_attention_heads": 2},
    {"tie_word_embeddings": True},
    {"hidden_act": 1},
    {"dtype": "x"},
    {"model_type": "nonesuch"},
    {"model_type": "../mixtral"},
    {"moe_layer_freq": 0},
]


@pytest.mark.parametrize("folder", PLAIN, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_it_says_what_the_opened_model_says(folder):
    told, opened = outline(str(folder)), moe_probe.load(folder)
    assert facts(told) == facts(opened)
    assert numbers(told) == numbers(opened)


@pytest.fixture
def copied(tmp_path):
    """A copy of tiny-mixtral, below a path with a space and other letters."""
    return Path(shutil.copytree(ROOT / "ckpt" / "tiny-mixtral", tmp_path / "größer als 模型" / "x"))


@pytest.mark.parametrize("fields", ODD, ids=str)
def test_a_configuration_that_needs_more_is_left_to_the_model(copied, fields):
    path = copied / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    assert outline(str(copied)) is None
    assert outline(str(ROOT / "ckpt" / "tiny-mixtral"), fields) is None


def test_a_path_of_other_letters_is_read(copied):
    assert numbers(outline(str(copied))) == numbers(moe_probe.load(copied))


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_damaged_file_is_left_to_the_model_which_refuses_it(copied, cut):
    path = next(copied.glob("*1-of*.safetensors"))
    path.write_bytes(path.read_bytes()[:cut])
    assert outline(str(copied)) is None
    with pytest.raises(MoEProbeError):
        moe_probe.load(copied)


@pytest.mark.parametrize("length", [0, 2**40, 2**62, 2**64 - 1])
def test_a_header_of_no_possible_length_is_left_to_the_model_which_refuses_it(copied, length):
    path = next(copied.glob("*.safetensors"))
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert outline(str(copied)) is None
    with pytest.raises(MoEProbeError, match="damaged"):
        moe_probe.load(copied)


def test_a_key_that_nothing_explains_is_left_to_the_model(copied):
    index = copied / "model.safetensors.index.json"
    for path in [index, *copied.glob("*.safetensors")]:
        path.write_bytes(
            path.read_bytes().replace(b"layers.0.self_attn.q_proj.weight", b"layers.0.self_attn.q_pro2.weight")
        )
    assert outline(str(copied)) is None


def test_what_is_no_such_folder_is_left_to_the_model(tmp_path):
    assert outline("mistralai/Mixtral-8x7B-v0.1") is None
    assert outline(str(tmp_path)) is None
    assert outline(str(ROOT / "ckpt" / "tiny-moe-plus-plus")) is None
