"""Opens sources: a model that runs or generates, or a recorded trace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_probe.errors import NotFitting
from moe_probe.forward.execution import is_layerwise
from moe_probe.forward.running import Running
from moe_probe.forward.writing import Writing
from moe_probe.model import MoEModel, Openable, load
from moe_probe.options import TEXT_OPTIONS, WRITING_OPTIONS, completed
from moe_probe.routing import Source
from moe_probe.signatures import check_number
from moe_probe.texts.corpus import Corpus
from moe_probe.texts.reading import Texts
from moe_probe.texts.tokenizing import check_fits, make_corpus
from moe_probe.traces.reading import Trace, is_trace, read_trace
from moe_probe.traces.recorded import Recorded

NEW_TOKENS = 32
MOST_NEW_TOKENS = 1 << 24


def open_source(source: Openable | Trace, texts: Texts | None, options: Mapping[str, Any]) -> Source:
    """Opens a model with its corpus, or a trace, restricted to the requested layers.

    Args:
        source: a checkpoint folder, a hub id, a model, or a trace.
        texts: the texts for a model; None for a trace, which has its own.
        options: all options of `run`.

    Raises:
        InputError: there are no texts for a model, or texts for a trace.
    """
    opened = opened_source(source)
    if isinstance(opened, Trace):
        if texts is not None:
            raise NotFitting(f"{opened.name} is a routing trace with texts of its own; pass no texts.")
        return Recorded.of(opened, options["layers"])
    if texts is None:
        raise NotFitting(f"{opened.name} is a model, not a routing trace; pass texts to run it on.")
    corpus = make_corpus(opened, texts, **{name: options[name] for name in TEXT_OPTIONS})
    check_fits(corpus, opened, options["batch_tokens"])
    return running(opened, corpus, options)


def opened_source(source: Openable | Trace) -> MoEModel | Trace:
    """Opens a trace if the source is one, else a model."""
    if isinstance(source, Trace):
        return source
    return read_trace(source) if isinstance(source, str | Path) and is_trace(source) else load(source)


def running(model: MoEModel, corpus: Corpus, options: Mapping[str, Any]) -> Running:
    """Returns a source that runs a model over a corpus.

    Raises:
        InputError: layers, options, or tokens of the model's interventions do not exist.
    """
    for edit in model.interventions:
        if (where := getattr(edit, "where", None)) is not None:
            where.check(corpus)
    baseline = options["baseline"]
    return Running(
        model=model,
        corpus=corpus,
        layers={index: model.layer(index) for index in model.select_layers(options["layers"])},
        baseline=None if baseline is None else load(baseline),
        batch_tokens=options["batch_tokens"],
        layerwise=is_layerwise(model, options["execution"]),
    )


def open_writing(
    model: Openable, prompts: Texts, options: Mapping[str, Any], of_generation: Mapping[str, Any]
) -> Writing:
    """Returns a source in which a model continues prompts."""
    opened = load(model)
    reading = {name: options[name] for name in TEXT_OPTIONS if name in options}
    layers = {index: opened.layer(index) for index in opened.select_layers(options["layers"])}
    corpus = make_corpus(opened, prompts, **reading, strip=None if isinstance(prompts, Corpus) else False)
    check_fits(corpus, opened)
    return Writing(opened, corpus, layers, of_generation)


def writing_options(options: Mapping[str, Any], max_new_tokens: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits options into those that `generate` shares with `run`, completed, and those of transformers' `generate`.

    Raises:
        InputError: an option is one of `run` that `generate` does not take.
    """
    of_run = {name: value for name, value in options.items() if name in WRITING_OPTIONS}
    of_generation = {name: value for name, value in options.items() if name not in WRITING_OPTIONS}
    for name in ("labels", "unit", "baseline", "batch_tokens", "execution"):
        if name in of_generation:
            raise NotFitting(f"generate takes no {name}; it takes {', '.join(WRITING_OPTIONS)}, and transformers' own.")
    if max_new_tokens is not None:
        check_number("max_new_tokens", max_new_tokens, 1, MOST_NEW_TOKENS)
        of_generation["max_new_tokens"] = max_new_tokens
    elif not {"max_length", "generation_config"} & of_generation.keys():
        of_generation["max_new_tokens"] = NEW_TOKENS
    return completed(of_run, WRITING_OPTIONS, "generate"), of_generation
