"""Recorded choices of several checkpoints on the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.dynamic.driver import observe
from moe_probe.dynamic.per_token import PerToken, by_token
from moe_probe.errors import InputError
from moe_probe.model import Source, load
from moe_probe.routing import LayerBatch
from moe_probe.texts.corpus import Corpus, Texts, make_corpus
from moe_probe.traces.reading import Trace, is_trace, observe_trace, read_trace


class Choices(PerToken):
    """The chosen experts of every token (tokens, subtokens, k), int16, and by how much they were chosen.

    `first` (tokens, subtokens) is the one with the largest score; `margin` (tokens, subtokens), float32: the smallest
    score of a chosen expert minus the largest of the others.
    """

    name = "choices"

    def measure(self, batch: LayerBatch) -> dict[str, np.ndarray]:
        chosen = batch.selected.bool()
        inner = batch.scores.masked_fill(~chosen, np.inf).amin(1)
        outer = batch.scores.masked_fill(chosen, -np.inf).amax(1)
        return {
            "index": by_token(batch.top_k_index.cpu(), batch).astype(np.int16),
            "first": by_token(batch.first_choice.cpu(), batch).astype(np.int16),
            "margin": by_token((inner - outer).float().cpu(), batch),
        }


@dataclass(frozen=True)
class Routing:
    """What one checkpoint, or a trace of it, did with the tokens of a corpus.

    Attributes:
        label: of the checkpoint.
        model: the model, or the trace.
        corpus: the documents.
        layers: MoE layers.
        index: chosen experts, (layers, tokens, subtokens, k), int16.
        first: the one with the largest score, (layers, tokens, subtokens), int16.
        margin: (layers, tokens, subtokens), float32.
    """

    label: str
    model: Any
    corpus: Corpus
    layers: tuple[int, ...]
    index: np.ndarray
    first: np.ndarray
    margin: np.ndarray

    @property
    def num_experts(self) -> int:
        return self.model.layer(self.layers[0]).num_experts


Sources = Mapping[str, Source | Trace] | Sequence[Source | Trace]


def labelled(sources: Sources) -> dict[str, Any]:
    """Each checkpoint, model or trace under its label; without labels, under its name.

    Raises:
        InputError: there are fewer than two, or two of one name.
    """
    if isinstance(sources, Mapping):
        found = {str(label): opened(source) for label, source in sources.items()}
    else:
        models = [opened(source) for source in sources]
        found = {model.name: model for model in models}
        if len(found) < len(models):
            raise InputError("Two checkpoints have one name; give labels for them: {label: checkpoint}.")
    if len(found) < 2:
        raise InputError(f"A comparison takes at least two checkpoints, not {len(found)}.")
    return found


def opened(source: Source | Trace) -> Any:
    """A model, or a trace where it is one."""
    if isinstance(source, Trace):
        return source
    return read_trace(source) if isinstance(source, str | Path) and is_trace(source) else load(source)


def look(model: Any, texts: Texts | None, analyses: Sequence[Any], **options: Any) -> tuple[Corpus, list[Any]]:
    """The analyses when they have seen a model run over texts, or a trace.

    Raises:
        InputError: a model comes without texts.
    """
    if isinstance(model, Trace):
        return model.corpus, observe_trace(model, analyses)
    if texts is None:
        raise InputError(f"{model.name} is a model, not a routing trace, so it needs texts to run on.")
    names = ("labels", "column", "max_length")
    corpus = make_corpus(model, texts, **{name: options[name] for name in names if name in options})
    rest = {name: value for name, value in options.items() if name not in names}
    return corpus, observe(model, corpus, analyses, **rest)


def record_choices(sources: Sources, texts: Texts | None, **options: Any) -> list[Routing]:
    """The routing of every checkpoint; all on the same tokens, in layers that are alike.

    Raises:
        InputError: the checkpoints' tokenizers differ, or their layers.
    """
    routings = []
    for label, model in labelled(sources).items():
        corpus, (choices,) = look(model, texts, [Choices()], **options)
        layers, values = choices.values(corpus)
        routings.append(Routing(label, model, corpus, tuple(layers), **values))
        require_common_tokens(routings[0], routings[-1])
        if routings[0].layers != routings[-1].layers or routings[0].num_experts != routings[-1].num_experts:
            raise InputError(f"{routings[0].label} and {label} differ in their MoE layers or in their experts.")
    return routings


def require_common_tokens(one: Routing, other: Routing) -> None:
    """Raises: InputError: the two saw other tokens."""
    both = [[(d.number, d.ids) for d in routing.corpus.documents] for routing in (one, other)]
    if both[0] != both[1]:
        raise InputError(
            f"{one.label} and {other.label} did not see the same tokens: their tokenizers (or traces) differ, so their "
            "choices cannot be compared token by token."
        )


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of each row's k choices (..., k) that the other one makes too, (...,)."""
    return (one[..., :, None] == other[..., None, :]).any(-1).mean(-1)
