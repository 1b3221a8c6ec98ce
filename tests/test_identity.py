"""Fingerprints tell models apart by what is in them."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralForCausalLM

import moe_probe
from moe_probe import dynamic, intervene, pruning, static
from moe_probe.checkpoint import identity, open_checkpoint
from moe_probe.convert import convert
from moe_probe.errors import DamagedFile, InputError
from moe_probe.intervene import Zero

SOURCE = "ckpt/tiny-mixtral"
SHARD = "model-00001-of-00002.safetensors"
EXPERT = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
ROUTER = "model.layers.0.block_sparse_moe.gate.weight"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(SOURCE, tmp_path / "model")


def change(folder, key, edit):
    """Rewrites one tensor of the first shard; size and header stay what they are."""
    tensors = load_file(folder / SHARD)
    tensors[key] = edit(tensors[key].clone())
    save_file(tensors, folder / "new", metadata={"format": "pt"})
    os.replace(folder / "new", folder / SHARD)


def fingerprint(source=SOURCE, **options):
    return moe_probe.load(source, **options).fingerprint


def live():
    return MixtralForCausalLM.from_pretrained(SOURCE, dtype=torch.float32).eval()


def test_a_copy_has_the_same_fingerprint_and_so_has_the_model_once_it_ran(folder):
    model = moe_probe.load(folder)
    assert model.fingerprint == fingerprint()
    assert model.module is not None
    assert model.fingerprint == fingerprint()


@pytest.mark.parametrize("key", [EXPERT, ROUTER])
@pytest.mark.parametrize("large", [False, True])
def test_one_changed_matrix_changes_it_even_in_place(folder, key, large, monkeypatch):
    if large:
        monkeypatch.setattr(identity, "READ_WHOLE", 0)
    model = moe_probe.load(folder)
    before = model.fingerprint
    times = os.stat(folder / SHARD)
    change(folder, key, lambda tensor: torch.randn_like(tensor))
    os.utime(folder / SHARD, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len({before, fingerprint(folder), model.fingerprint}) == 2
    with pytest.raises(DamagedFile, match="changed after it was opened"):
        model.expert_weight(0, "3", "down")


@pytest.mark.parametrize("large", [False, True])
def test_one_changed_row_changes_it(folder, large, monkeypatch):
    if large:
        monkeypatch.setattr(identity, "READ_WHOLE", 0)
    before = fingerprint(folder)

    def edit(tensor):
        tensor[-1] += 1
        return tensor

    change(folder, EXPERT, edit)
    assert fingerprint(folder) != before


def test_what_the_module_computes_with_changes_it(monkeypatch):
    prints = [
        fingerprint(),
        fingerprint(dtype="bfloat16"),
        fingerprint(config={"num_experts_per_tok": 1}),
        fingerprint("ckpt/tiny-mistral"),
    ]
    assert fingerprint(device="cpu") == fingerprint(device={"": "cpu"}) == prints[0]
    monkeypatch.setattr("moe_probe.model.version", lambda name: f"0 of {name}")
    prints.append(fingerprint())
    assert len(set(prints)) == len(prints)


def test_a_blob_of_the_hubs_cache_is_known_by_its_name(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("c" * 40)
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(moe_probe.load(SOURCE).checkpoint.path.iterdir())):
        blob = blobs / f"{number:064x}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    monkeypatch.setattr(identity, "hash_of_file", lambda path: pytest.fail("read"))
    monkeypatch.setattr(identity, "hash_of_samples", lambda tensors: pytest.fail("read"))
    first = fingerprint(snapshot)
    link = snapshot / SHARD
    blob = link.resolve()
    link.unlink()
    link.symlink_to(blob.rename(blobs / ("f" * 64)))
    assert fingerprint(snapshot) != first


def test_live_models_differ_by_their_values_and_are_equal_by_them():
    one, two = live(), live()
    model = moe_probe.load(one)
    before = model.fingerprint
    assert moe_probe.load(two).fingerprint == before
    with torch.no_grad():
        one.model.layers[1].mlp.experts.down_proj[3, 5, 7] += 1e-3
    changed = model.fingerprint
    assert changed != before
    with torch.no_grad():
        one.model.layers[1].mlp.experts.down_proj[3, 5, 7] = two.model.layers[1].mlp.experts.down_proj[3, 5, 7]
    assert model.fingerprint == before
    one.model.layers[0].mlp.gate.weight.data = one.model.layers[0].mlp.gate.weight.data.flip(0)
    assert model.fingerprint not in (before, changed)
    assert moe_probe.load(two.bfloat16()).fingerprint != before


def test_a_module_edited_after_loading_is_another_model():
    model = moe_probe.load(SOURCE)
    before = model.fingerprint
    with torch.no_grad():
        model.module.model.layers[0].mlp.gate.weight.zero_()
    assert model.fingerprint != before


def test_an_intervention_on_an_edited_module_is_another_model_too():
    model, zero = moe_probe.load(SOURCE), Zero(layer=0, experts=[3])
    assert model.module is not None
    before = model.under(zero).fingerprint
    assert before != model.fingerprint
    with torch.no_grad():
        model.module.model.layers[0].mlp.gate.weight.zero_()
    assert model.under(zero).fingerprint not in (before, model.fingerprint)


def test_of_many_tensors_a_small_part_is_read(tmp_path, monkeypatch):
    """A sparse file of 2,000 matrices of 1 MiB, and one fused tensor of 64 experts."""
    shapes = {f"layers.{number}.weight": [512, 1024] for number in range(2000)} | {"experts.w": [64, 512, 1024]}
    header, end = {}, 0
    for key, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (tmp_path / "config.json").write_text("{}")
    read = []
    real = identity.read_at
    monkeypatch.setattr(
        identity, "read_at", lambda file, start, size: read.append((start, size)) or real(file, start, size)
    )
    first = open_checkpoint(tmp_path).identity
    assert sum(size for _, size in read) < 0.01 * end
    expert = 8 + len(text) + header["experts.w"]["data_offsets"][0]
    for number in range(64):  # each expert of the fused tensor is met
        assert any(expert + number * 2**20 <= start < expert + (number + 1) * 2**20 for start, _ in read)
    times = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(expert + 5 * 2**20)
        file.write(os.urandom(2**20))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert open_checkpoint(tmp_path).identity != first


def changed_in_memory():
    model = moe_probe.load("ckpt/tiny-mixtral")
    with torch.no_grad():
        model.module.model.layers[1].mlp.gate.weight[3].neg_()
    return model


@pytest.mark.parametrize(
    "read",
    [
        lambda model, _: static.similarity(model),
        lambda model, _: static.gate_similarity(model),
        lambda model, _: static.pca(model),
        lambda model, _: static.weight_drift("ckpt/tiny-mixtral", model),
        lambda model, _: pruning.scores(model, names=["gate_norm"]),
        lambda model, _: dynamic.expert_load(model, [[5, 6, 7]], execution="layerwise", progress=False),
        lambda model, _: dynamic.expert_load(model, [[5, 6, 7], [8, 9, 10]], n_jobs=2, progress=False),
        lambda model, _: intervene.ablate(model, [[5, 6, 7]], execution="layerwise", progress=False),
        lambda model, folder: convert(model, folder / "converted"),
    ],
)
def test_files_are_not_read_in_the_place_of_weights_that_were_changed_in_memory(read, tmp_path):
    with pytest.raises(InputError, match=r"changed in memory.*moe_probe.load\(model.module\)"):
        read(changed_in_memory(), tmp_path)


def test_weights_that_were_changed_in_memory_run():
    model = changed_in_memory()
    found = dynamic.record(model, [[5, 6, 7]], progress=False)
    live = dynamic.record(moe_probe.load(model.module), [[5, 6, 7]], progress=False)
    np.testing.assert_array_equal(found.router_logits, live.router_logits)
