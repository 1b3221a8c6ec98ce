"""Hub ids, against a server on this machine that speaks the hub's paths."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from hub_server import COMMIT, serving
from safetensors.torch import load_file, save_file

NAME = "someone/tiny"
PROGRAM = """
import json, moe_probe
from moe_probe.facts import facts
model = moe_probe.load("someone/tiny")
said = dict(facts(model)), model.fingerprint
{work}
print(json.dumps(said))
"""


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


def run(tmp_path, endpoint, work, **more):
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
                   "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1", **more}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(work=work)], capture_output=True, text=True, env=environment)
    return (json.loads(done.stdout) if done.returncode == 0 else None), done.stderr


def test_headers_are_read_by_range_and_weights_when_they_are_asked_for(tmp_path, repository):
    with serving(NAME, repository) as (endpoint, requests):
        said, errors = run(tmp_path, endpoint, "")
        assert said is not None, errors
        assert {file for _, file, span in requests if file.endswith(".safetensors") and span is None} == set()
        assert not any("pytorch_model" in file or "original" in file for _, file, _ in requests)
        requests.clear()
        read, errors = run(tmp_path, endpoint, "model.expert_weight(1, '3', 'up'), model.router_weight(1)")
        assert read == said
        fetched = {file for method, file, span in requests if method == "GET" and file.endswith("s") and span is None}
        assert fetched == {"model-1.safetensors"}
        assert "GB in 5 files" in errors
        requests.clear()
        again, errors = run(tmp_path, endpoint, "model.expert_weight(1, '3', 'up')")
        assert again == said
        assert "GB in" not in errors
        whole, _ = run(tmp_path, endpoint, "model.module")
        assert whole == said
        offline, errors = run(tmp_path, "http://127.0.0.1:9", "model.module", HF_HUB_OFFLINE="1")
        assert offline == said, errors
    local, _ = run(tmp_path, endpoint, "", HF_HUB_OFFLINE="1")
    assert local == said


def test_a_missing_shard_without_the_hub_is_one_sentence(tmp_path, repository):
    with serving(NAME, repository) as (endpoint, _):
        run(tmp_path, endpoint, "model.expert_weight(1, '3', 'up')")
    said, errors = run(tmp_path, endpoint, "", HF_HUB_OFFLINE="1")
    assert said is None
    assert "someone/tiny is no folder, is only in part in the hub's local cache, and cannot be had" in errors


def test_a_model_goes_to_workers(tmp_path, repository):
    work = "import pickle; again = pickle.loads(pickle.dumps(model)); assert again.fingerprint == model.fingerprint"
    with serving(NAME, repository) as (endpoint, _):
        said, errors = run(tmp_path, endpoint, work)
    assert said is not None, errors
    assert COMMIT not in said[0]


def test_a_path_whose_first_part_is_a_folder_here_is_a_path(tmp_path, monkeypatch):
    import moe_probe

    (tmp_path / "someone").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(moe_probe.errors.MissingFiles, match="someone/tiny is not a folder"):
        moe_probe.load(NAME)
