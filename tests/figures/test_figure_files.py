"""Figures as files: formats, workers, and the LaTeX beside a paper's figures."""

import json
import re

import pytest
from PIL import Image

from moe_probe import figures, static
from moe_probe.errors import NoSuchName, OutOfRange
from moe_probe.figures.latex import environment, escaped

BEGINS = {"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml"}


@pytest.fixture(scope="module")
def results():
    return [static.gate_similarity("ckpt/tiny-mixtral"), static.router_spectrum("ckpt/tiny-mixtral")]


@pytest.mark.parametrize("format", BEGINS)
def test_figures_are_written_in_the_format_asked_for(format, results, tmp_path):
    paths = figures.draw(results[0], tmp_path, format=format)
    assert [path.name for path in paths] == [f"gate_similarity.{format}"]
    assert paths[0].read_bytes().startswith(BEGINS[format])


def test_dots_an_inch_are_those_asked_for(results, tmp_path):
    (path,) = figures.draw(results[1], tmp_path, format="png", dpi=50)
    width, _ = Image.open(path).size
    assert width == round(50 * 6.9)


def test_fonts_are_embedded_as_truetype(results, tmp_path):
    for path in figures.draw(results, tmp_path):
        content = path.read_bytes()
        assert b"/FontFile2" in content
        assert b"/Type3" not in content


def test_several_workers_write_what_one_writes(results, tmp_path):
    one, several = figures.draw(results, tmp_path / "a"), figures.draw(results, tmp_path / "b", n_jobs=2)
    assert [path.name for path in one] == [path.name for path in several]
    assert all(path.is_file() for path in several)


def test_main_figures_or_all_or_none(results, tmp_path):
    assert len(figures.draw(results[0], tmp_path)) == 1
    assert len(figures.draw(results[0], tmp_path, which="all")) == 1 + 2 * results[0].sizes["layer"]
    assert figures.draw(results[0], tmp_path, which="none") == []
    with pytest.raises(NoSuchName):
        figures.draw(results[0], tmp_path, which="every")
    with pytest.raises(NoSuchName):
        figures.draw(results[0], tmp_path, format="gif")
    with pytest.raises(OutOfRange):
        figures.draw(results[0], tmp_path, dpi=0)


def test_a_caption_is_latex_whatever_it_holds():
    assert escaped("50 % of $a_{b}$ & c\\d~e^f#\n") == (
        r"50 \% of \$a\_\{b\}\$ \& c\textbackslash{}d\textasciitilde{}e\textasciicircum{}f\#"
    )


@pytest.mark.parametrize(
    ("width", "beginning", "included"),
    [(3.3, "figure", ""), (6.9, "figure*", ""), (2.64, "figure", "0.80"), (4.14, "figure*", "0.60")],
)
def test_a_figure_is_included_at_the_size_that_it_was_drawn_for(width, beginning, included):
    entry = {"file": "f/a.pdf", "caption": "x", "model": "m", "fingerprint": "f", "data": "r.nc", "analysis": "load"}
    lines = environment(entry | {"parameters": {}, "width": width}).splitlines()
    assert lines[1] == f"\\begin{{{beginning}}}"
    assert lines[3] == f"  \\includegraphics[width={included}\\linewidth]{{a.pdf}}"


def test_an_environment_is_as_wide_as_its_figure():
    entry = {"file": "figures/m/a_b.pdf", "caption": "x", "model": "m\n%", "fingerprint": "f", "data": "r.nc"}
    entry |= {"analysis": "load", "parameters": {"bootstrap": 10}}
    narrow, wide = environment(entry | {"width": 3.3}), environment(entry | {"width": 6.9})
    assert r"\begin{figure}" in narrow
    assert r"\begin{figure*}" in wide
    assert narrow.splitlines()[0] == "% load(bootstrap=10) of m %, fingerprint f: r.nc"
    assert r"\includegraphics[width=\linewidth]{a_b.pdf}" in narrow


@pytest.mark.thorough
def test_a_papers_figures_stand_in_latex_with_caption_and_source(tmp_path):
    texts = ["The bank.", "A file."]
    made = figures.reproduce("mh-moe", {"X-MoE_1": "ckpt/tiny-x-moe"}, tmp_path, texts, progress=False)
    snippet = (tmp_path / "figures" / "X-MoE_1" / "figures.tex").read_text()
    included = re.findall(r"\\includegraphics\[width=\\linewidth\]\{(.*?)\}", snippet)
    assert [f"figures/X-MoE_1/{name}" for name in included] == [entry["file"] for entry in made.figures]
    assert r"\caption{Figure 5: how often each expert is chosen, layers by experts (X-MoE\_1)}" in snippet
    assert all(entry["fingerprint"] in snippet for entry in made.figures)
    listed = json.loads(made.manifest.read_text())["figures"]
    assert {entry["width"] for entry in listed} <= {3.3, 6.9}


@pytest.mark.thorough
def test_pages_of_single_layers_are_laid_out_as_the_papers_are(tmp_path):
    made = figures.reproduce("look-into-moes", "ckpt/tiny-mixtral", tmp_path, layers=[1], progress=False)
    files = {entry["file"].rsplit("/", 1)[1] for entry in made.figures}
    assert {f"figure1_similarity_matrix_layer1_scale-{scale}.pdf" for scale in ("layer", "all")} <= files
    assert {f"figure8_gate_similarity_layer1_scale-{scale}.pdf" for scale in ("layer", "all")} <= files
    (entry,) = [entry for entry in made.figures if entry["file"].endswith("similarity_matrix_layer1_scale-all.pdf")]
    assert entry["caption"] == "Figure 1, layer 1: cosine of the experts' matrices (tiny-mixtral)"
    none = figures.reproduce(
        "look-into-moes", "ckpt/tiny-mixtral", tmp_path / "b", layers=[1], progress=False, which="none"
    )
    assert not none.figures
    assert list(tmp_path.glob("b/results/**/*.nc"))
