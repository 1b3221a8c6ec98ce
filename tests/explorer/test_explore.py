"""The page's facts equal the trace's, from a model and from a trace."""

import json
import re

import numpy as np
import pytest

import moe_probe
from moe_probe import dynamic, explorer, static
from moe_probe.errors import InputError, NotComparable, NotFitting
from moe_probe.explorer.recorded import recorded_layers

TEXTS = ["The bank of the </script> river.", "def area(r):\n    return r ** 2", "12 * 3 = 36"]
LABELS = ["prose", "code", "arithmetic"]


def facts_of(page):
    (text,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', page.html, re.DOTALL)
    return json.loads(text)


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace") / "trace"
    dynamic.routing_trace("ckpt/tiny-mh-moe", TEXTS, path=folder, labels=LABELS, batch_tokens=24, progress=False)
    return dynamic.read_trace(folder)


def test_recorded_rows_are_in_the_order_of_the_texts(trace):
    frame = trace.to_dataframe()
    for index, layer in recorded_layers(trace).items():
        own = frame[frame.layer == index]
        np.testing.assert_array_equal(layer.index.ravel(), own.expert)
        np.testing.assert_array_equal(layer.weight.ravel(), own.weight)
        logits = np.stack(own[own["rank"] == 0].router_logits)
        np.testing.assert_array_equal(layer.logits, logits)


def test_the_page_knows_texts_load_and_similar_experts(trace):
    model = moe_probe.load("ckpt/tiny-mh-moe")
    similarity = static.similarity(model, "neuron_mean")
    facts = facts_of(explorer.explore(trace, similar=similarity))
    assert [document["label"] for document in facts["documents"]] == LABELS
    assert [document["tokens"] for document in facts["documents"]] == [len(d.ids) for d in trace.corpus.documents]
    load = dynamic.from_trace(trace, [dynamic.ExpertLoad(bootstrap=0)])["expert_load"]
    np.testing.assert_allclose(facts["load"], load.share, atol=1e-6)
    cosine = similarity.cosine.mean("projection").sel(layer=3, expert="2").to_series().drop("2")
    nearest = cosine.sort_values(ascending=False)
    assert [label for label, _ in facts["similar"][1]["2"]] == nearest.index.tolist()
    np.testing.assert_allclose([value for _, value in facts["similar"][1]["2"]], nearest, atol=1e-4)


def test_a_model_and_its_trace_give_the_same_page(trace):
    of_trace = explorer.explore(trace)
    of_model = explorer.explore("ckpt/tiny-mh-moe", TEXTS, labels=LABELS, batch_tokens=24, similar=None, progress=False)
    assert facts_of(of_trace) == facts_of(of_model)
    assert facts_of(of_trace)["similar"] is None


def test_a_page_is_saved_whole_and_shows_in_a_notebook(trace, tmp_path):
    page = explorer.explore(trace)
    path = page.save(tmp_path / "new" / "page.html")
    assert path.read_text(encoding="utf-8") == page.html
    assert [path.name for path in path.parent.iterdir()] == ["page.html"]
    shown = page._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert "<script" not in shown


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "pass texts to run it on"),
        (
            {"texts": TEXTS, "similar": "color"},
            "no measure of similar experts 'color'; there are neuron_mean, matrix, gate",
        ),
        ({"texts": TEXTS, "similar": "gat"}, "did you mean 'gate'"),
        ({"texts": TEXTS, "similar": 3}, "similar is a int"),
        ({"texts": TEXTS, "max_bytes": 0}, "leaves no page"),
        ({"texts": TEXTS, "max_bytes": "1"}, "whole number of bytes"),
        ({"texts": TEXTS, "max_bytes": 1_000_000}, "bytes that the page takes without any routing"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence):
        explorer.explore("ckpt/tiny-mixtral", progress=False, **options)


def test_a_similarity_of_another_model_is_refused(trace):
    with pytest.raises(InputError, match="of tiny-mixtral or of other layers than the trace of tiny-mh-moe"):
        explorer.explore(trace, similar=static.gate_similarity("ckpt/tiny-mixtral"))


@pytest.mark.parametrize("option", [{"texts": ["A text."]}, {"layers": [0]}, {"labels": ["a"]}, {"max_length": 3}])
def test_what_a_trace_holds_already_is_refused(trace, option):
    with pytest.raises(NotFitting, match=f"omit {next(iter(option))}="):
        explorer.explore(trace, **option)


def test_experts_without_a_cosine_are_nobodys_nearest(trace):
    similarity = static.similarity("ckpt/tiny-mh-moe", "neuron_mean")
    zero = (similarity.expert == "2") | (similarity.other == "2")
    page = explorer.explore(trace, similar=similarity.assign(cosine=similarity.cosine.where(~zero)))
    (first, *_) = facts_of(page)["similar"]
    assert first["2"] == []
    assert len(first["0"]) == 6
    assert "2" not in [label for label, _ in first["0"]]


def test_a_similarity_without_cosines_or_layers_is_refused(trace):
    similarity = static.similarity("ckpt/tiny-mh-moe", "neuron_mean")
    with pytest.raises(NotFitting, match="without cosines"):
        explorer.explore(trace, similar=similarity.drop_vars("cosine"))
    with pytest.raises(NotComparable, match="of other layers"):
        explorer.explore(trace, similar=similarity.isel(layer=0))
