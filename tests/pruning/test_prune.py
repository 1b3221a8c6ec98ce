"""Smaller checkpoints: their logits are those of the masked model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from typer.testing import CliRunner

import moe_probe
from moe_probe import pruning
from moe_probe.cli import app
from moe_probe.errors import AlreadyThere, Damaged, InputError, NoSuchName, NotComparable, NotFitting

FOLDERS = {
    "mixtral": FIXTURES / "mixtral" / "checkpoint",
    "qwen3_moe": FIXTURES / "interventions" / "qwen3_moe" / "checkpoint",
    "deepseek_v3": FIXTURES / "interventions" / "deepseek_v3" / "checkpoint",
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 40, 41, 42, 17, 3, 99, 71]])


def scores(name):
    return pruning.scores(FOLDERS[name], names="gate_norm", progress=False)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_smaller_checkpoint_is_the_masked_model(name, tmp_path):
    plan = pruning.plan(FOLDERS[name], scores(name), 0.25)
    path = plan.save(tmp_path / "plan.json")
    assert pruning.read_plan(path) == plan
    smaller = moe_probe.load(pruning.prune(FOLDERS[name], path, tmp_path / "smaller", shard_bytes=40_000))
    whole = moe_probe.load(FOLDERS[name])
    assert {smaller.layer(layer).num_experts for layer in smaller.moe_layers} == {0.75 * len(scores(name).expert)}
    with torch.no_grad():
        logits = smaller.module(IDS).logits
        with moe_probe.intervene.applied(whole.module, plan.masks()):
            masked = whole.module(IDS).logits
        assert not torch.allclose(masked, whole.module(IDS).logits, atol=1e-3)
    torch.testing.assert_close(logits, masked, atol=1e-5, rtol=1e-5)
    assert len(list((tmp_path / "smaller").glob("*.safetensors"))) > 1


def test_groups_stay_equal():
    found = pruning.plan(FOLDERS["deepseek_v3"], scores("deepseek_v3"), 0.25)
    for own in found.kept.values():
        assert [sum(expert // 4 == group for expert in own) for group in range(3)] == [3, 3, 3]
    for fraction, says in ((1 / 6, "must stay equal"), (0.75, "too few")):
        with pytest.raises(NotFitting, match=says):
            pruning.plan(FOLDERS["deepseek_v3"], scores("deepseek_v3"), fraction)


def test_a_plan_with_unequal_groups_is_not_written(tmp_path):
    found = pruning.plan(FOLDERS["deepseek_v3"], scores("deepseek_v3"), 0.25)
    unequal = replace(found, kept={layer: tuple(range(9)) for layer in found.kept})
    with pytest.raises(NotFitting, match="3 groups"):
        pruning.prune(FOLDERS["deepseek_v3"], unequal, tmp_path / "out")


def test_the_experts_of_the_lowest_scores_go():
    ds = scores("mixtral")
    for layer, own in pruning.plan(FOLDERS["mixtral"], ds, 0.25).kept.items():
        assert list(own) == sorted(np.argsort(ds.value.sel(layer=layer).values[0])[2:].tolist())


def test_what_cannot_be_pruned_is_refused(tmp_path):
    folder, ds = FOLDERS["mixtral"], scores("mixtral")
    with pytest.raises(NoSuchName, match="gate_norm"):
        pruning.plan(folder, ds, 0.25, "reap")
    with pytest.raises(NotFitting, match="can spare"):
        pruning.plan(folder, ds, 0.9)
    plan = pruning.plan(folder, ds, 0.25)
    with pytest.raises(NotComparable, match="does not fit"):
        pruning.prune(FOLDERS["qwen3_moe"], plan, tmp_path / "out")
    uneven = pruning.plan(folder, ds, 0.25, per="model")
    if len({len(own) for own in uneven.kept.values()}) > 1:
        with pytest.raises(NotFitting, match="one number for all"):
            pruning.prune(folder, uneven, tmp_path / "out")
    with pytest.raises(AlreadyThere):
        pruning.prune(folder, plan, tmp_path)
    model = moe_probe.load(folder)
    for other in (moe_probe.load(model.module), model.under(*plan.masks())):
        with pytest.raises(InputError):
            pruning.prune(other, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tiny-moe-plus-plus", "tiny-mh-moe", "tiny-grok-1"])
def test_layouts_that_cannot_be_cut_are_refused(name, tmp_path):
    folder = Path(__file__).parents[2] / "ckpt" / name
    plan = pruning.plan(folder, pruning.scores(folder, names="gate_norm", progress=False), 0.25)
    with pytest.raises(NotFitting, match=r"without matrices|num_experts|convert it"):
        pruning.prune(folder, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "moe_probe pruning plan 1"}'])
def test_a_file_that_is_no_plan_is_refused(content, tmp_path):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(Damaged, match="no plan"):
        pruning.read_plan(tmp_path / "plan.json")


def test_a_plan_of_experts_that_there_are_not_is_refused(tmp_path):
    path = pruning.plan(FOLDERS["mixtral"], scores("mixtral"), 0.25).save(tmp_path / "plan.json")
    content = json.loads(path.read_text())
    content["kept"]["0"] = [0, 1, 9]
    path.write_text(json.dumps(content))
    with pytest.raises(Damaged, match="layer 0"):
        pruning.read_plan(path)


def test_the_command_writes_what_the_plan_leaves(tmp_path):
    path = pruning.plan(FOLDERS["mixtral"], scores("mixtral"), 0.25).save(tmp_path / "plan.json")
    out = tmp_path / "smaller"
    done = CliRunner().invoke(app, ["prune", str(FOLDERS["mixtral"]), "--plan", str(path), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert moe_probe.load(out).layer(0).num_experts == 6
