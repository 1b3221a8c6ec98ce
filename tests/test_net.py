"""Whatever is passed, wherever: a result, or one sentence of our own; what there is comes from signatures."""

import inspect
import itertools
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from unittest.mock import patch

import pytest
import typer.main
from conftest import FIXTURES

import moe_probe
from moe_probe import comparisons, dynamic, explorer, figures, intervene, plotting, static
from moe_probe.cli import app, main
from moe_probe.convert import convert
from moe_probe.errors import MoEProbeError
from moe_probe.options import DEFAULTS
from moe_probe.results import load_result, save

IDS = [[5, 6, 7, 8, 5, 6], [9, 10, 11]]
LABELS = ["a", "b"]
BAD = ["nonsense", -1, 0, 2.5, float("nan"), 10**7, [], {}, ["nonsense"], object(), None, True, b"bytes"]
MOE, DENSE = FIXTURES / "moe_plus_plus" / "checkpoint", FIXTURES / "mistral" / "checkpoint"


@pytest.fixture(scope="module")
def model():
    opened = moe_probe.load(MOE)
    assert opened.module is not None  # loaded once for all
    return opened


def refused_or_done(call, what):
    """Run it; anything but a result or a sentence of our own is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except MoEProbeError as error:
            sentence = str(error)
            assert sentence.endswith("."), f"{what}: {sentence!r}"
            assert not sentence.startswith("It "), f"{what}: {sentence!r}"
            assert "\n\n" not in sentence, f"{what}: {sentence!r}"
        except Exception as error:  # said with what led to it
            pytest.fail(f"{what}: {type(error).__name__}: {error}")


def shown(value):
    return "object()" if type(value) is object else repr(value)


@pytest.mark.parametrize("name", dynamic.names())
def test_parameters_of_dynamic_analyses(name, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    analysis = dynamic.names()[name]
    example = {field: getattr(analysis.example(), field) for field in inspect.signature(analysis).parameters}
    for field, bad in itertools.product(example, BAD):
        refused_or_done(
            lambda field=field, bad=bad: dynamic.run(
                model, IDS, [analysis(**example | {field: bad})], layers=0, labels=LABELS, progress=False
            ),
            f"{name}({field}={shown(bad)})",
        )


@pytest.mark.parametrize("option", DEFAULTS)
def test_options_of_a_run(option, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for bad in BAD:
        if (option, shown(bad)) == ("n_jobs", "10000000"):
            continue  # as many workers as there are documents: tested with workers
        options = {"layers": 0, "progress": False, option: bad}
        refused_or_done(
            lambda options=options: dynamic.run(model, IDS, "gate_choices", **options), f"{option}={shown(bad)}"
        )


def test_analyses_texts_and_sources(model):
    for bad in BAD:
        refused_or_done(lambda bad=bad: dynamic.run(model, IDS, bad, progress=False), f"analyses={shown(bad)}")
        refused_or_done(lambda bad=bad: dynamic.run(model, bad, "expert_load", progress=False), f"texts={shown(bad)}")
        refused_or_done(lambda bad=bad: dynamic.run(bad, IDS, "expert_load", progress=False), f"source={shown(bad)}")
        refused_or_done(lambda bad=bad: dynamic.from_trace(bad, "expert_load"), f"trace={shown(bad)}")
        refused_or_done(lambda bad=bad: dynamic.read_trace(bad), f"read_trace({shown(bad)})")
        refused_or_done(lambda bad=bad: dynamic.word_list(bad), f"word_list({shown(bad)})")
        refused_or_done(lambda bad=bad: moe_probe.load(bad), f"load({shown(bad)})")
        refused_or_done(lambda bad=bad: load_result(bad), f"load_result({shown(bad)})")


def test_options_of_writing(model):
    own = ["max_new_tokens", "layers", "max_length", "temperature", "do_sample", "num_beams", "top_k", "nonsense"]
    for option, bad in itertools.product(own, BAD):
        if (isinstance(bad, int) and bad > 100) or (bad is True and option == "do_sample"):
            continue  # would write on and on
        options = {"max_new_tokens": 2, "layers": 0, "progress": False, option: bad}
        if option == "max_length":
            del options["max_new_tokens"]
        refused_or_done(
            lambda options=options: dynamic.generate(model, IDS[1:], "gate_choices", **options),
            f"{option}={shown(bad)}",
        )


@pytest.mark.parametrize("name", static.names())
def test_arguments_of_static_analyses(name):
    function = static.names()[name]
    needed = [MOE] * static.models(name)
    for option, bad in itertools.product(list(inspect.signature(function).parameters)[len(needed) :], BAD):
        if (option, shown(bad)) == ("n_jobs", "10000000"):
            continue
        options = {"layers": 0, option: bad}
        refused_or_done(lambda options=options: function(*needed, **options), f"{name}({option}={shown(bad)})")
    for bad in BAD:
        refused_or_done(lambda bad=bad: function(bad, *needed[1:]), f"{name}({shown(bad)})")


@pytest.mark.parametrize("name", sorted(set(comparisons.names()) - {"weight_drift"}))
def test_arguments_of_comparisons(name, model):
    function = comparisons.names()[name]
    good = {
        "checkpoints": {"a": model, "b": model},
        "steps": {"a": model, "b": model},
        "model": model,
        "before": {"a": model},
        "after": {"b": model},
        "texts": IDS,
        "patches": dynamic.PatchDivergence(grid=(1, 2)),
    }
    parameters = [each for each in inspect.signature(function).parameters.values() if each.kind is not each.VAR_KEYWORD]
    needed = {each.name: good[each.name] for each in parameters if each.name in good}
    for option, bad in itertools.product([each.name for each in parameters] + ["nonsense"], BAD):
        options = {**needed, "layers": 0, "progress": False, option: bad}
        refused_or_done(lambda options=options: function(**options), f"{name}({option}={shown(bad)})")


@pytest.mark.parametrize("name", sorted(set(intervene.names()) - {"config"}))
def test_arguments_of_interventions(name, model):
    kind = intervene.names()[name]
    good = {"layer": 0, "experts": [1], "delta": 1.0}
    needed = {option: good[option] for option in inspect.signature(kind).parameters}
    for option, bad in itertools.product(needed, BAD):
        options = {**needed, option: bad}
        refused_or_done(lambda options=options: model.under(kind(**options)), f"{name}({option}={shown(bad)})")


def test_arguments_of_plots(model, tmp_path):
    results = dynamic.run(
        model, IDS, ["expert_load", "gate_choices", "coactivation"], layers=0, labels=LABELS, progress=False
    )
    for (name, dataset), bad in itertools.product(results.items(), BAD):
        refused_or_done(
            lambda dataset=dataset, bad=bad: plotting.plot(dataset, layer=bad), f"{name} layer={shown(bad)}"
        )
    for bad in BAD:
        refused_or_done(lambda bad=bad: plotting.plot(bad), f"plot({shown(bad)})")
        if not isinstance(bad, str | bytes):
            refused_or_done(lambda bad=bad: save(results["expert_load"], bad), f"save({shown(bad)})")


def test_arguments_of_figures_explorer_and_convert(model, tmp_path):
    for number, bad in enumerate(BAD):
        refused_or_done(lambda bad=bad: figures.reproduce(bad, model, tmp_path), f"paper={shown(bad)}")
        refused_or_done(lambda bad=bad: figures.reproduce("mh-moe", bad, tmp_path), f"models={shown(bad)}")
        refused_or_done(lambda bad=bad: explorer.explore(bad, IDS, progress=False), f"explore({shown(bad)})")
        for option in ("similar", "max_bytes", "layers"):
            options = {"layers": 0, "progress": False, option: bad}
            refused_or_done(lambda options=options: explorer.explore(model, IDS, **options), f"{option}={shown(bad)}")
        for option in ("dtype", "shard_bytes"):
            options, folder = {option: bad}, tmp_path / f"{option}-{number}"
            refused_or_done(
                lambda options=options, folder=folder: convert(MOE, folder, **options),
                f"convert({option}={shown(bad)})",
            )


COMMANDS = typer.main.get_command(app).commands
GIVEN = {
    "static": [MOE, "-o", "out", "--layers", "0", "--analysis", "gate_similarity"],
    "dynamic": [MOE, "-o", "out", "--layers", "0", "--analysis", "gate_choices", "--texts", "none.txt"],
    "generate": [MOE, "-o", "out", "--analysis", "gate_choices", "--texts", "none.txt"],
    "compare": [MOE, MOE, "-o", "out", "--texts", "none.txt"],
    "reproduce": ["mh-moe", "--model", MOE, "-o", "out"],
    "explore": [MOE, "--texts", "none.txt"],
    "figures": ["out"],
    "info": [MOE],
    "convert": [MOE, "converted"],
}


def run_command(*arguments):
    err = StringIO()
    typed = patch.object(sys, "argv", ["moe-probe", *map(str, arguments)])
    with typed, redirect_stdout(StringIO()), redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            return ended.code or 0, err.getvalue()
    return 0, err.getvalue()


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"demo"}))
def test_options_of_commands(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for parameter in COMMANDS[command].params:
        option = next((name for name in parameter.opts if name.startswith("--")), None)
        if option is None or getattr(parameter, "is_flag", False):
            continue
        for bad in ("nonsense", "-1", "0", "", "1e9", "[x]", "a\x1b[2Jb"):
            if option in ("--n-jobs", "--out") or (option, bad) == ("--shard-bytes", "1e9"):
                continue
            code, said = run_command(command, *GIVEN[command], option, bad)
            assert code in (0, 1, 2), f"{command} {option} {bad!r}: {said}"
            assert "Traceback" not in said, f"{command} {option} {bad!r}: {said}"
            assert "\x1b[2J" not in said, f"{command} {option} {bad!r}"
            assert code == 0 or said.strip(), f"{command} {option} {bad!r} says nothing"


def test_damaged_results_and_checkpoints(tmp_path, model):
    found = dynamic.run(model, IDS, "expert_load", layers=0, progress=False)["expert_load"]
    path = save(found, tmp_path / "load.nc")
    content = path.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 25)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with pytest.raises(MoEProbeError):
            load_result(path)
        path.write_bytes(content[:at])
        refused_or_done(lambda: load_result(path), f"cut off at {at}")
