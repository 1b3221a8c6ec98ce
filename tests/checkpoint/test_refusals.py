"""What is refused on opening: each fault by its own reason, in one sentence."""

import contextlib
import json
import os
import pickle
import random
import re
import shutil
import struct

import pytest
import torch
from safetensors.torch import save_file
from small_checkpoint import TENSORS, write

import moe_probe
from moe_probe.checkpoint import open_checkpoint
from moe_probe.errors import CheckpointError, DamagedFile, FamilyError, WeightError

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


def refused(folder, error, *words):
    with pytest.raises(error, match=".*".join(map(re.escape, words))) as caught:
        moe_probe.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_a_missing_shard_is_named(tmp_path, container):
    folder = write(tmp_path / "c", container, sharded=True)
    next(folder.glob("*-1.*")).unlink()
    refused(folder, CheckpointError, "-1.", "missing")


@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_a_truncated_file_is_named(tmp_path, container):
    folder = write(tmp_path / "c", container)
    path = next(p for p in folder.iterdir() if p.suffix != ".json")
    path.write_bytes(path.read_bytes()[:-30])
    refused(folder, CheckpointError, path.name, "truncated")


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    folder = write(tmp_path / "c")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 10**9) + b"{}")
    refused(folder, CheckpointError, "model.safetensors", "damaged")


@pytest.mark.parametrize("name", ["/etc/passwd", "../other.safetensors", "a/../../other.safetensors"])
def test_an_index_that_points_outside_is_refused(tmp_path, name):
    folder = write(tmp_path / "c", sharded=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": name}}))
    refused(folder, CheckpointError, name, "outside")


def test_a_link_that_leads_outside_is_refused(tmp_path):
    folder = write(tmp_path / "c")
    shutil.move(folder / "model.safetensors", tmp_path / "elsewhere")
    os.symlink("../elsewhere", folder / "model.safetensors")
    refused(folder, CheckpointError, "model.safetensors", "outside")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m | {"extra": m["a.weight"]}, "'extra' is not in"),
        (lambda m: m | {"a.weight": m["b.weight"]}, "'a.weight' is not in"),
    ],
)
def test_an_index_that_disagrees_with_the_headers_is_refused(tmp_path, change, words):
    folder = write(tmp_path / "c", sharded=True)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": change(json.loads(index.read_text())["weight_map"])}))
    refused(folder, CheckpointError, words)


def test_a_tensor_that_the_index_does_not_list_is_refused(tmp_path):
    folder = write(tmp_path / "c", sharded=True)
    save_file({**TENSORS, "extra": torch.ones(1)}, folder / "model-0.safetensors")
    refused(folder, CheckpointError, "disagree", "is not listed for")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": {"a.weight": 3}}'])
def test_an_index_without_a_map_is_refused(tmp_path, content):
    folder = write(tmp_path / "c", sharded=True)
    (folder / "model.safetensors.index.json").write_text(content)
    refused(folder, CheckpointError, "index.json", "weight_map")


@pytest.mark.parametrize("name", ["nul\0", "long" * 100, "loop"])
def test_a_shard_whose_name_can_be_no_file_is_refused(tmp_path, name):
    folder = write(tmp_path / "c", sharded=True)
    os.symlink("loop", folder / "loop")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": name}}))
    refused(folder, CheckpointError, name[:3])


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("write_pickle", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o, protocol=2))])
def test_a_pickle_that_wants_to_run_code_is_refused_before_it_runs(tmp_path, write_pickle):
    folder, mark = write(tmp_path / "c", "bin"), tmp_path / "ran"
    write_pickle({"a.weight": Evil(mark)}, folder / "pytorch_model.bin")
    refused(folder, CheckpointError, "pytorch_model.bin", f"{os.name}.system", "refused")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1"])
def test_a_bin_that_torch_did_not_write_is_refused(tmp_path, content):
    folder = write(tmp_path / "c", "bin")
    (folder / "pytorch_model.bin").write_bytes(content)
    refused(folder, CheckpointError, "pytorch_model.bin", "torch.save did not write it")


@pytest.mark.parametrize("state", [[torch.ones(1)], {"a": 1}, {3: torch.ones(1)}])
def test_a_bin_that_maps_no_names_to_tensors_is_refused(tmp_path, state):
    folder = write(tmp_path / "c", "bin")
    torch.save(state, folder / "pytorch_model.bin")
    refused(folder, CheckpointError, "pytorch_model.bin", "state dict")


@pytest.mark.parametrize("container", ["safetensors", "bin", "old bin"])
def test_whatever_is_damaged_only_a_checkpoint_error_is_raised(tmp_path, container):
    folder = write(tmp_path / "c", container.removeprefix("old "))
    path = next(p for p in folder.iterdir() if p.suffix != ".json")
    if container == "old bin":
        torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole[: chance.choice([len(whole), chance.randrange(len(whole))])])
        for _ in range(2):
            if damaged:
                damaged[chance.randrange(min(len(damaged), 1000))] = chance.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            for tensor in open_checkpoint(folder).values():
                tensor.read()


def test_a_folder_without_config_weights_or_existence_is_refused(tmp_path):
    refused(tmp_path / "none", CheckpointError, "not a folder")
    refused(tmp_path, CheckpointError, "holds no checkpoint")
    save_file(TENSORS, tmp_path / "model.safetensors")
    refused(tmp_path, CheckpointError, "no config.json")
    (tmp_path / "config.json").write_text("not json")
    refused(tmp_path, CheckpointError, "not readable JSON")


def test_an_unknown_model_type_is_refused_with_the_known_families(tmp_path):
    refused(write(tmp_path / "c", config={"model_type": "nonesuch"}), FamilyError, "nonesuch", "deepseek", "mixtral")


def test_a_missing_tensor_and_a_wrong_shape_are_named(tmp_path, mixtral):
    config = mixtral.checkpoint.config
    tensors = {key: tensor.read().clone() for key, tensor in mixtral.checkpoint.items()}
    key = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    folder = write(tmp_path / "c", config=config)
    save_file({k: v for k, v in tensors.items() if k != key}, folder / "model.safetensors")
    with pytest.raises(WeightError, match=re.escape(key)):
        moe_probe.static.similarity(folder)
    save_file({**tensors, key: tensors[key][:, :5].clone()}, folder / "model.safetensors")
    with pytest.raises(WeightError, match=r"shape .64, 5..*layer 1, expert 3, down"):
        moe_probe.static.similarity(folder)


def test_adapters_that_are_each_others_base_are_refused(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, base in ((one, other), (other, one)):
        folder.mkdir()
        fields = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": str(base)}
        (folder / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.raises(DamagedFile, match="base_model_name_or_path"):
        moe_probe.load(one)
