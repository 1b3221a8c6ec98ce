"""The page's facts equal the trace's, from a model and from a trace."""

import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from unpacking import arrays_of, facts_of, routing_of

import moe_probe
from moe_probe import dynamic, explorer, static
from moe_probe.errors import InputError, NotComparable, NotFitting
from moe_probe.intervene import Mask, TopK, Where
from moe_probe.plotting._style import DIVERGING

TEXTS = ["The bank of the </script> river.", "def area(r):\n    return r ** 2", "12 * 3 = 36"]
LABELS = ["prose", "code", "arithmetic"]


def layers_of(page, model=0):
    """By layer: experts, weights and logits as the page has them."""
    facts, arrays = facts_of(page), arrays_of(page)
    layers = {}
    for layer in facts["models"][model]["layers"]:
        named = {name: arrays[f"{model}-{layer['index']}-{name}"] for name in ("index", "weight", "logits")}
        layers[layer["index"]] = routing_of(layer, named, facts["digits"])
    return layers


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace") / "trace"
    dynamic.routing_trace("ckpt/tiny-mh-moe", TEXTS, path=folder, labels=LABELS, batch_tokens=24, progress=False)
    return dynamic.read_trace(folder)


@pytest.fixture(scope="module")
def page(trace):
    return explorer.explore(trace, similar=static.similarity("ckpt/tiny-mh-moe", "neuron_mean"))


def test_the_routing_is_the_traces_in_the_order_of_the_texts(trace, page):
    frame = trace.to_dataframe()
    for index, (experts, weight, logits) in layers_of(page).items():
        own, top_k = frame[frame.layer == index], trace.layer(index).top_k
        np.testing.assert_array_equal(experts[:, :top_k].ravel(), own.expert)
        np.testing.assert_allclose(weight.ravel(), own.weight, rtol=0.0051)
        every = np.stack(own[own["rank"] == 0].router_logits)
        np.testing.assert_allclose(logits, np.take_along_axis(every, experts.astype(int), 1), atol=0.0051)
        assert (np.sort(experts, axis=1) == np.arange(trace.layer(index).num_experts)).all()


def test_runners_up_are_those_with_the_next_scores():
    options = {"runners_up": 2, "similar": None, "progress": False}
    for experts, _, logits in layers_of(explorer.explore("ckpt/tiny-mixtral", TEXTS, **options)).values():
        assert experts.shape[1] == 4
        assert (np.diff(logits, axis=1) <= 0).all()


def test_runners_up_can_be_left_out():
    options = {"runners_up": 0, "similar": None, "progress": False}
    for experts, weight, _ in layers_of(explorer.explore("ckpt/tiny-mixtral", TEXTS, **options)).values():
        assert experts.shape == weight.shape


def test_the_page_knows_texts_load_and_similar_experts(trace, page):
    facts, arrays = facts_of(page), arrays_of(page)
    (model,) = facts["models"]
    assert model["labels"] == LABELS
    assert model["documents"] == [[d.number, at, len(d.ids)] for at, d in enumerate(trace.corpus.documents)]
    assert [model["strings"][at] for at in arrays["0-tokens"]] == [
        trace.corpus.strings[token] for document in trace.corpus.documents for token in document.ids
    ]
    load = dynamic.from_trace(trace, [dynamic.ExpertLoad(bootstrap=0)])["expert_load"]
    for index in trace.moe_layers:
        counts = arrays[f"0-{index}-count"].reshape(len(LABELS), -1).sum(0)
        np.testing.assert_allclose(counts / counts.sum(), load.share.sel(layer=index), atol=1e-9)
    similarity = static.similarity("ckpt/tiny-mh-moe", "neuron_mean")
    cosine = similarity.cosine.mean("projection").sel(layer=3, expert="2").to_series().drop("2")
    nearest = cosine.sort_values(ascending=False)
    near, value = (arrays[f"0-3-{name}"].reshape(8, -1)[2, : len(nearest)] for name in ("near", "cosine"))
    assert near.astype(str).tolist() == nearest.index.tolist()
    np.testing.assert_allclose(value / 1000, nearest, atol=5.1e-4)


def test_a_model_and_its_trace_give_the_same_page(trace):
    of_trace = explorer.explore(trace)
    of_model = explorer.explore("ckpt/tiny-mh-moe", TEXTS, labels=LABELS, batch_tokens=24, similar=None, progress=False)
    assert facts_of(of_trace) == facts_of(of_model)
    for name, values in arrays_of(of_trace).items():
        np.testing.assert_array_equal(values, arrays_of(of_model)[name])
    assert facts_of(of_trace)["models"][0]["similar"] == 0


def test_two_models_stand_side_by_side_on_the_same_texts():
    model = moe_probe.load("ckpt/tiny-mixtral")
    masked = model.under(Mask(layer=1, experts=[3]))
    page = explorer.explore({"whole": model, "masked": masked}, TEXTS, similar=None, progress=False)
    assert [each["model"] for each in facts_of(page)["models"]] == ["whole", "masked"]
    whole, other = layers_of(page, 0), layers_of(page, 1)
    np.testing.assert_array_equal(whole[0][0], other[0][0])
    assert (whole[1][0] == 3).any()
    assert not (other[1][0] == 3).any()  # neither chosen nor a runner-up
    assert "whole and masked" in repr(page)


def test_sources_of_other_texts_are_refused(trace, tmp_path):
    dynamic.routing_trace("ckpt/tiny-mixtral", TEXTS[:2], path=tmp_path / "trace", progress=False)
    with pytest.raises(NotComparable, match="saw different texts or labels"):
        explorer.explore([trace, tmp_path / "trace"])
    with pytest.raises(NotComparable, match="takes 1 to 2 checkpoints"):
        explorer.explore({"a": trace, "b": trace, "c": trace})


def test_what_experts_write_is_their_mean_output_through_the_models_norm_and_head():
    model = moe_probe.load("ckpt/tiny-mixtral")
    page = explorer.explore(model, TEXTS, similar=None, vocabulary=True, progress=False)
    record = dynamic.run(model, TEXTS, dynamic.Record(outputs="selected"), layers=[1], progress=False)["record"]
    index, weight = record.topk_expert.values[0], record.topk_weight.values[0]
    (facts,), arrays = facts_of(page)["models"], arrays_of(page)
    words, logits = (arrays[f"0-1-{name}"].reshape(8, -1) for name in ("words", "wordlogits"))
    for expert in np.unique(index):
        outputs = (record.selected_output.values[0] * weight[..., None])[index == expert]
        mean = torch.from_numpy(outputs.mean(0))
        with torch.no_grad():
            expected = model.module.lm_head(model.module.model.norm(mean))
        best = (expected - expected.mean()).topk(10)
        np.testing.assert_allclose(logits[expert] / 100, best.values, atol=0.006)
        assert facts["words"][words[expert][0]] == model.tokenizer.decode(best.indices[:1])


def test_a_trace_and_split_tokens_write_no_words(trace):
    with pytest.raises(NotFitting, match="omit vocabulary="):
        explorer.explore(trace, vocabulary=True)
    with pytest.raises(NotFitting, match="output sub-tokens"):
        explorer.explore("ckpt/tiny-mh-moe", TEXTS, vocabulary=True, similar=None, progress=False)


def test_a_model_that_chooses_fewer_experts_in_some_tokens_has_a_page():
    model = moe_probe.load("ckpt/tiny-mixtral").under(TopK(layer=1, k=1, where=Where(label="code")))
    page = explorer.explore(model, TEXTS, labels=LABELS, similar=None, batch_tokens=8, progress=False)
    layers, lengths = layers_of(page), [tokens for _, _, tokens in facts_of(page)["models"][0]["documents"]]
    none = layers[1][0][:, 1] == 8
    assert np.flatnonzero(none).tolist() == list(range(lengths[0], lengths[0] + lengths[1]))
    assert (layers[1][1][none, 1] == 0).all()
    assert arrays_of(page)["0-1-count"].sum() == 2 * sum(lengths) - lengths[1]


def test_less_and_more_than_even_have_the_colors_of_the_figures():
    colors = (Path(explorer.__file__).parent / "page" / "color.js").read_text(encoding="utf-8")
    stops = re.search(r"DIVERGING = .*?light: (\[.*?\])", colors, re.DOTALL)[1]
    scale = matplotlib.colormaps[DIVERGING]
    for color, share in zip(json.loads(stops), np.linspace(0, 1, 7), strict=True):
        assert np.abs(np.subtract(to_rgb(color), scale(share)[:3])).max() < 0.2
    dark = json.loads(re.search(r"DIVERGING = .*?dark: (\[.*?\])", colors, re.DOTALL)[1])
    assert to_rgb(dark[0])[0] > to_rgb(dark[0])[2]
    assert to_rgb(dark[-1])[0] < to_rgb(dark[-1])[2]
    style = (Path(explorer.__file__).parent / "page.css").read_text(encoding="utf-8")
    ramps = [ramp.split(", ") for ramp in re.findall("--ratio: (.*?);", style)]
    assert [json.loads(stops), dark] == ramps  # of the key below the map


def test_a_page_is_saved_whole_and_shows_in_a_notebook(trace, tmp_path):
    page = explorer.explore(trace)
    path = page.save(tmp_path / "new" / "page.html")
    assert path.read_text(encoding="utf-8") == page.html
    assert [path.name for path in path.parent.iterdir()] == ["page.html"]
    shown = page._repr_html_()
    assert shown.startswith("<iframe title=")
    assert "<script" not in shown


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "pass texts to run it on"),
        (
            {"texts": TEXTS, "similar": "color"},
            "no similar 'color'; there are neuron_mean, matrix, gate",
        ),
        ({"texts": TEXTS, "similar": "gat"}, "did you mean 'gate'"),
        ({"texts": TEXTS, "similar": 3}, "similar is 3; pass one of neuron_mean"),
        ({"texts": TEXTS, "max_bytes": 0}, "has no room for a page"),
        ({"texts": TEXTS, "max_bytes": "1"}, "max_bytes is '1'; pass a whole number"),
        ({"texts": TEXTS, "digits": 7}, "from 1 to 6"),
        ({"texts": TEXTS, "runners_up": -1}, "of at least 0"),
        ({"texts": TEXTS, "vocabulary": "yes"}, "pass True or False"),
        ({"texts": TEXTS, "max_bytes": 10_000}, "bytes that the page takes without any routing"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence):
        explorer.explore("ckpt/tiny-mixtral", progress=False, **options)


def test_a_similarity_of_another_model_is_refused(trace):
    with pytest.raises(InputError, match="of tiny-mixtral or of other layers than those of tiny-mh-moe"):
        explorer.explore(trace, similar=static.gate_similarity("ckpt/tiny-mixtral"))


@pytest.mark.parametrize("option", [{"texts": ["A text."]}, {"layers": [0]}, {"labels": ["a"]}, {"max_length": 3}])
def test_what_a_trace_holds_already_is_refused(trace, option):
    with pytest.raises(NotFitting, match=f"omit {next(iter(option))}="):
        explorer.explore(trace, **option)


def test_experts_without_a_cosine_are_nobodys_nearest(trace):
    similarity = static.similarity("ckpt/tiny-mh-moe", "neuron_mean")
    zero = (similarity.expert == "2") | (similarity.other == "2")
    page = explorer.explore(trace, similar=similarity.assign(cosine=similarity.cosine.where(~zero)))
    near = arrays_of(page)[f"0-{trace.moe_layers[0]}-near"].reshape(8, -1)
    assert (near[2] == 8).all()
    assert (near[0] < 8).sum() == 6
    assert 2 not in near[0]


def test_a_similarity_without_cosines_or_layers_is_refused(trace):
    similarity = static.similarity("ckpt/tiny-mh-moe", "neuron_mean")
    with pytest.raises(NotFitting, match="without cosines"):
        explorer.explore(trace, similar=similarity.drop_vars("cosine"))
    with pytest.raises(NotComparable, match="of other layers"):
        explorer.explore(trace, similar=similarity.isel(layer=0))
