"""What notebooks show of models, layers, results and checkpoints: tables, in which nothing is read as markup."""

from html.parser import HTMLParser

import pytest
import xarray as xr

import moe_probe
from moe_probe import dynamic
from moe_probe.checkpoint import open_checkpoint
from moe_probe.families import Layer
from moe_probe.results import Results

HOSTILE = "<script>alert('&')</script>\"\x1b[31m\u202e"


class Tags(HTMLParser):
    """The tags, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not attrs

    def handle_data(self, data):
        self.text += data


def hostile():
    model = moe_probe.load("ckpt/tiny-mixtral")
    model.name = HOSTILE
    checkpoint = open_checkpoint("ckpt/tiny-mixtral")
    checkpoint.config = {"model_type": HOSTILE}
    layer = Layer(0, 4, 8, num_experts=1, top_k=1, expert_kinds=(HOSTILE,))
    ds = xr.Dataset({HOSTILE: (HOSTILE, [1])}, attrs={"model": HOSTILE})
    return {"model": model, "checkpoint": checkpoint, "layer": layer, "results": Results({HOSTILE: ds})}


@pytest.mark.parametrize("kind", ["model", "checkpoint", "layer", "results"])
def test_names_that_others_wrote_are_text(kind):
    shown = Tags(hostile()[kind]._repr_html_())
    assert shown.tags == {"table", "caption", "tr", "th", "td"}
    assert "<script>alert('&')</script>" in shown.text
    assert not {"\x1b", "\u202e"} & set(shown.text)


def test_they_say_what_there_is():
    model = moe_probe.load("ckpt/tiny-mixtral")
    assert "8 ffn" in Tags(model.layer(0)._repr_html_()).text
    assert "mixtral" in Tags(model.checkpoint._repr_html_()).text
    found = dynamic.run(model, ["a b"], ["expert_load", "gate_choices"], progress=False)
    shown = Tags(found._repr_html_()).text
    assert isinstance(found, dict)
    assert {"expert_load", "gate_choices"} <= set(found)
    assert "results of tiny-mixtral" in shown
    assert "4 layer × 8 expert: selections" in shown
