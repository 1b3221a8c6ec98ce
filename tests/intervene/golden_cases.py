"""The golden values of interventions, and the models that they are of."""

import json
from functools import cache

from conftest import FIXTURES
from safetensors.torch import load_file

import moe_probe
from moe_probe import intervene

GOLDEN = FIXTURES / "interventions"
FOLDERS = {
    "mixtral": FIXTURES / "mixtral" / "checkpoint",
    "qwen3_moe": GOLDEN / "qwen3_moe" / "checkpoint",
    "deepseek_v3": GOLDEN / "deepseek_v3" / "checkpoint",
}
HOW = ("resident", "layerwise", "live")


@cache
def cases(name):
    return json.loads((GOLDEN / name / "cases.json").read_text())


@cache
def expected(name):
    return {key: value.numpy() for key, value in load_file(GOLDEN / name / "expected.safetensors").items()}


def documents(name):
    return cases(name)["documents"]


def edits(name, case):
    for edit in cases(name)["cases"][case]:
        fields = {field: value for field, value in edit.items() if field != "kind"}
        yield intervene.names()[edit["kind"]](**fields)


@cache
def opened(name, live=False):
    model = moe_probe.load(FOLDERS[name])
    return moe_probe.load(model.module) if live else model


def model_and_options(name, how):
    """A model, and the options with which it runs in one of three ways."""
    options = {"progress": False, "bootstrap": 0}
    return (opened(name, live=True), options) if how == "live" else (opened(name), {**options, "execution": how})
