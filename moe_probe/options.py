"""The options of a run: names, types, defaults and help, defined once for Python and the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, TypeVar, get_args

from moe_probe.errors import NoSuchName
from moe_probe.signatures import check_call, check_choice, check_jobs, check_number, check_types

Made = TypeVar("Made")
Execution = Literal["auto", "resident", "layerwise"]


class TextOptions(TypedDict, total=False):
    """How texts are read.

    Attributes:
        labels: a label per document (domain, task), or the name of the column that holds it.
        unit: what intervals and chance levels resample as a whole: a cluster per document (its source, author or book),
            or the name of the column that holds it; each document by default.
        column: the column that holds the text.
        split: of a dataset that has several.
        max_length: most tokens per document; the model's maximum by default.
        add_special_tokens: whether the tokenizer adds its special tokens; by default if the text has none yet.
    """

    labels: Sequence[str] | str | None
    unit: Sequence[str] | str | None
    column: str | None
    split: str | None
    max_length: int | None
    add_special_tokens: bool | None


class ObserveOptions(TypedDict, total=False):
    """How analyses observe a source of any kind.

    Attributes:
        layers: MoE layers; all by default. Layers after the last one are not run.
        checkpoint_dir: folder in which progress is saved; an interrupted pass resumes from there.
        n_jobs: number of workers (through joblib: `joblib.parallel_config(backend=...)` spreads the work over a Ray or
            Dask cluster).
        progress: whether to show progress.
    """

    layers: Sequence[int] | int | None
    checkpoint_dir: str | Path | None
    n_jobs: int
    progress: bool


class RunOptions(TextOptions, ObserveOptions, total=False):
    """How a model runs over texts.

    Attributes:
        baseline: a dense model with the same token ids, for analyses that compare with one.
        batch_tokens: most tokens per batch, padding included.
        execution: `resident` (the whole module in memory), `layerwise` (one layer in memory at a time, read from the
            published files once for the whole corpus), or `auto`: resident if the model fits into free memory.
    """

    baseline: Any
    batch_tokens: int
    execution: Execution


DEFAULTS: Final[RunOptions] = {
    "labels": None,
    "unit": None,
    "column": None,
    "split": None,
    "max_length": None,
    "add_special_tokens": None,
    "layers": None,
    "baseline": None,
    "batch_tokens": 4096,
    "execution": "auto",
    "checkpoint_dir": None,
    "n_jobs": 1,
    "progress": True,
}
TYPES: Final[Mapping[str, str]] = {
    "labels": "Sequence[str] | str | None",
    "unit": "Sequence[str] | str | None",
    "column": "str | None",
    "split": "str | None",
    "max_length": "int | None",
    "add_special_tokens": "bool | None",
    "layers": "Sequence[int] | int | None",
    "baseline": "Openable | None",
    "batch_tokens": "int",
    "execution": "Literal['auto', 'resident', 'layerwise']",
    "checkpoint_dir": "str | Path | None",
    "n_jobs": "int",
    "progress": "bool",
}
HELP: Final[Mapping[str, str]] = {
    "labels": "The column of document labels.",
    "unit": "The column of clusters that intervals resample as a whole, such as sources. Default: each document.",
    "column": "The column of the text.",
    "split": "The split of a dataset that has several.",
    "max_length": "Most tokens per document. Default: the model's maximum.",
    "add_special_tokens": "Whether the tokenizer adds its special tokens. Default: if the text has none yet.",
    "layers": "MoE layers, such as 0,5,10-15. Default: all.",
    "baseline": "A dense model to compare with.",
    "batch_tokens": "Most tokens per batch, padding included.",
    "execution": "resident, layerwise (one layer at a time, for large models), or auto.",
    "checkpoint_dir": "Save progress here, and resume from it.",
    "n_jobs": "Number of workers.",
    "progress": "Show progress.",
}
TEXT_OPTIONS: Final = tuple(TextOptions.__annotations__)
OBSERVE_OPTIONS: Final = tuple(ObserveOptions.__annotations__)
OF_TEXTS: Final = ("labels", "unit", "max_length")  # which prompts do not take
WRITING_OPTIONS: Final = (*(name for name in TEXT_OPTIONS if name not in OF_TEXTS), *OBSERVE_OPTIONS)
EXPLORE_OPTIONS: Final = tuple(name for name in DEFAULTS if name not in ("baseline", "checkpoint_dir"))
REPORT_OPTIONS: Final = EXPLORE_OPTIONS
REPRODUCE_OPTIONS: Final = tuple(name for name in DEFAULTS if name != "checkpoint_dir")
COMPARE_OPTIONS: Final = tuple(name for name in DEFAULTS if name != "baseline")
ABLATE_OPTIONS: Final = tuple(name for name in DEFAULTS if name != "baseline")
SCORE_OPTIONS: Final = ABLATE_OPTIONS
EFFECT_OPTIONS: Final = tuple(name for name in ABLATE_OPTIONS if name != "layers")
ATTRIBUTION_OPTIONS: Final = tuple(name for name in ABLATE_OPTIONS if name not in ("checkpoint_dir", "n_jobs"))
STATIC_OPTIONS: Final = ("layers", "baseline", "n_jobs", "progress")
SHARD_BYTES: Final = 5 * 10**9  # of a converted checkpoint's file
FIGURE_CHOICES: Final = ("main", "all", "none")
FIGURE_FORMATS: Final = ("pdf", "png", "svg")
DPI_RANGE: Final = (30, 2400)
PAGE_BYTES: Final = 30_000_000  # of the explorer's page, at most
DIGITS: Final = 3  # of its numbers
POSITIVE: Final = ("batch_tokens", "max_length")  # None stays where it is the default
READ_ELSEWHERE: Final = ("labels", "unit", "layers", "baseline")  # with the texts or the model that they belong to


def completed(
    given: Mapping[str, Any], takes: Iterable[str] = tuple(DEFAULTS), function: str = "run"
) -> dict[str, Any]:
    """Returns the options, completed with their defaults.

    Args:
        given: the options that were passed, by name.
        takes: names of those that can be passed.
        function: name of the function that takes them, for errors.

    Raises:
        NoSuchName: an option is not among them; the message has the nearest name.
        OutOfRange: a number is outside its range.
        WrongType: a value is of another type.
    """
    names = list(takes)
    for name in given:
        if name not in names:
            raise NoSuchName.among(f"option of {function}", name, names)
    options = {name: value for name, value in DEFAULTS.items() if name in names} | dict(given)
    for name, value in options.items():
        check_value(name, value)
    return options


def check_value(name: str, value: Any) -> None:
    """Raises an error if an option's value is of another type or out of range.

    Raises:
        OutOfRange: the number is out of range.
        WrongType: the value is of another type.
        NoSuchName: the name is not one of those that the option takes.
    """
    if name == "n_jobs":
        check_jobs(value)
    elif name == "execution":
        check_choice(name, value, get_args(Execution))
    elif name not in READ_ELSEWHERE:
        check_types(RunOptions, {name: value})
        if name in POSITIVE and value is not None:
            check_number(name, value, 1)


def construct(name: str, kind: Callable[..., Made], given: Mapping[str, Any]) -> Made:
    """Calls `kind` with arguments by name, and returns what it makes.

    Raises:
        NoSuchName: `kind` has no such argument.
        WrongType: an argument is missing, or of another type.
    """
    check_call(name, kind, (), given)
    return kind(**given)


def check_arguments(name: str, function: Callable[..., Any], given: Iterable[str], besides: Iterable[str] = ()) -> None:
    """Raises an error if a function does not take an argument, or if `besides` names it.

    Raises:
        NoSuchName: an argument is not known; the message lists those that are.
    """
    takes = [key for key in inspect.signature(function).parameters if key not in besides]
    for key in given:
        if key not in takes:
            raise NoSuchName.among(f"option of {name}", key, takes)


def signature_of(names: Iterable[str]) -> list[inspect.Parameter]:
    """Returns these options as keyword parameters, with types and defaults, for a function's `__signature__`."""
    defaults: Mapping[str, Any] = DEFAULTS
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=TYPES[name])
        for name in names
    ]
