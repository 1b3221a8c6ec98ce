"""One page about a checkpoint: its numbers are those of the analyses, and its files are complete."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import moe_probe
from moe_probe import dynamic, intervene, static
from moe_probe.errors import DenseModel, NoSuchName, NotFitting
from moe_probe.report import report
from moe_probe.report.building import SECTIONS

CKPT = Path(__file__).parents[2] / "ckpt"
TEXTS = ["def area(r):\n    return 3.14 * r ** 2", "12 * 3 = 36", "The file is closed.", "7 - 5 = 2"]
LABELS = ["code", "arithmetic", "prose", "arithmetic"]


@pytest.fixture(scope="module")
def mixtral():
    return moe_probe.load(CKPT / "tiny-mixtral")


@pytest.fixture(scope="module")
def pages(mixtral):
    masked = mixtral.under(intervene.Mask(layer=1, experts=[2]))
    return report(masked, TEXTS, base=mixtral, labels=LABELS, progress=False)


def numbers(page):
    return {measure.name: measure for section in page.sections for measure in section.measures}


def test_every_section_is_made_where_there_is_what_it_tells_of(pages, mixtral):
    assert len(pages.sections) == len(SECTIONS)
    assert [each.title for each in report(mixtral, progress=False).sections] == [
        "Structure",
        "Similarity of the experts",
    ]


def test_a_masked_expert_is_dead_and_died_since_the_base(pages):
    found = numbers(pages)
    assert "1.2" in found["dead experts"].value
    assert found["experts that died"].value == ["1.2"]
    assert found["expert that moved most"].value == 0.0


def test_numbers_are_those_of_the_analyses(pages, mixtral):
    found = numbers(pages)
    masked = mixtral.under(intervene.Mask(layer=1, experts=[2]))
    load = dynamic.expert_load(masked, TEXTS, labels=LABELS, progress=False)
    shares = load.share.values
    assert found["lowest entropy"].value == pytest.approx(
        min(-np.sum(row[row > 0] * np.log(row[row > 0])) / np.log(8) for row in shares)
    )
    assert found["largest violation"].value == pytest.approx((shares.max(1) / shares.mean(1) - 1).max())
    hot = {f"{i}.{j}" for i, j in zip(*np.nonzero(shares > 2 * shares.mean(1, keepdims=True)), strict=True)}
    assert set(found["hot experts"].value) == hot
    cosine = static.similarity(mixtral, level="neuron_mean").cosine.mean("projection").values
    assert found["closest pair"].value == pytest.approx(cosine[:, ~np.eye(8, dtype=bool)].max())


def test_a_report_becomes_a_page_json_tables_and_figures(pages, tmp_path):
    page = pages.save(tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?:https?:)?//', text)
    for link in re.findall(r'href="([^"]+)"', text):
        assert (page.parent / link).read_bytes().startswith(b"%PDF")
    stored = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    assert stored["sections"]["Load of the experts"]["dead experts"] == numbers(pages)["dead experts"].value
    table = pd.read_csv(page.parent / "Load of the experts.csv", index_col="layer")
    assert list(table.index) == [0, 1, 2, 3]


def test_names_are_text_on_the_page(mixtral):
    renamed = moe_probe.load(CKPT / "tiny-mixtral")
    renamed.name = "<script>alert(1)</script>"
    assert "<script>" not in report(renamed, progress=False).html


def test_what_cannot_be_reported_is_said(mixtral):
    with pytest.raises(DenseModel, match="is dense"):
        report(CKPT / "tiny-mistral")
    with pytest.raises(NotFitting, match="labels= was passed without texts"):
        report(mixtral, labels=LABELS)
    with pytest.raises(NoSuchName, match="did you mean 'layers'"):
        report(mixtral, layer=0)
