"""Options of commands, made from the definitions in `moe_probe.options`, and parsers of their values."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from moe_probe.errors import InputError, NoSuchName, OutOfRange
from moe_probe.options import DEFAULTS, DPI_RANGE, FIGURE_CHOICES, FIGURE_FORMATS, HELP, construct
from moe_probe.progress import quiet
from moe_probe.signatures import check_choice, check_number

if TYPE_CHECKING:
    from moe_probe.model import MoEModel
    from moe_probe.routing import Intervention
    from moe_probe.traces.reading import Trace

MODEL_HELP: Final[Mapping[str, str]] = {
    "revision": "Branch, tag or commit of a hub id.",
    "tokenizer": "A tokenizer instead of the checkpoint's own.",
    "device": "Where the model runs, such as cuda. Default: cpu.",
    "dtype": "float32, float16, bfloat16 or auto. Default: float32 on the CPU, else as stored.",
    "config": "A field that replaces that of config.json, such as model_type=mixtral; may be repeated.",
    "under": "An intervention, such as mask.layer=3,experts=1+2; may be repeated.",
}
MODEL_OPTIONS: Final = tuple(MODEL_HELP)
FIGURE_HELP: Final[Mapping[str, str]] = {
    "figures": "Figures to draw: main, all (also of single layers) or none.",
    "format": "Format of the figures' files: pdf, png or svg.",
    "dpi": "Resolution in dots per inch, of PNG files and of rasterized parts of the others.",
}
FIGURE_DEFAULTS: Final[Mapping[str, Any]] = {"figures": "main", "format": "pdf", "dpi": 300}
FIGURE_OPTIONS: Final = tuple(FIGURE_HELP)
FILE_OPTIONS: Final = ("format", "dpi")  # of commands whose figures are those of a page
METAVARS: Final[Mapping[str, str]] = {
    "labels": "COLUMN",
    "unit": "COLUMN",
    "column": "COLUMN",
    "max_length": "N",
    "layers": "LAYERS",
    "baseline": "CKPT",
    "batch_tokens": "N",
    "execution": "HOW",
    "checkpoint_dir": "DIR",
    "n_jobs": "N",
    "tokenizer": "PATH",
    "config": "KEY=VALUE",
    "under": "NAME.KEY=VALUE,...",
    "figures": "WHICH",
    "format": "FORMAT",
    "dpi": "N",
}
# what is written otherwise than in Python
WRITTEN: Final[Mapping[str, Any]] = {
    "max_length": int | None,
    "add_special_tokens": bool | None,
    "batch_tokens": int,
    "n_jobs": int,
    "checkpoint_dir": Path | None,
    "execution": str,
    "progress": bool,
    "config": list[str] | None,
    "under": list[str] | None,
    "figures": str,
    "format": str,
    "dpi": int,
}
MOST_LAYERS = 1 << 16
ARGUMENT = re.compile(r",(?=\w+=)")  # between the arguments of an intervention: JSON has no NAME=
LIST = re.compile(r"(\d+|S)(\+(\d+|S))+")


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that adds options to a command, which receives them as keywords, with their defaults.

    Args:
        names: names of options of a run, of opening a model, or of figures.
    """

    def extended(command: Callable[..., None]) -> Callable[..., None]:
        parameters = list(inspect.signature(command, eval_str=True).parameters.values())

        @wraps(command)
        def running(*args: Any, **options: Any) -> None:
            drawing_of(options)  # a slip is refused before anything is computed
            with quiet(options.get("progress") is False):
                command(*args, **options)

        added = [_parameter(name) for name in names]
        passed_on = [each for each in parameters if each.kind is not each.VAR_KEYWORD]
        running.__signature__ = inspect.Signature([*passed_on, *added])  # pyright: ignore[reportAttributeAccessIssue]
        running.__annotations__ = {each.name: each.annotation for each in (*passed_on, *added)}
        return running

    return extended


def _parameter(name: str) -> inspect.Parameter:
    defaults: Mapping[str, Any] = {**DEFAULTS, **FIGURE_DEFAULTS}
    written = WRITTEN.get(name, str | None)
    metavar = None if written is bool else METAVARS.get(name)
    option = typer.Option(metavar=metavar, help={**HELP, **MODEL_HELP, **FIGURE_HELP}[name])
    annotation = Annotated[written, option]
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=defaults.get(name), annotation=annotation)


def of_run(options: Mapping[str, Any], names: Iterable[str] = tuple(DEFAULTS)) -> dict[str, Any]:
    """Returns the options of a run as Python takes them.

    Raises:
        InputError: the list of layers is not valid.
    """
    asked = {name: options[name] for name in names if name in options}
    if isinstance(asked.get("layers"), str):
        asked["layers"] = parse_layers(asked["layers"])
    if isinstance(asked.get("baseline"), str):
        how = {name: options[name] for name in ("device", "dtype") if name in options}
        asked["baseline"] = open_model(asked["baseline"], how)
    return asked


def drawing_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of figures as `figures.draw` takes them.

    Raises:
        NoSuchName: there is no such choice of figures, or no such format.
        OutOfRange: `dpi` is below 30 or above 2,400.
    """
    asked = {name: options[name] for name in FIGURE_OPTIONS if name in options}
    check_choice("figures", asked.get("figures", "main"), FIGURE_CHOICES)
    check_choice("format", asked.get("format", "pdf"), FIGURE_FORMATS)
    check_number("dpi", asked.get("dpi", FIGURE_DEFAULTS["dpi"]), *DPI_RANGE)
    return {"which" if name == "figures" else name: value for name, value in asked.items()}


def split_name(source: str) -> tuple[str | None, str]:
    """Parses `"Mixtral 8x7B=FOLDER"` to ("Mixtral 8x7B", "FOLDER"); (None, source) without a name, or for a path.

    Raises:
        InputError: the name or the folder is empty.
    """
    name, equals, place = source.partition("=")
    if not equals or Path(source).expanduser().exists():
        return None, source
    if not name.strip() or not place:
        raise InputError(f"{source!r} lacks a name or a folder; pass something like 'Mixtral 8x7B=FOLDER'.")
    return name.strip(), place


def open_source(source: str, options: Mapping[str, Any]) -> MoEModel | Trace:
    """Opens a model as `open_model` does, or a routing trace, under its given name if there is one."""
    from moe_probe import dynamic

    name, place = split_name(source)
    if not dynamic.is_trace(place):
        return open_model(source, options)
    trace = dynamic.read_trace(place)
    return trace if name is None else replace(trace, name=name)


def open_model(source: str, options: Mapping[str, Any]) -> MoEModel:
    """Opens a model with the options of `load`, under the requested interventions and its given name, if any."""
    from moe_probe.model import load

    name, source = split_name(source)

    how = {name: options[name] for name in MODEL_OPTIONS if name in options and name not in ("under", "config")}
    model = load(source, **how, config=parse_fields(options.get("config")))
    model.name = name or model.name
    asked = interventions_of(options.get("under"))
    return model.under(*asked) if asked else model


def interventions_of(texts: Sequence[str] | None) -> list[Intervention]:
    """Parses `["mask.layer=3,experts=1+2"]` to [Mask(layer=3, experts=(1, 2))].

    One text has all arguments of an intervention, or some of them: consecutive texts of the same kind belong together,
    until an argument occurs again.

    Raises:
        InputError: a text is not of that form, or names an unknown intervention or argument.
    """
    from moe_probe import intervene

    asked: list[tuple[str, dict[str, Any]]] = []
    for text in texts or ():
        kind, fields = parse_intervention(text)
        if asked and asked[-1][0] == kind and not asked[-1][1].keys() & fields.keys():
            asked[-1][1].update(fields)
        else:
            asked.append((kind, fields))
    kinds = intervene.names()
    return [construct(kind, kinds[kind], fields) for kind, fields in asked]


def parse_intervention(text: str) -> tuple[str, dict[str, Any]]:
    """Parses `"mask.layer=3,experts=1+2"` to ("mask", {"layer": 3, "experts": [1, 2]}); arguments may be missing.

    Raises:
        InputError: the text is not of that form.
    """
    kind, dot, spelled = text.partition(".")
    arguments = {}
    for part in ARGUMENT.split(spelled) if dot else ():
        key, equals, value = part.partition("=")
        if not (equals and key and kind):
            raise InputError(f"{text!r} is not an intervention; pass one like mask.layer=3,experts=1+2.")
        arguments[key] = parsed(value)
    return kind, arguments


def parsed(value: str) -> Any:
    """Parses a value in JSON, or `1+2` to [1, 2]; anything else stays text."""
    if LIST.fullmatch(value):
        return [int(each) if each.isdecimal() else each for each in value.split("+")]
    try:
        return json.loads(value)
    except ValueError:
        return value


def parse_layers(text: str | None) -> list[int] | None:
    """Parses `"0,5,10-12"` to [0, 5, 10, 11, 12]; None stays None.

    Raises:
        InputError: the text is not such a list.
        OutOfRange: a range is descending, or longer than any model.
    """
    if text is None:
        return None
    try:
        bounds = [[int(end) for end in part.split("-", 1)] for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} is not a list of layers; pass one like 0,5,10-12.") from None
    ranges = [(first, last[0] if last else first) for first, *last in bounds]
    for first, last in ranges:
        if not 0 <= last - first < MOST_LAYERS:
            raise OutOfRange(f"{first}-{last} is not a range of layers; pass one like 0,5,10-12.")
    return [layer for first, last in ranges for layer in range(first, last + 1)]


def parse_fields(texts: Sequence[str] | None) -> dict[str, Any] | None:
    """Parses `["model_type=mixtral", "num_experts_per_tok=2"]` to a mapping; values are JSON if possible.

    Raises:
        InputError: a text is not of that form.
    """
    fields: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{text!r} is not a field; pass one like model_type=mixtral.")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields or None


def parse_options(texts: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Parses `["expert_capacity.factors=[1, 2]"]` to {"expert_capacity": {"factors": [1, 2]}}.

    Raises:
        InputError: a text is not of that form.
    """
    arguments: dict[str, dict[str, Any]] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        analysis, dot, key = name.partition(".")
        if not (equals and dot and key):
            raise InputError(f"{text!r} is not an option; pass one like expert_capacity.factors=[1,1.25].")
        arguments.setdefault(analysis, {})[key] = parsed(value)
    return arguments


def check_names(options: Mapping[str, Any], known: Iterable[str], kind: str) -> None:
    """Raises an error if options are for an unknown name.

    Raises:
        NoSuchName: a name is unknown; the message has the nearest one.
    """
    names = list(known)
    for name in options:
        if name not in names:
            raise NoSuchName.among(kind, name, names)
