"""What a reproduction keeps, where it writes, and what it refuses."""

import json
import re

import pytest

import moe_probe
from moe_probe import figures, plotting, static
from moe_probe.errors import InputError, MachineError, NoSuchName, NotFitting, OutOfRange, WrongType
from moe_probe.figures import making
from moe_probe.figures.recipes import Paper
from moe_probe.model import MoEModel
from moe_probe.results import load_result

pytestmark = pytest.mark.thorough

HOSTILE = ["../../up", "a/b", "a\\b", "..", "x" * 300, "\x1b[31m", "a\0b", "$a_{$ 数", "[red]"]


@pytest.fixture
def one_recipe(monkeypatch):
    """The paper is its map of gate embeddings."""
    paper = figures.papers()["look-into-moes"]
    recipes = tuple(recipe for recipe in paper.recipes if recipe.name == "gate_similarity")
    monkeypatch.setattr(making, "find_paper", lambda name: Paper(name, paper.arxiv, recipes))


def reproduce(models, out, **options):
    return figures.reproduce("look-into-moes", models, out, layers=[1], progress=False, **options)


@pytest.mark.parametrize("label", HOSTILE)
def test_a_label_names_one_folder_below_out(label, tmp_path, one_recipe):
    out = tmp_path / "a" / "b" / "out"
    made = reproduce({label: "ckpt/tiny-mixtral"}, out)
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.is_relative_to(out) for path in written)
    assert {path.parent.parent for path in written if path.suffix == ".nc"} == {out / "results"}
    assert {entry["model"] for entry in made.figures} == {label}
    assert all((out / entry["file"]).is_file() for entry in made.figures)
    assert json.loads(made.manifest.read_text())["figures"] == made.figures


def test_results_of_one_model_are_never_anothers(tmp_path, one_recipe, unrendered, monkeypatch):
    monkeypatch.setattr(MoEModel, "fingerprint", property(lambda model: str(float(model.router_weight(1).sum()))))
    module = moe_probe.load("ckpt/tiny-mixtral").module
    live = moe_probe.load(module)
    reproduce({"m": live}, tmp_path)
    first = load_result(tmp_path / "results" / "m" / "gate_similarity.nc")
    calls = []
    monkeypatch.setattr(static.ANALYSES, "_picked", {**static.ANALYSES._picked})
    original = static.gate_similarity
    monkeypatch.setitem(
        static.ANALYSES._picked, "gate_similarity", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    reproduce({"m": live}, tmp_path)
    assert not calls  # a live model's result is used again
    module.model.layers[1].mlp.gate.weight.data[0] *= -1
    reproduce({"m": moe_probe.load(module)}, tmp_path)
    assert calls
    assert not load_result(tmp_path / "results" / "m" / "gate_similarity.nc").cosine.equals(first.cosine)
    monkeypatch.setattr(making, "version", lambda name: "0.0")
    before = len(calls)
    reproduce({"m": moe_probe.load(module)}, tmp_path)
    assert len(calls) == before + 1  # other versions may give other numbers


def test_figures_of_another_model_of_the_label_do_not_stay(tmp_path, one_recipe, monkeypatch):
    made = reproduce({"m": "ckpt/tiny-mixtral"}, tmp_path)
    old = {tmp_path / entry["file"] for entry in made.figures}
    own = tmp_path / "figures" / "m" / "mine.pdf"
    own.write_text("mine")
    figures.reproduce("look-into-moes", {"m": "ckpt/tiny-moe-plus-plus"}, tmp_path, layers=[0], progress=False)
    assert not any(path.exists() for path in old)
    assert own.read_text() == "mine"


def test_a_damaged_result_is_computed_again(tmp_path, one_recipe, unrendered):
    reproduce("ckpt/tiny-mixtral", tmp_path)
    path = tmp_path / "results" / "tiny-mixtral" / "gate_similarity.nc"
    path.write_bytes(path.read_bytes()[:2000])
    made = reproduce("ckpt/tiny-mixtral", tmp_path)
    assert made.figures
    assert load_result(path).attrs["analysis"] == "gate_similarity"


def test_what_was_computed_is_saved_before_anything_is_drawn(tmp_path, monkeypatch):
    def full(*_, **__):
        raise MachineError("no space")

    monkeypatch.setattr("moe_probe.figures.album.write_figure", full)
    with pytest.raises(MachineError):
        figures.reproduce("mh-moe", "ckpt/tiny-x-moe", tmp_path, ["The bank of the river."], progress=False)
    saved = {path.stem for path in tmp_path.rglob("*.nc")}
    assert {"expert_load", "subtoken_divergence"} & saved
    assert not list(tmp_path.rglob("*.partial"))


def test_texts_that_can_be_read_once_reach_every_model(tmp_path, unrendered):
    models = ["ckpt/tiny-x-moe", "ckpt/tiny-mh-moe"]
    made = figures.reproduce("mh-moe", models, tmp_path, (text for text in ["The bank.", "A file."]), progress=False)
    assert {entry["model"] for entry in made.figures} >= {"tiny-x-moe", "tiny-mh-moe"}


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"n_jobs": 0}, OutOfRange, "n_jobs is 0"),
        ({"batch_tokens": 0}, OutOfRange, "batch_tokens is 0"),
        ({"max_length": -1}, OutOfRange, "max_length is -1"),
        ({"max_length": "3"}, WrongType, "max_length is '3'"),
        ({"png": "yes"}, WrongType, "png is 'yes'"),
        ({"baseline": "ckpt/tiny-mixtral"}, NotFitting, "is a Mixture-of-Experts model"),
        ({"options": {"output_norm": {}}}, NoSuchName, "did you mean 'output_norms'"),
        ({"options": {"gate_choices": 3}}, WrongType, "pass a mapping"),
    ],
)
def test_arguments_are_taken_or_refused(tmp_path, options, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)):
        reproduce("ckpt/tiny-mixtral", tmp_path, **options)
    assert not list(tmp_path.rglob("*.nc"))


@pytest.mark.parametrize(
    ("models", "sentence"),
    [({"a": "ckpt/tiny-mixtral", "A": "ckpt/tiny-x-moe"}, "differ in more than their case"), ({}, "models is empty")],
)
def test_labels_that_share_a_folder_are_refused(models, sentence, tmp_path):
    with pytest.raises(NotFitting, match=sentence):
        reproduce(models, tmp_path)


def test_files_of_a_result_stay_in_its_folder(tmp_path):
    dataset = static.gate_similarity("ckpt/tiny-mixtral", layers=[0])
    hostile = static.similarity("ckpt/tiny-mixtral", layers=[0]).assign_attrs(level="../../matrix")
    assert "/" not in figures.result_stem(hostile)
    assert figures.result_stem(dataset) == "gate_similarity"
    with pytest.raises(InputError):
        figures.draw(hostile, tmp_path / "a")
    for path in figures.draw(dataset, tmp_path / "b"):
        assert path.is_relative_to(tmp_path / "b" / "figures")
    assert plotting.names()


def test_names_of_before_still_work():
    with pytest.warns(DeprecationWarning, match="Album"):
        assert figures.Reproduction is figures.Album
