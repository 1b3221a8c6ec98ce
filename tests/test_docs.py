"""The documentation: its code runs, and it has a page for whatever there is."""

import re
from pathlib import Path

import pytest
from examples import DOCS, ROOT, pages, run_page

from moe_probe import dynamic, static
from moe_probe.families import families


def names(folder):
    return {path.stem for path in (DOCS / folder).glob("*.md")} - {"index"}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_on_every_page_runs(page, tmp_path):
    run_page(page, tmp_path)


def test_every_analysis_has_a_page():
    over_checkpoints = {"expert_activation", "router_saturation", "routing_drift"}
    expected = {*dynamic.analyses(), *static.__all__, *over_checkpoints}
    assert names("analyses") == expected


def test_every_family_has_a_page():
    assert names("families") == {family.name for family in families()}


def test_every_page_of_a_section_is_in_its_index():
    for section in ("analyses", "families", "errors"):
        index = (DOCS / section / "index.md").read_text(encoding="utf-8")
        assert set(re.findall(r"\]\((\w+)\.md\)", index)) == names(section)


def test_the_model_types_of_transformers_are_those_that_are_tested():
    tested = (Path(__file__).parent / "families" / "test_transformers_moe.py").read_text(encoding="utf-8")
    expected = re.search(r'MODEL_TYPES = """(.*?)"""', tested, re.DOTALL)[1].split()
    page = (DOCS / "families" / "transformers.md").read_text(encoding="utf-8")
    assert re.search(r"```text\n(.*?)```", page, re.DOTALL)[1].split() == expected
