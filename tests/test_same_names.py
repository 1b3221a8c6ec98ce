"""What can be asked for in Python can be asked for on the command line, by the same names, with the same defaults."""

import inspect

import pytest
import typer.main

from moe_probe import dynamic, explorer, figures, load, static
from moe_probe.cli import app
from moe_probe.convert import convert
from moe_probe.options import DEFAULTS, EXPLORE_OPTIONS, REPRODUCE_OPTIONS, WRITING_OPTIONS

COMMANDS = typer.main.get_command(app).commands
ANALYSES = [getattr(static, name) for name in ("similarity", "gate_similarity", "gate_regression", "pca")]
# what each command stands for: its function, then others whose arguments it takes too
FUNCTIONS = {
    "static": [*ANALYSES, static.router_spectrum],
    "dynamic": [dynamic.run],
    "generate": [dynamic.generate],
    "compare": [dynamic.run],
    "reproduce": [figures.reproduce],
    "explore": [explorer.explore],
    "convert": [convert],
}
# positional in Python, or given another way on the command line: --model, --option, a path to save to
OTHERWISE = {
    "source",
    "destination",
    "model",
    "models",
    "paper",
    "texts",
    "prompts",
    "analyses",
    "analysis",
    "options",
    "level",
}
BY_OPTION = {
    "n_components",
    "standardize",
    "projections",
    "outliers",
    "experts",
    "metric",
    "shared",
    "as_published",
    "permutations",
}  # --option pca.outliers=[0.5,3]
NOT_FOR_COMPARE = {"baseline"}  # nothing that is compared looks at it
LOADING = {"config", "source"}
RENAMED = {"which": "figures"}  # which figures: in Python an argument of functions that draw


def arguments(function):
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }


def options(command):
    return {parameter.name: parameter for parameter in COMMANDS[command].params}


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("dynamic", DEFAULTS),
        ("compare", set(DEFAULTS) - NOT_FOR_COMPARE),
        ("reproduce", REPRODUCE_OPTIONS),
        ("explore", EXPLORE_OPTIONS),
        ("generate", WRITING_OPTIONS),
    ],
)
def test_options_of_a_run_are_options_of_its_command_with_the_same_defaults(command, names):
    given = options(command)
    for name in names:
        assert given[name].default == DEFAULTS[name]
        assert f"--{name.replace('_', '-')}" in given[name].opts


@pytest.mark.parametrize("command", FUNCTIONS)
def test_arguments_of_python_are_options_with_the_same_defaults(command):
    given, seen = options(command), set(OTHERWISE | BY_OPTION)
    if command == "compare":
        seen |= NOT_FOR_COMPARE
    for function in FUNCTIONS[command]:
        for name, default in arguments(function).items():
            if name in seen:
                continue
            seen.add(name)
            name = RENAMED.get(name, name)
            assert name in given, f"{command} has no --{name}"
            assert given[name].required == (default is inspect.Parameter.empty)
            assert given[name].required or given[name].default == default, name
            assert f"--{name.replace('_', '-')}" in given[name].opts


@pytest.mark.parametrize("command", ["dynamic", "generate", "explore"])
def test_models_are_loaded_as_in_python(command):
    given = options(command)
    for name, default in arguments(load).items():
        if name not in LOADING:
            assert given[name].default == default


def test_every_command_has_an_example_or_needs_none():
    for name, command in COMMANDS.items():
        assert command.help
        assert name == "demo" or "moe-probe" in command.epilog()
