"""Opening published folders: the same tensors from every container, without reading weights."""

import json
import os
import pickle
import resource
import shutil
import struct

import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import save_file
from small_checkpoint import TENSORS, write

import moe_probe
from moe_probe.checkpoint import open_checkpoint
from moe_probe.errors import WeightError


@pytest.mark.parametrize("container", ["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_container_gives_the_same_tensors(tmp_path, container, sharded):
    checkpoint = open_checkpoint(write(tmp_path / "c", container, sharded))
    assert set(checkpoint) == set(TENSORS)
    for key, tensor in TENSORS.items():
        assert torch.equal(checkpoint[key].read(), tensor)
    assert torch.equal(checkpoint["a.weight"][2:4].read(), TENSORS["a.weight"][2:4])


def test_opening_a_huge_file_reads_its_header_only(tmp_path):
    size = 50 << 30
    header = json.dumps({"big": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    (tmp_path / "config.json").write_text("{}")
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint["big"][-3:].read().tolist() == [0, 0, 0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10, "kB"


def test_the_links_of_the_hub_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "rev"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in write(tmp_path / "c", sharded=True).iterdir():
        shutil.copy(path, blobs / path.name)
        os.symlink(f"../../blobs/{path.name}", snapshot / path.name)
    assert set(open_checkpoint(snapshot)) == set(TENSORS)


def test_a_snapshot_of_the_hub_cache_opens_from_inside(tmp_path, monkeypatch):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "rev"
    shutil.copytree(write(tmp_path / "c"), blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        os.symlink(f"../../blobs/{path.name}", snapshot / path.name)
    monkeypatch.chdir(snapshot)
    assert set(open_checkpoint(".")) == set(TENSORS)


def test_a_single_file_is_preferred_to_an_index_beside_it(tmp_path):
    folder = write(tmp_path / "c", sharded=True)
    save_file({"newer": torch.ones(2)}, folder / "model.safetensors")
    assert set(open_checkpoint(folder)) == {"newer"}


def test_safetensors_are_preferred_to_the_same_weights_as_bin(tmp_path):
    folder = write(write(tmp_path / "c", "bin"))
    assert [path.name for path in open_checkpoint(folder).files] == ["model.safetensors"]


@pytest.mark.parametrize("padding", range(4))
def test_tensors_at_any_alignment_read_the_same(tmp_path, padding):
    values = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    entries = {
        "w": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
        "zero": {"dtype": "F32", "shape": [], "data_offsets": [48, 52]},
        "none": {"dtype": "F32", "shape": [0, 4], "data_offsets": [52, 52]},
    }
    header = json.dumps(entries).encode()
    header += b" " * (padding + -len(header) % 8)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + values.numpy().tobytes() + struct.pack("<f", 7)
    )
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint["w"].read(), values)
    assert torch.equal(checkpoint["w"][1:, 2].read(), values[1:, 2])
    assert checkpoint["zero"].read() == 7
    assert checkpoint["none"].read().shape == (0, 4)


@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_an_opened_tensor_travels_to_another_process_by_path(tmp_path, container):
    lazy = open_checkpoint(write(tmp_path / "c", container))["a.weight"]
    assert torch.equal(lazy.read(), TENSORS["a.weight"])
    sent = pickle.dumps(lazy)
    assert len(sent) < 2000
    assert torch.equal(pickle.loads(sent).read(), TENSORS["a.weight"])


def test_parameters_in_a_bin_file_need_no_gradient(tmp_path):
    folder = write(tmp_path / "c", "bin")
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, folder / "pytorch_model.bin")
    assert not open_checkpoint(folder)["a"].read().requires_grad


def test_an_absent_tensor_is_named_and_has_a_default(tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / "c"))
    with pytest.raises(WeightError, match=r"no tensor 'c\.weight'"):
        checkpoint["c.weight"]
    assert checkpoint.get("c.weight") is None


@pytest.mark.parametrize("family", ["mixtral", "grok1_hf", "grok1_jax", "mh_moe"])
def test_writing_into_a_weight_never_reaches_its_file(family):
    folder = FIXTURES / family / "checkpoint"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    before = [path.read_bytes() for path in files]
    model = moe_probe.load(folder)
    model.router_weight(model.moe_layers[0]).fill_(7)
    model.expert_weight(model.moe_layers[0], "0", "up").fill_(7)
    assert [path.read_bytes() for path in files] == before
