"""The page: what it knows beside the routing, Bokeh's widgets, and the template that holds all together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from bokeh.embed import components
from bokeh.model import Model
from bokeh.resources import Resources
from jinja2 import Environment

from moe_probe.errors import NotComparable
from moe_probe.explorer.packing import Packed, encode
from moe_probe.explorer.recorded import RecordedLayer
from moe_probe.explorer.widgets import widgets
from moe_probe.traces.reading import Trace

NEAREST = 8  # experts named as the most similar ones
HERE = Path(__file__).parent


def page_html(trace: Trace, recorded: Mapping[int, RecordedLayer], near: xr.Dataset | None, packed: Packed) -> str:
    """The whole page.

    Raises:
        NotComparable: `near` is of another model.
    """
    facts = page_facts(trace, recorded, near) | {"logit_step": packed.logit_step, "weight_step": packed.weight_step}
    script, places = components(dict[str, Model](widgets(facts)))
    arrays = {
        f"{layer}-{name}": {"dtype": dtype, "text": text}
        for layer, named in packed.layers.items()
        for name, (dtype, text) in named.items()
    }
    template = Environment(autoescape=True).from_string((HERE / "page.html").read_text(encoding="utf-8"))
    return template.render(
        title=f"{trace.name}: explorer",
        facts=as_script(facts),
        arrays=arrays,
        library=_library(),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        code=(HERE / "page.js").read_text(encoding="utf-8"),
        script=script,
        places=places,
    )


@cache
def _library() -> str:
    """Bokeh's own scripts, inline."""
    return Resources(mode="inline", components=["bokeh", "bokeh-widgets", "bokeh-tables"]).render_js()


def as_script(facts: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element that holds it."""
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def page_facts(trace: Trace, recorded: Mapping[int, RecordedLayer], near: xr.Dataset | None) -> dict[str, Any]:
    """Layers, texts, tokens, load and similar experts, as JSON takes them."""
    documents = trace.corpus.documents
    ids = [token for document in documents for token in document.ids]
    distinct, place = np.unique(ids, return_inverse=True)
    dtype, text = encode(place)
    return {
        "model": trace.name,
        "family": trace.family,
        "layers": [_layer(trace, index) for index in trace.moe_layers],
        "documents": [{"number": d.number, "label": d.label, "tokens": len(d.ids)} for d in documents],
        "strings": [trace.corpus.strings[int(token)] for token in distinct],
        "special": [int(token) in trace.corpus.special for token in distinct],
        "tokens": {"dtype": dtype, "text": text},
        "load": [load_of(recorded[index]).round(6).tolist() for index in trace.moe_layers],
        "similar": None if near is None else similar_experts(trace, near),
    }


def _layer(trace: Trace, index: int) -> dict[str, Any]:
    known = asdict(trace.layer(index))
    return {name: known[name] for name in ("index", "num_experts", "top_k", "subtokens", "expert_kinds")}


def load_of(layer: RecordedLayer) -> np.ndarray:
    """Each expert's share of the choices, (E,)."""
    counts = np.bincount(layer.index.ravel(), minlength=layer.logits.shape[1])
    return counts / counts.sum()


def similar_experts(trace: Trace, near: xr.Dataset) -> list[dict[str, list[tuple[str, float]]]]:
    """By layer and expert: the most similar routed experts and how similar they are, the nearest first.

    Raises:
        NotComparable: the result is of another model, or lacks layers.
    """
    layers = set(near.layer.values.tolist()) if "layer" in near.dims else set()
    if near.attrs.get("fingerprint") != trace.fingerprint or not set(trace.moe_layers) <= layers:
        raise NotComparable(
            f"The similarity is of {near.attrs.get('model')} or of other layers than the trace of {trace.name}; "
            "compute it for the model and the layers of the trace."
        )
    values = near.cosine.mean("projection") if "projection" in near.dims else near.cosine
    routed = [label for label in near.expert.values if str(label).isdigit()]
    return [_nearest(values.sel(layer=layer, expert=routed, other=routed).values, routed) for layer in trace.moe_layers]


def _nearest(cosine: np.ndarray, labels: list[Any]) -> dict[str, list[tuple[str, float]]]:
    """The nearest others of each expert; those without a cosine, such as experts of zeros, are nobody's."""
    order = np.argsort(-cosine, axis=1, kind="stable")  # NaN comes last
    return {
        str(label): [
            (str(labels[other]), round(float(cosine[expert, other]), 4))
            for other in order[expert]
            if other != expert and np.isfinite(cosine[expert, other])
        ][:NEAREST]
        for expert, label in enumerate(labels)
    }
