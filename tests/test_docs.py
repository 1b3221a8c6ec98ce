"""The documentation: its code runs, and it has a page for whatever there is."""

import re
from pathlib import Path

import generated
import pytest
from examples import DOCS, pages, run_page

from moe_probe import errors
from moe_probe.families import families

PAGES = pages()


def names(section):
    """The pages of a section, without its index."""
    paths = [Path(page) for page in PAGES if page.startswith(f"docs/{section}/")]
    return {path.stem for path in paths} - {"index"}


@pytest.mark.thorough
@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "```" in text])
def test_the_code_on_every_page_runs(page, tmp_path):
    run_page(page, PAGES[page], tmp_path)


def test_every_analysis_has_a_page_with_title_question_and_reference():
    for section, named in generated.analyses().items():
        assert named, section
        for name, analysis in named.items():
            text = PAGES[f"docs/analyses/{name}.md"]
            title, question = text.split("\n\n")[:2]
            assert title.startswith("# ")
            assert len(question) > 10
            assert f"::: {analysis.__module__}.{analysis.__qualname__}" in text
    assert names("analyses") == {name for named in generated.analyses().values() for name in named}


def test_what_is_written_by_hand_is_of_an_analysis_that_there_is():
    assert {path.stem for path in (DOCS / "analyses").glob("*.md")} < names("analyses")


def test_an_analysis_needs_no_page_by_hand():
    text = PAGES["docs/analyses/similarity.md"]
    assert not (DOCS / "analyses" / "similarity.md").exists()
    for part in (
        "# Similarity of experts",
        "plotting.plot(ds, layer=2)",
        "../figures/similarity.png",
        "moe-probe static",
    ):
        assert part in text


def test_every_class_of_errors_has_a_page_with_cause_remedy_and_sentences():
    classes = generated.error_classes()
    assert names("errors") == {cls.__name__ for cls in classes}
    assert {errors.NoSuchName, errors.MachineError, errors.MoEProbeError} <= set(classes)
    for cls in classes:
        text, meaning = PAGES[f"docs/errors/{cls.__name__}.md"], cls.__doc__.split("\n")[0]
        assert meaning in text
        assert "doctest" not in text
        assert ">>>" not in text
    assert "There is no scale …; there are …." in PAGES["docs/errors/NoSuchName.md"]
    assert "n_jobs is 0; pass 1 or more workers" in PAGES["docs/errors/OutOfRange.md"]


def test_no_sentence_begins_with_it():
    wrong = [s for said in generated.sentences().values() for s in said if s.startswith("It ")]
    assert not wrong


def test_every_family_has_a_page():
    assert names("families") == {family.name for family in families()}


def test_every_page_of_a_section_is_in_its_index():
    for section in ("analyses", "families", "formats", "errors"):
        index = PAGES[f"docs/{section}/index.md"]
        assert set(re.findall(r"\]\((\w+)\.md\)", index)) == names(section)


def test_the_model_types_of_transformers_are_those_that_are_tested():
    tested = (Path(__file__).parent / "families" / "test_transformers_moe.py").read_text(encoding="utf-8")
    expected = re.search(r'MODEL_TYPES = """(.*?)"""', tested, re.DOTALL)[1].split()
    page = PAGES["docs/families/transformers.md"]
    assert re.search(r"```text\n(.*?)```", page, re.DOTALL)[1].split() == expected


def test_the_readme_says_what_opens():
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    listed = text.partition("<!-- what opens: docs/generated.py -->\n")[2].partition("\n<!-- end -->")[0]
    assert listed == generated.what_opens()


def test_every_packed_form_has_a_page_with_its_layout_and_source():
    for name, encoding in generated.ENCODINGS.items():
        page = generated.pages()[f"formats/{name}.md"]
        assert f"# {encoding.title}" in page
        assert "## Source" in page
