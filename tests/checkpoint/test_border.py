"""Only regular files of the folder are read, and what they say is bounded before anything is built from it."""

import contextlib
import json
import os
import shutil
import tarfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import moe_probe
from moe_probe.errors import CheckpointError, DamagedFile, MoEProbeError, UnsafeFile

SOURCE = "ckpt/tiny-mixtral"
INDEX, SHARD = "model.safetensors.index.json", "model-00001-of-00002.safetensors"
CONFIG = json.loads(open(f"{SOURCE}/config.json").read())  # noqa: SIM115
TOKENIZER = json.loads(open(f"{SOURCE}/tokenizer_config.json").read())  # noqa: SIM115


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(SOURCE, tmp_path / "model")


def opened(folder):
    """Everything of a model that its files describe."""
    model = moe_probe.load(folder)
    return model.layers, model.counts, model.fingerprint, model.router_weight(0), model.tokenizer("a b")


KINDS = {
    "link outside": lambda path: path.symlink_to(os.path.abspath(f"{SOURCE}/{path.name}")),
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("name", ["config.json", INDEX, SHARD, "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_inside_are_read(folder, name, kind):
    (folder / name).unlink()
    KINDS[kind](folder / name)
    with pytest.raises(UnsafeFile, match=name):
        opened(folder)


def test_options_of_groks_release_outside_are_not_read(tmp_path):
    folder = shutil.copytree("ckpt/tiny-grok-1", tmp_path / "model")
    (folder / "model_config.json").unlink()
    (folder / "model_config.json").symlink_to(os.path.abspath("ckpt/tiny-grok-1/model_config.json"))
    with pytest.raises(UnsafeFile, match=r"model_config.json"):
        moe_probe.load(folder)


HUGE = [10**9, 10**18, 10**400]
SIZES = ["num_local_experts", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "head_dim"]


@pytest.mark.parametrize("field", [*SIZES, "num_experts_per_tok", "num_attention_heads"])
@pytest.mark.parametrize("size", HUGE, ids=["10**9", "10**18", "10**400"])
def test_sizes_are_bounded_by_the_tensors(folder, field, size):
    (folder / "config.json").write_text(json.dumps(CONFIG | {field: size}))
    with pytest.raises(DamagedFile, match=field):
        moe_probe.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": 5},
        {"architectures": [["a"]]},
        {"architectures": ["pipeline"]},
        {"architectures": ["BertModel"]},
        {"model_type": 5},
        {"model_type": []},
        {"quantization_config": 5},
        {"dtype": "os"},
        {"num_experts_per_tok": 9},
        {"num_experts_per_tok": -1},
        {"num_hidden_layers": "x"},
        {"hidden_size": float("nan")},
        {"sliding_window": 10**20},
        {"rope_parameters": {"rope_type": "x"}},
    ],
    ids=str,
)
def test_values_of_wrong_kinds_are_one_sentence(folder, change):
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(MoEProbeError) as caught:
        _ = moe_probe.load(folder).counts
    assert "\n" not in str(caught.value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FUZZED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def is_a_model_or_one_sentence(folder):
    with contextlib.suppress(MoEProbeError):
        opened(folder)


@FUZZED
@given(field=st.sampled_from(sorted(CONFIG)), value=JUNK)
def test_whatever_a_configuration_says_only_our_errors_come_out(folder, field, value):
    (folder / "config.json").write_text(json.dumps(CONFIG | {field: value}))
    is_a_model_or_one_sentence(folder)


@FUZZED
@given(field=st.sampled_from([*sorted(TOKENIZER), "tokenizer_class", "vocab_file", "chat_template"]), value=JUNK)
def test_whatever_a_tokenizer_says_only_our_errors_come_out(folder, field, value):
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER | {field: value}))
    is_a_model_or_one_sentence(folder)


@FUZZED
@given(text=st.binary(max_size=60) | JUNK.map(lambda value: json.dumps({"weight_map": value}).encode()))
def test_whatever_an_index_says_only_our_errors_come_out(folder, text):
    (folder / INDEX).write_bytes(text)
    is_a_model_or_one_sentence(folder)


ODD = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor.float()]),
    "meta": lambda tensor: tensor.to("meta"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_plain_are_refused(tmp_path, kind):
    folder = shutil.copytree("ckpt/tiny-moe-plus-plus", tmp_path / "model")
    path = sorted(folder.glob("*.bin"))[0]
    torch.save({key: ODD[kind](value) for key, value in torch.load(path, weights_only=True).items()}, path)
    with pytest.raises(DamagedFile, match=path.name):
        moe_probe.load(folder)


def test_archives_that_would_be_unpacked_are_refused(tmp_path):
    folder = shutil.copytree("ckpt/tiny-moe-plus-plus", tmp_path / "model")
    path = sorted(folder.glob("*.bin"))[0]
    with tarfile.open(path, "w") as archive:
        archive.add("ckpt/README.md")
    with pytest.raises(DamagedFile, match="archive"):
        moe_probe.load(folder)


def test_whole_numbers_are_no_weights_and_do_not_open(folder):
    path = folder / SHARD
    tensors = {key: value.view(torch.int16) for key, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"int16.*does not say how it is packed"):
        moe_probe.load(folder)


@pytest.mark.parametrize("option", [{"activation_fn": []}, {"moe_expert_count": "x"}, {"moe_freq": []}], ids=str)
def test_fairseqs_options_are_checked(tmp_path, option):
    folder = shutil.copytree("ckpt/tiny-mh-moe", tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(option))
    with pytest.raises(MoEProbeError, match=next(iter(option)).removesuffix("_fn")):
        moe_probe.load(folder)
