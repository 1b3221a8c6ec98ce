"""What members state in their files is read without importing them, and is what they hold once imported."""

import inspect

import pytest

from moe_probe import dynamic, static
from moe_probe.dynamic.registered import ANALYSES
from moe_probe.figures.papers import PAPERS
from moe_probe.registry import Registry


@pytest.mark.parametrize("name", sorted(dynamic.names()))
def test_whether_an_analysis_runs_unasked_is_read_from_its_file(name):
    assert ANALYSES.stated(name, "unasked", False) is dynamic.names()[name].unasked


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_a_papers_name_and_number_are_read_from_its_file(name):
    assert PAPERS.stated(name, "name") == PAPERS[name].name
    assert PAPERS.stated(name, "arxiv") == PAPERS[name].arxiv


@pytest.mark.parametrize("name", sorted(static.names()))
def test_how_many_models_an_analysis_takes_is_read_from_its_signature(name):
    parameters = inspect.signature(static.names()[name]).parameters.values()
    assert static.models(name) == sum(each.default is each.empty for each in parameters)


def test_what_is_not_stated_has_a_default(tmp_path, monkeypatch):
    (tmp_path / "many_members").mkdir()
    (tmp_path / "many_members" / "__init__.py").write_text("")
    (tmp_path / "many_members" / "one.py").write_text("raise RuntimeError\nclass One:\n    size = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    members = Registry("many_members", "members", "member")
    assert (members.stated("one", "size"), members.stated("one", "color", "red")) == (3, "red")
