"""Hub ids, against a server on this machine that speaks the hub's paths."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
from hub_server import serving
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import moe_probe
from moe_probe.errors import MissingFiles
from moe_probe.facts import facts

NAME = "someone/tiny"


@pytest.fixture
def repository(tmp_path):
    """Mixtral in as many shards as layers, with a second copy in another format and files that are not used."""
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy("ckpt/tiny-mixtral/config.json", folder)
    tensors = {}
    for path in sorted(os.scandir("ckpt/tiny-mixtral"), key=lambda entry: entry.name):
        if path.name.endswith(".safetensors"):
            tensors |= load_file(path.path)
        elif path.name.startswith("tokenizer"):
            shutil.copy(path.path, folder)
    places = {key: f"model-{key.split('.')[2] if 'layers' in key else 'ends'}.safetensors" for key in tensors}
    for file in set(places.values()):
        save_file({key: value for key, value in tensors.items() if places[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "pytorch_model.bin").write_bytes(b"a second copy" * 100)
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"the publisher's")
    return folder


@pytest.fixture
def hub(tmp_path, repository, monkeypatch):
    """The hub of this test, with a cache of its own: what was asked of it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(NAME, repository) as (endpoint, requests):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield requests


def fetched(requests):
    """Weight files of which more than the header was read."""
    whole = {file for method, file, span in requests if method == "GET" and span is None}
    requests.clear()
    return {file for file in whole if file.endswith((".safetensors", ".bin", ".pth"))}


def test_headers_are_read_by_range_and_weights_when_they_are_asked_for(hub, monkeypatch):
    local = moe_probe.load("ckpt/tiny-mixtral")
    model = moe_probe.load(NAME)
    assert dict(facts(model))["parameters"] == dict(facts(local))["parameters"]
    assert not any("pytorch_model" in file or "original" in file for _, file, _ in hub)
    assert fetched(hub) == set()
    weight = model.expert_weight(1, "3", "up")
    assert fetched(hub) == {"model-1.safetensors"}
    assert weight.equal(local.expert_weight(1, "3", "up"))
    again = moe_probe.load(NAME)
    assert again.expert_weight(1, "3", "up").equal(weight)
    assert fetched(hub) == set()
    fingerprint = model.fingerprint
    assert sum(p.sum() for p in model.module.parameters()) == sum(p.sum() for p in local.module.parameters())
    assert fetched(hub) == {f"model-{part}.safetensors" for part in ("ends", 0, 2, 3)}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert moe_probe.load(NAME).fingerprint == fingerprint


def test_how_much_is_to_come_is_said_before_the_first_file(hub, repository, capfd):
    model = moe_probe.load(NAME)
    assert "GB" not in capfd.readouterr().err
    model.router_weight(0)
    model.router_weight(1)
    size = sum(path.stat().st_size for path in repository.glob("*.safetensors")) / 1e9
    said = " ".join(capfd.readouterr().err.split())
    assert said.count(f"someone/tiny: {size:.3g} GB in 5 files; each is downloaded when it is needed.") == 1


def test_a_missing_shard_without_the_hub_is_one_sentence(hub, monkeypatch):
    moe_probe.load(NAME).expert_weight(1, "3", "up")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingFiles, match="is incomplete in the hub's local cache, and fetching"):
        moe_probe.load(NAME)


def test_a_model_goes_to_workers_and_under_another_configuration(hub):
    model = moe_probe.load(NAME)
    assert pickle.loads(pickle.dumps(model)).fingerprint == model.fingerprint
    assert moe_probe.load(model, config={"num_experts_per_tok": 1}).layer(0).top_k == 1
    assert fetched(hub) == set()


def test_only_other_formats_are_downloaded_whole(hub, repository):
    for path in repository.glob("model*"):
        path.unlink()
    with pytest.raises(moe_probe.errors.CheckpointError, match=r"pytorch_model.bin"):
        moe_probe.load(NAME)
    assert fetched(hub) == {"pytorch_model.bin"}


def test_the_endpoint_of_the_environment_counts(tmp_path, repository):
    program = "import moe_probe; print(moe_probe.load('someone/tiny').router_weight(1).shape[0])"
    with serving(NAME, repository) as (endpoint, _):
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
                       "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout == "8\n", done.stderr


def test_a_path_whose_first_part_is_a_folder_here_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "someone").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFiles, match="someone/tiny is not a folder"):
        moe_probe.load(NAME)


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    sentence = r"someone/tiny is not a folder, .* fetching someone/tiny from the hub failed"
    with pytest.raises(MissingFiles, match=sentence):
        moe_probe.load(NAME)
