"""Builds the page: its facts besides the routing, and the template that contains everything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jinja2 import Environment

from moe_probe.errors import NotComparable
from moe_probe.explorer.packing import Encoded, PackedLayer, encode
from moe_probe.explorer.recorded import RecordedLayer
from moe_probe.explorer.written import Words
from moe_probe.routing import Source

NEAREST = 8  # experts named as the most similar ones
HUNDREDTHS, THOUSANDTHS = 100, 1000
HERE = Path(__file__).parent
MODULES = (  # one purpose each; they share one scope
    *("facts", "unpack", "routing", "statistics", "state", "elements", "color", "export"),
    *("text", "token", "expert", "experts", "search", "maps", "controls", "address", "keys", "start"),
)
Arrays = dict[str, Encoded]


@dataclass(frozen=True)
class Subject:
    """One model of a page.

    Attributes:
        label: its name on the page.
        source: the model on its texts, or the trace.
        recorded: its routing.
        near: similarity of its experts, or None.
        words: tokens that its experts promote, by layer; empty if they were not computed.
        strings: strings of the ids in `words`.
    """

    label: str
    source: Source
    recorded: Mapping[int, RecordedLayer]
    near: xr.Dataset | None = None
    words: Mapping[int, Words] = field(default_factory=dict)
    strings: Mapping[int, str] = field(default_factory=dict)


def page_html(subjects: Sequence[Subject], packed: Sequence[Mapping[int, PackedLayer]], digits: int) -> str:
    """Returns the whole page.

    Args:
        subjects: the models.
        packed: the routing of each; empty for a page without routing.
        digits: significant digits of the numbers.

    Raises:
        NotComparable: a similarity is of another model.
    """
    models, arrays = [], {}
    for number, (subject, layers) in enumerate(zip(subjects, packed, strict=True)):
        of_model, of_arrays = model_facts(subject, layers)
        models.append(of_model)
        arrays |= {f"{number}-{name}": array for name, array in of_arrays.items()}
    template = Environment(autoescape=True).from_string((HERE / "page.html").read_text(encoding="utf-8"))
    return template.render(
        title=f"{' and '.join(subject.label for subject in subjects)}: explorer",
        facts=as_script({"digits": digits, "models": models}),
        arrays=by_urgency(models, arrays),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        code=page_code(),
    )


def by_urgency(models: Sequence[Mapping[str, Any]], arrays: Arrays) -> dict[str, list[tuple[str, Encoded]]]:
    """The arrays before the page's code, so that the first tokens appear soon, and those after it."""
    first = {f"{number}-{model['layers'][0]['index']}" for number, model in enumerate(models)}
    early, later = [], []
    for name, array in arrays.items():
        urgent = name.endswith(("-tokens", "-count")) or name.rpartition("-")[0] in first
        (early if urgent else later).append((name, array))
    return {"early": early, "later": later}


@cache
def page_code() -> str:
    """The page's modules, one after the other in one scope."""
    parts = [f"// {name}\n\n{(HERE / 'page' / f'{name}.js').read_text(encoding='utf-8')}" for name in MODULES]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def as_script(facts: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element that contains it."""
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def model_facts(subject: Subject, packed: Mapping[int, PackedLayer]) -> tuple[dict[str, Any], Arrays]:
    """Layers, texts and tokens of a model as values for JSON; and arrays by name.

    Arrays are `tokens` (indices into `strings`) and, with the layer's number as a prefix, those of the routing, `count`
    (choices by label and expert), `near` and `cosine`, `words` (indices into `words`) and `wordlogits`.
    """
    corpus = subject.source.corpus
    ids = [token for document in corpus.documents for token in document.ids]
    distinct, place = np.unique(ids, return_inverse=True)
    labels = list(dict.fromkeys(document.label for document in corpus.documents))
    arrays = {"tokens": encode(place)}
    for index, layer in subject.recorded.items():
        counts = encode(choices_by_label(subject.source, layer, labels))
        arrays |= {f"{index}-{name}": array for name, array in packed_arrays(packed, index).items()}
        arrays[f"{index}-count"] = counts
    if subject.near is not None:
        arrays |= near_arrays(subject.source, similar_experts(subject.source, subject.near))
    words, of_words = word_arrays(subject.words, subject.strings)
    facts = {
        "model": subject.label,
        "family": subject.source.family,
        "layers": [layer_facts(layer, packed.get(index)) for index, layer in subject.recorded.items()],
        "labels": labels,
        "documents": [[d.number, labels.index(d.label), len(d.ids)] for d in corpus.documents],
        "strings": [corpus.strings[int(token)] for token in distinct],
        "special": [at for at, token in enumerate(distinct) if int(token) in corpus.special],
        "similar": NEAREST if subject.near is not None else 0,
        "words": words,
    }
    return facts, arrays | of_words


def packed_arrays(packed: Mapping[int, PackedLayer], index: int) -> Mapping[str, Encoded]:
    """The routing's arrays of a layer; none on a page without routing."""
    return packed[index].arrays if index in packed else {}


def layer_facts(recorded: RecordedLayer, packed: PackedLayer | None) -> dict[str, Any]:
    """Description of a layer, and how to decode its numbers; without kinds if all experts are FFNs."""
    layer = recorded.layer
    facts: dict[str, Any] = {name: getattr(layer, name) for name in ("index", "num_experts", "subtokens")}
    if set(layer.expert_kinds) != {"ffn"}:
        facts["kinds"] = list(layer.expert_kinds)
    facts |= {"top_k": recorded.weight.shape[1], "listed": recorded.index.shape[1]}
    return facts | dict(packed.facts if packed is not None else {})


def choices_by_label(source: Source, recorded: RecordedLayer, labels: Sequence[str]) -> np.ndarray:
    """Number of choices of each expert by each label's tokens, (labels, E)."""
    documents, layer = source.corpus.documents, recorded.layer
    lengths = [len(document.ids) * layer.subtokens for document in documents]
    label = np.repeat([labels.index(document.label) for document in documents], lengths)
    places = label[:, None] * layer.num_experts + recorded.chosen
    counts = np.bincount(places[recorded.chosen < layer.num_experts], minlength=len(labels) * layer.num_experts)
    return counts.reshape(len(labels), layer.num_experts)


Nearest = list[tuple[int, float]]


def similar_experts(source: Source, near: xr.Dataset) -> dict[int, list[Nearest]]:
    """The most similar other experts and their similarity, by layer and routed expert, the nearest first.

    Raises:
        NotComparable: the result is of another model, or lacks layers.
    """
    layers = set(near.layer.values.tolist()) if "layer" in near.dims else set()
    if near.attrs.get("fingerprint") != source.fingerprint or not set(source.layers) <= layers:
        raise NotComparable(
            f"The similarity is of {near.attrs.get('model')} or of other layers than those of {source.name} here; "
            "compute it for the same model and layers."
        )
    values = near.cosine.mean("projection") if "projection" in near.dims else near.cosine
    routed = [label for label in near.expert.values if str(label).isdigit()]
    return {
        index: nearest(values.sel(layer=index, expert=routed, other=routed).values, routed, layer.num_experts)
        for index, layer in source.layers.items()
    }


def nearest(cosine: np.ndarray, labels: Sequence[str], experts: int) -> list[Nearest]:
    """The nearest others of each expert; experts without a cosine, such as those of zeros, are never among them."""
    order = np.argsort(-cosine, axis=1, kind="stable")  # NaN comes last
    lists: list[Nearest] = [[] for _ in range(experts)]
    for expert, label in enumerate(labels):
        others = [other for other in order[expert] if other != expert and np.isfinite(cosine[expert, other])]
        lists[int(label)] = [(int(labels[int(other)]), float(cosine[expert, other])) for other in others[:NEAREST]]
    return lists


def near_arrays(source: Source, similar: Mapping[int, Sequence[Nearest]]) -> Arrays:
    """Numbers (E, NEAREST) of the nearest experts, padded with that of no expert, and cosines in thousandths."""
    arrays = {}
    for index, lists in similar.items():
        none = source.layers[index].num_experts
        filled = np.array([[*each, *[(none, 0.0)] * (NEAREST - len(each))] for each in lists])
        arrays[f"{index}-near"] = encode(filled[..., 0].astype(np.int64))
        arrays[f"{index}-cosine"] = encode(np.rint(filled[..., 1] * THOUSANDTHS).astype(np.int64))
    return arrays


def word_arrays(words: Mapping[int, Words], strings: Mapping[int, str]) -> tuple[list[str], Arrays]:
    """Distinct strings that experts promote; indices into them (E, WORDS), padded, and logits in hundredths."""
    distinct = np.array(sorted({int(token) for each in words.values() for token in each.ids.ravel() if token >= 0}))
    arrays = {}
    for index, each in words.items():
        places = np.where(each.ids >= 0, np.searchsorted(distinct, each.ids), len(distinct))
        arrays[f"{index}-words"] = encode(places)
        arrays[f"{index}-wordlogits"] = encode(np.rint(each.logits * HUNDREDTHS).astype(np.int64))
    return [strings[int(token)] for token in distinct], arrays
