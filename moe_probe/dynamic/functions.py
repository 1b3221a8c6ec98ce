"""The public functions: several analyses of a model that runs or generates, or of a trace; each analysis alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Unpack

import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.dynamic.asking import Asked, make_analyses
from moe_probe.dynamic.driver import results
from moe_probe.dynamic.sources import open_source, open_writing, writing_options
from moe_probe.errors import NoSuchName
from moe_probe.model import Openable
from moe_probe.options import DEFAULTS, ObserveOptions, RunOptions, completed, construct, signature_of
from moe_probe.texts.reading import Texts
from moe_probe.traces.reading import Trace


def run(
    source: Openable | Trace,
    texts: Texts | None = None,
    analyses: Asked = (),
    **options: Unpack[RunOptions],
) -> dict[str, xr.Dataset]:
    """Runs all analyses in one pass over a corpus, or over a recorded trace.

    Attention never mixes documents, padding never reaches an analysis, and results do not depend on batch size, order
    of documents, execution or `n_jobs`.

    Args:
        source: a checkpoint folder, a hub id, a model, or a routing trace (its folder, or a `Trace`).
        texts: strings, lists of token ids, a file of texts, a `datasets` dataset, a table; None for a trace.
        analyses: instances, classes or names, one or several; the pass computes only what they need.
        options: those of `moe_probe.options.RunOptions`: `layers`, `labels`, `column`, `split`, `max_length`,
            `add_special_tokens`, `batch_tokens`, `baseline`, `execution`, `checkpoint_dir`, `n_jobs`, `progress`.

    Returns:
        A Dataset by the analysis's name.

    Raises:
        InputError: the texts, layers, options or analyses do not fit the source.
        FamilyError: the model is dense, or its MoE layers cannot be watched.
        WeightError: weights are missing, or values are not finite.

    Examples:
        >>> from moe_probe import dynamic
        >>> results = dynamic.run("ckpt/tiny-mixtral", ["A short text."], [dynamic.GateChoices()])
        >>> list(results)
        ['gate_choices']
    """
    asked = completed(options)
    return results(open_source(source, texts, asked), make_analyses(analyses), asked)


def generate(
    model: Openable,
    prompts: Texts,
    analyses: Asked,
    *,
    max_new_tokens: int | None = None,
    **options: Any,
) -> dict[str, xr.Dataset]:
    """Runs analyses while the model continues prompts, one at a time, with its own `generate`.

    Every token has the label `prompt` or `generated`, which separates them in results: as the coordinate `label` of
    `GateChoices` and `Record`, and in `label_share` of `ExpertLoad`. The last generated token has no routing, because
    the model never processes it.

    Args:
        model: a checkpoint folder, a hub id or a model; it is loaded whole.
        prompts: strings, lists of token ids, a file of texts, a `datasets` dataset, or a table.
        analyses: instances, classes or names: any that need neither a dense baseline nor the model's output.
        max_new_tokens: most generated tokens per prompt; 32 by default, unless `max_length` or `generation_config`
            sets a limit.
        options: `layers`, `column`, `split`, `add_special_tokens`, `checkpoint_dir`, `n_jobs` and `progress` of
            `moe_probe.options.RunOptions`; all others go to transformers' `generate`, such as `do_sample`. Generation
            is greedy by default.

    Returns:
        A Dataset by the analysis's name.

    Raises:
        InputError: an option asks for several beams or sequences, or an analysis needs something that generation
            does not provide.
        FamilyError: the model's MoE layers cannot be watched, or it generates without a cache.

    Examples:
        >>> from moe_probe import dynamic
        >>> results = dynamic.generate("ckpt/tiny-mixtral", ["def f(x):"], [dynamic.GateChoices()], max_new_tokens=4)
        >>> results["gate_choices"].label.values.tolist()[-3:]
        ['generated', 'generated', 'generated']
    """
    asked, of_generation = writing_options(options, max_new_tokens)
    return results(open_writing(model, prompts, asked, of_generation), make_analyses(analyses), asked)


def from_trace(trace: Trace | str | Path, analyses: Asked, **options: Unpack[ObserveOptions]) -> dict[str, xr.Dataset]:
    """Runs analyses over recorded routing instead of a model; the numbers are those of `run`.

    Args:
        trace: a `Trace`, or its folder.
        analyses: instances, classes or names of analyses that need only routing.
        options: `layers`, `checkpoint_dir`, `n_jobs` and `progress` (see `moe_probe.options.ObserveOptions`).

    Returns:
        A Dataset by the analysis's name.

    Raises:
        InputError: an analysis needs something that a trace does not hold, or the trace is damaged.

    Examples:
        >>> from_trace("out/trace", [ExpertLoad(), Coactivation()])  # doctest: +SKIP
    """
    return run(trace, None, analyses, **options)


@cache
def function_of(analysis: type[Analysis]) -> Callable[..., xr.Dataset]:
    """Returns a function that runs one analysis, and takes the analysis's parameters and the options of `run`."""
    settings = inspect.signature(analysis).parameters
    parameters = [
        inspect.Parameter("source", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="Openable | Trace"),
        inspect.Parameter("texts", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation="Texts | None"),
        *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, each in settings.items() if name != "baseline"),
        *signature_of(DEFAULTS),
    ]
    takes = [each.name for each in parameters]

    def function(source: Openable | Trace, texts: Texts | None = None, **options: Any) -> xr.Dataset:
        for name in options:
            if name not in takes:
                raise NoSuchName.among(f"option of {analysis.name}", name, takes)
        chosen = {name: value for name, value in options.items() if name in settings and name != "baseline"}
        if "baseline" in settings:
            chosen["baseline"] = options.get("baseline") is not None
        run_options = {name: value for name, value in options.items() if name not in settings or name == "baseline"}
        return run(source, texts, construct(analysis.name, analysis, chosen), **run_options)[analysis.name]

    function.__name__ = function.__qualname__ = analysis.name
    function.__module__ = analysis.__module__
    function.__doc__ = f"{inspect.getdoc(analysis)}\n\nTakes the options of `run` too."
    function.__signature__ = inspect.Signature(parameters, return_annotation="xr.Dataset")  # pyright: ignore
    return function
