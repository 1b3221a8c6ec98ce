"""Beside an effect stands that of experts which are chosen about as often."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import moe_probe
from moe_probe import dynamic, intervene, results
from moe_probe.cli import app
from moe_probe.intervene import Mask, Random, Replace, Scale, TopK, Zero
from moe_probe.intervene.measured.controls import exchanged

IDS = [[5, 6, 7, 8, 9, 3], [11, 12, 13], [20, 21, 22, 23, 24, 25, 26, 27], [9], [30, 31, 32], [40, 2, 41]]
MODEL = "ckpt/tiny-mixtral"


def test_the_control_is_the_same_edit_of_the_experts_chosen_about_as_often():
    load = dynamic.expert_load(MODEL, IDS, layers=[1], bootstrap=0, progress=False)
    counts = load.selections.sel(layer=1).values
    apart = np.abs(counts - counts[2]).astype(float)
    apart[2] = np.inf
    other = int(apart.argmin())
    edits = {"one": Zero(1, [2]), "weaker": Scale(1, [2], 0.5)}
    found = intervene.effect(MODEL, IDS, edits, direct=True, progress=False)
    assert found.control.values.tolist() == [
        f"(Zero(layer=1, experts=({other},)),)",
        f"(Scale(layer=1, experts=({other},), factor=0.5),)",
    ]
    alone = intervene.effect(
        MODEL,
        IDS,
        {"one": Zero(1, [other]), "weaker": Scale(1, [other], 0.5)},
        direct=True,
        control=False,
        progress=False,
    )
    for ending in ("", "_low", "_high"):
        np.testing.assert_array_equal(found[f"control_loss_change{ending}"], alone[f"mean_loss_change{ending}"])
    assert "control_loss_change" not in alone


def test_an_edit_without_experts_or_without_others_has_none():
    edits = {
        "random": Random(1),
        "one expert each": TopK(1, k=1),
        "all": Zero(1, "all"),
        "most": Zero(1, [0, 1, 2, 3, 4]),
        "shared": [Zero(1, [2]), Zero(1, [4])],
        "by": Replace(1, [0], by=3),
    }
    found = intervene.effect(MODEL, IDS, edits, bootstrap=0, progress=False)
    has = dict(zip(found.edit.values.tolist(), (found.control != "").values.tolist(), strict=True))
    assert has == {"random": False, "one expert each": False, "all": False, "most": False, "shared": True, "by": True}
    known = np.isfinite(found.control_loss_change.sel(path="total")).values.tolist()
    assert known == list(has.values())
    assert "by=3" in found.control.sel(edit="by").item()


def test_kinds_of_experts_and_shared_blocks_stay_apart():
    plus = moe_probe.load("ckpt/tiny-moe-plus-plus")
    layer = plus.moe_layers[0]
    kinds = plus.layer(layer).expert_kinds
    constants = [expert for expert, kind in enumerate(kinds) if kind == "constant"]
    found = intervene.effect(plus, IDS, {"constant": Zero(layer, constants[:1])}, bootstrap=0, progress=False)
    named = found.control.item()
    assert not named or named == f"(Zero(layer={layer}, experts=({constants[1]},)),)"
    deepseek = moe_probe.load("ckpt/tiny-deepseek-moe")
    layer = deepseek.moe_layers[0]
    found = intervene.effect(deepseek, IDS, {"both": Zero(layer, [1, "S"])}, bootstrap=0, progress=False)
    assert "'S'" in found.control.item()


@given(st.lists(st.integers(0, 50), min_size=2, max_size=12), st.data())
def test_others_are_as_many_and_none_of_them(counts, data):
    experts = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=len(counts), unique=True))
    kinds = data.draw(st.lists(st.sampled_from(["ffn", "zero"]), min_size=len(counts), max_size=len(counts)))
    others = exchanged(experts, np.array(counts), kinds)
    if others is None:
        free = [other for other in range(len(counts)) if other not in experts]
        assert any(sum(kinds[e] == kind for e in experts) > sum(kinds[o] == kind for o in free) for kind in kinds)
        return
    assert len(set(others)) == len(experts)
    assert not {*others} & {*experts}
    assert [kinds[other] for other in others] == [kinds[expert] for expert in experts]


def test_the_command_measures_effects_with_their_control(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("One text.\nAnother text, longer than that.\n")
    done = CliRunner().invoke(
        app, ["effect", MODEL, "--texts", str(texts), "-o", str(tmp_path), "--under", "a:zero.layer=1,experts=2"]
    )
    assert done.exit_code == 0, done.output
    found = results.load_result(tmp_path / "effect.nc")
    assert found.control.item().startswith("(Zero(layer=1")
    assert sorted(path.name for path in tmp_path.rglob("*.pdf")) == ["effect.pdf", "effect_rerouted.pdf"]


@pytest.mark.parametrize("how", ["zero", "mask"])
def test_the_command_measures_every_expert(tmp_path, how):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "One text.", "kind": "a"}\n{"text": "Another text, longer.", "kind": "b"}\n')
    asked = ["--texts", str(texts), "--labels", "kind", "--layers", "1", "--how", how, "--direct", "--attribution"]
    done = CliRunner().invoke(app, ["ablate", MODEL, *asked, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    found = {path.stem: results.load_result(path) for path in (tmp_path / "out").glob("*.nc")}
    assert set(found) == {"ablate", "attribution", "agreement"}
    alone = intervene.effect(
        MODEL,
        ["One text.", "Another text, longer."],
        {"0": Mask(1, [0]) if how == "mask" else Zero(1, [0])},
        progress=False,
    )
    np.testing.assert_allclose(
        found["ablate"].loss_change.sel(path="total", layer=1, expert="0"), alone.mean_loss_change.item(), atol=1e-7
    )
    names = {path.name for path in (tmp_path / "out").rglob("*.pdf")}
    assert names


def test_a_dense_model_stands_among_the_claims():
    found = intervene.claims(MODEL, IDS, layers=[1], dense="ckpt/tiny-mistral", bootstrap=0, progress=False)
    edits = {"dense": [Replace(1, "all", by="F", baseline="ckpt/tiny-mistral")]}
    alone = intervene.effect(MODEL, IDS, edits, bootstrap=0, progress=False)
    one = found.mean_loss_change.sel(edit="dense for all", path="total")
    np.testing.assert_allclose(one, alone.mean_loss_change.item(), atol=1e-7)
    assert {"dense for one", "norm", "random", "most similar", "no routed"} <= set(found.edit.values.tolist())
