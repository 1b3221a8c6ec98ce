"""Papers' figures of the embedded checkpoints: complete, listed, computed once, and readable by printers."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import moe_probe
from moe_probe import dynamic, figures
from moe_probe.errors import InputError
from moe_probe.figures import recipes
from moe_probe.figures.making import digest
from moe_probe.figures.papers import moe_plus_plus
from moe_probe.results import load_result

pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("reproduce")]  # on one worker: what it draws is drawn once
TEXTS = ["The bank of the river was soft.", "def area(r):\n    return 3.14 * r ** 2", "12 * 3 = 36", "A light watch."]
LABELS = ["prose", "code", "arithmetic", "prose"]


@pytest.fixture(scope="module")
def look(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look")
    options = {"baseline": "ckpt/tiny-mistral", "layers": [1], "progress": False}
    return figures.reproduce("look-into-moes", "ckpt/tiny-mixtral", folder, TEXTS, **options)


def test_every_kind_of_figure_of_the_first_paper_is_made(look):
    names = {entry["data"].rsplit("/", 1)[1] for entry in look.figures}
    expected = {f"{kind.name}.nc" for kind in figures.papers()["look-into-moes"].recipes}
    assert names == expected
    assert not look.missing
    similarity = load_result(look.folder / "results/tiny-mixtral/similarity_matrix.nc")
    expected = moe_probe.static.similarity("ckpt/tiny-mixtral", "matrix", layers=[1], baseline="ckpt/tiny-mistral")
    np.testing.assert_array_equal(similarity.cosine, expected.cosine)


def test_the_manifest_lists_exactly_the_files_that_were_written(look):
    listed = json.loads(look.manifest.read_text())
    assert listed["figures"] == look.figures
    written = {str(path.relative_to(look.folder)) for path in look.folder.glob("figures/**/*.pdf")}
    assert {entry["file"] for entry in listed["figures"]} == written
    fingerprint = moe_probe.load("ckpt/tiny-mixtral").fingerprint
    for entry in listed["figures"]:
        assert entry["fingerprint"] == fingerprint
        assert (look.folder / entry["data"]).is_file()
        assert entry["analysis"] in entry["data"]
    assert look.contact_sheet.stat().st_size > 10_000


def test_fonts_are_embedded_as_truetype(look):
    for entry in look.figures:
        content = (look.folder / entry["file"]).read_bytes()
        assert b"/Type3" not in content
        assert b"/Subtype /Type3" not in content
        assert re.search(rb"/Subtype /(CIDFontType2|Type0)", content)


def test_a_second_call_computes_nothing_and_draws_the_same(look, monkeypatch, unrendered):
    def refuse(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(moe_probe.static, "similarity", refuse)
    monkeypatch.setattr(moe_probe.static, "pca", refuse)
    monkeypatch.setattr(dynamic, "run", refuse)
    options = {"baseline": "ckpt/tiny-mistral", "layers": [1], "progress": False}
    again = figures.reproduce("look-into-moes", "ckpt/tiny-mixtral", look.folder, TEXTS, **options)
    assert again.figures == look.figures


def test_other_texts_or_layers_are_computed_anew(look, tmp_path, unrendered):
    shutil.copytree(look.folder / "results", tmp_path / "results")
    options = {"layers": [2], "progress": False}
    made = figures.reproduce("look-into-moes", "ckpt/tiny-mixtral", tmp_path, TEXTS[:1], **options)
    for entry in made.figures:
        assert load_result(tmp_path / entry["data"]).layer.values.tolist() == [2]
    ranks = load_result(tmp_path / "results/tiny-mixtral/norm_score_ranks.nc")
    assert ranks.attrs["documents"] == 1


def test_another_dtype_is_computed_anew(tmp_path, monkeypatch, unrendered):
    dtypes, run = [], dynamic.run

    def watched(model, *args, **kwargs):
        dtypes.append(model.dtype)
        return run(model, *args, **kwargs)

    monkeypatch.setattr(dynamic, "run", watched)
    for dtype in (torch.float32, torch.bfloat16, torch.bfloat16):
        model = moe_probe.load("ckpt/tiny-mh-moe", dtype=dtype)
        figures.reproduce("mh-moe", model, tmp_path, TEXTS, layers=[1], progress=False)
    assert dtypes == [torch.float32, torch.bfloat16]


def test_what_a_model_cannot_give_is_listed_with_the_reason(tmp_path):
    made = figures.reproduce("moe-plus-plus", "ckpt/tiny-mixtral", tmp_path / "a", TEXTS, progress=False)
    reasons = {entry["figure"]: entry["reason"] for entry in made.missing}
    assert set(reasons) == {"table 1", "figure 4", "figure 5", "figure 6"}
    assert "only FFN experts" in reasons["table 1"]
    assert "at least two labels" in reasons["figure 4"]
    assert "no gating residual" in reasons["figure 6"]
    made = figures.reproduce("mh-moe", "ckpt/tiny-mh-moe", tmp_path / "b", progress=False)
    assert not made.figures
    assert {entry["reason"] for entry in made.missing} == {
        "This figure needs texts; pass texts.",
        "This figure compares models, and there is one; pass at least two.",
    }


def test_figures_of_moe_plus_plus_bear_their_numbers(tmp_path):
    options = {"labels": LABELS, "layers": [0, 1], "png": True, "progress": False}
    options["options"] = {"ffn_experts_per_token": {"min_count": 1, "bootstrap": 9}, "task_load": {"bootstrap": 9}}
    made = figures.reproduce("moe-plus-plus", "ckpt/tiny-moe-plus-plus", tmp_path, TEXTS, **options)
    assert not made.missing
    stems = [entry["file"].rsplit("/", 1)[1] for entry in made.figures]
    for beginning in (
        "table1_complexity",
        "figure4_task_load_layer1",
        "figureA_task_load_layers0-1",
        "figure5_ffn_experts",
        "figure6_gating_residual",
    ):
        assert any(stem.startswith(beginning) for stem in stems), beginning
    assert all((tmp_path / entry["file"]).with_suffix(".png").is_file() for entry in made.figures)
    (entry,) = [e for e in made.figures if e["file"].endswith("figure5_ffn_experts_per_token_type.pdf")]
    assert entry["parameters"]["min_count"] == 1


def test_models_of_mh_moe_stand_side_by_side(tmp_path, unrendered):
    models = {"X-MoE": "ckpt/tiny-x-moe", "MH-MoE": "ckpt/tiny-mh-moe", "MoE++": "ckpt/tiny-moe-plus-plus"}
    grid = {"patch_divergence": {"grid": [2, 3]}}
    pictures = [[10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]]
    made = figures.reproduce("mh-moe", models, tmp_path, pictures, options=grid, progress=False)
    files = {entry["file"] for entry in made.figures}
    assert "figures/compared/figure1a_expert_activation.pdf" in files
    assert "figures/compared/expert_activation_num_experts.pdf" in files
    assert any(file.startswith("figures/MH-MoE/figure1b_patch_divergence") for file in files)
    assert any(file.startswith("figures/compared/figure8_patch_divergence") for file in files)
    activation = load_result(tmp_path / "results/compared/expert_activation.nc")
    assert activation.checkpoint.values.tolist() == list(models)


def test_every_figure_of_the_first_paper_bears_its_number_and_layer(look):
    captions = {entry["caption"].split(":")[0] for entry in look.figures}
    numbers = ("1", "2", "3", "4", "6", "7", "8", "10", "12", "14")
    assert {f"Figure {number}, layer 1" for number in numbers} | {"Table 3"} <= captions
    assert {entry["figure"] for entry in look.figures} == {f"figure {number}" for number in numbers} | {"", "table 3"}


def test_five_layers_share_a_page_of_tasks():
    options = {"labels": LABELS, "bootstrap": 0, "progress": False}
    four = dynamic.task_load("ckpt/tiny-moe-plus-plus", TEXTS, **options)
    ds = four.isel(layer=[0, 1, 2, 3, 0, 1, 2]).assign_coords(layer=range(7))
    drawn = dict(moe_plus_plus.tasks_of_all_layers(ds, {}))
    pages = {stem: figure for stem, figure in drawn.items() if stem.startswith("figure")}
    assert list(pages) == ["figureA_task_load_layers0-4", "figureB_task_load_layers5-6"]
    titles = [
        [part.get_suptitle() or part.legends[0].get_title().get_text() for part in page.subfigs]
        for page in pages.values()
    ]
    assert titles == [[f"layer {layer}" for layer in range(5)], ["layer 5", "layer 6"]]
    limits = {
        axes.get_ylim() for axes in pages["figureA_task_load_layers0-4"].axes if axes.get_ylabel().startswith("share")
    }
    assert len(limits) == 1


def test_a_dense_model_of_other_shapes_takes_no_part(tmp_path, capsys, unrendered):
    options = {"baseline": "ckpt/tiny-mistral", "layers": [1], "batch_tokens": 512}
    made = figures.reproduce("look-into-moes", "ckpt/tiny-deepseek-moe", tmp_path, TEXTS[:1], **options)
    assert "tiny-mistral has other shapes" in capsys.readouterr().out
    assert not made.missing
    means = load_result(tmp_path / "results/tiny-deepseek-moe/similarity_neuron_mean.nc")
    assert "S" in means.expert.values
    assert "F" not in means.expert.values


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nature", "ckpt/tiny-mixtral"), "no paper 'nature'; there are look-into-moes, mh-moe, moe-plus-plus"),
        (("mh-moe", []), "models is empty"),
        (("mh-moe", ["ckpt/tiny-mixtral", "ckpt/tiny-mixtral"]), "Two models have one name"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        figures.reproduce(*arguments, tmp_path, progress=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"record": {}}, "no figure of this paper that takes options as 'record'"),
        ({"complexity": {"tau": 1}}, "no option of complexity 'tau'; did you mean 'taus'"),
    ],
)
def test_options_are_checked_before_any_work(options, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        figures.reproduce("moe-plus-plus", "ckpt/tiny-moe-plus-plus", tmp_path, TEXTS, options=options, progress=False)
    assert not list(tmp_path.rglob("*.nc"))


def test_nothing_half_written_is_left_by_an_interruption(tmp_path, monkeypatch):
    calls = []

    def interrupt(figure):
        calls.append(figure)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return np.zeros((2, 2, 4), np.uint8)

    monkeypatch.setattr("moe_probe.figures.album.thumbnail", interrupt)
    with pytest.raises(KeyboardInterrupt):
        figures.reproduce("look-into-moes", "ckpt/tiny-mixtral", tmp_path, layers=[1], progress=False)
    assert not list(tmp_path.rglob("*.partial"))
    for path in tmp_path.rglob("*.nc"):
        load_result(path)


def test_every_paper_has_kinds_with_names_of_their_own():
    for paper in figures.papers().values():
        single = [kind.name for kind in paper.recipes if not isinstance(kind, recipes.FromModels)]
        assert len(single) == len(set(single))
        assert all(kind.shows for kind in paper.recipes)


def test_requests_that_differ_in_anything_have_other_digests():
    requests = [["a", 1], ["a", 2], ["a", [1]], ["b", 1], ["a", None]]
    assert len({digest(request) for request in requests}) == len(requests)
