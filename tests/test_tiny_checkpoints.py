"""The embedded checkpoints open, are small, and are trained."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import moe_probe
from moe_probe import dynamic

FOLDERS = sorted((Path(__file__).parents[1] / "ckpt").glob("tiny-*"))
PROSE = "The return value is a list of the names of all the files in the directory, sorted as strings."
CODE = "    def __init__(self, name, value=None):\n        self.name = name\n        self.value = value\n"
FAMILIES = {
    "tiny-deepseek-moe": "deepseek",
    "tiny-grok-1": "grok1",
    "tiny-mh-moe": "mh_moe",
    "tiny-mistral": "mistral",
    "tiny-mixtral": "mixtral",
    "tiny-moe-plus-plus": "moe_plus_plus",
    "tiny-x-moe": "mh_moe",
}


def test_there_is_one_of_every_family():
    assert {folder.name: moe_probe.load(folder).family for folder in FOLDERS} == FAMILIES


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_it_is_small_and_predicts_text_far_better_than_token_frequencies(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= 2_000_000
    model = moe_probe.load(folder)
    for text in (PROSE, CODE):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            assert model.module(ids, labels=ids).loss < 3.7  # single tokens have an entropy of 5.25


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_all_share_one_tokenizer(folder):
    first = AutoTokenizer.from_pretrained(FOLDERS[0])
    assert moe_probe.load(folder).tokenizer(CODE)["input_ids"] == first(CODE)["input_ids"]


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f.name != "tiny-mistral"], ids=lambda folder: folder.name)
def test_routing_depends_on_the_text(folder):
    dataset = dynamic.gate_choices(folder, [PROSE, CODE], progress=False)
    share = (dataset.weight > 0).mean("subtoken") if "subtoken" in dataset.dims else dataset.weight > 0
    prose, code = (share.isel(token=dataset.document == number).mean("token") for number in (0, 1))
    assert float(abs(prose - code).sum("expert").max()) > 0.2
