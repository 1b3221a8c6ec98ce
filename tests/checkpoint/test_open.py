"""Opening published folders: the same tensors from every container, without reading weights; and what is refused."""

import json
import os
import pickle
import re
import shutil
import struct
import time

import pytest
import torch
from safetensors.torch import save_file

import moe_probe
from moe_probe.checkpoint import open_checkpoint
from moe_probe.errors import CheckpointError, FamilyError, WeightError

TENSORS = {"a.weight": torch.randn(6, 4).bfloat16(), "b.weight": torch.arange(10)}


def write(folder, container="safetensors", sharded=False, config=None):
    """A checkpoint of two tensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "mixtral"}))
    stem, ending, saver = {
        "safetensors": ("model", "safetensors", save_file),
        "bin": ("pytorch_model", "bin", torch.save),
    }[container]
    if not sharded:
        saver(TENSORS, folder / f"{stem}.{ending}")
        return folder
    weight_map = {}
    for i, (key, tensor) in enumerate(TENSORS.items()):
        weight_map[key] = f"{stem}-{i}.{ending}"
        saver({key: tensor}, folder / weight_map[key])
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


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
    start = time.monotonic()
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint["big"][-3:].read().tolist() == [0, 0, 0]
    assert time.monotonic() - start < 1


def test_the_links_of_the_hub_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "rev"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in write(tmp_path / "c", sharded=True).iterdir():
        shutil.copy(path, blobs / path.name)
        os.symlink(f"../../blobs/{path.name}", snapshot / path.name)
    assert set(open_checkpoint(snapshot)) == set(TENSORS)


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
    refused(folder, CheckpointError, path.name, "damaged")


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    folder = write(tmp_path / "c")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 10**9) + b"{}")
    refused(folder, CheckpointError, "model.safetensors", "damaged")


@pytest.mark.parametrize("name", ["/etc/passwd", "../other.safetensors"])
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
    [(lambda m: m | {"extra": m["a.weight"]}, "is not in"), (lambda m: m | {"a.weight": m["b.weight"]}, "disagree")],
)
def test_an_index_that_disagrees_with_the_headers_is_refused(tmp_path, change, words):
    folder = write(tmp_path / "c", sharded=True)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": change(json.loads(index.read_text())["weight_map"])}))
    refused(folder, CheckpointError, words)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_that_wants_to_run_code_is_refused_before_it_runs(tmp_path):
    folder, mark = write(tmp_path / "c", "bin"), tmp_path / "ran"
    torch.save({"a.weight": Evil(mark)}, folder / "pytorch_model.bin")
    refused(folder, CheckpointError, "refused")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    refused(folder, CheckpointError, "pytorch_model.bin")
    assert not mark.exists()


def test_a_folder_without_config_weights_or_existence_is_refused(tmp_path):
    refused(tmp_path / "none", CheckpointError, "not a folder")
    refused(tmp_path, CheckpointError, "no config.json")
    (tmp_path / "config.json").write_text("not json")
    refused(tmp_path, CheckpointError, "not readable JSON")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, CheckpointError, "no weights")


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
