"""Wrong types, names and numbers come back as one sentence of ours, never as somebody else's traceback.

The walks are made from registries and signatures: a new analysis, plot, option or command is walked as it appears.
"""

import inspect
import json
import resource
import shutil
import signal
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache, partial
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import typer.main
from conftest import FIXTURES
from hypothesis import given, settings
from hypothesis import strategies as st

import moe_probe
from moe_probe import comparisons, dynamic, explorer, figures, intervene, plotting, pruning, results, static
from moe_probe.cli import app, main
from moe_probe.convert import convert
from moe_probe.errors import MoEProbeError, NoSuchName
from moe_probe.options import DEFAULTS, EXPLORE_OPTIONS, OBSERVE_OPTIONS, WRITING_OPTIONS

pytestmark = pytest.mark.thorough
CHECKPOINT, DENSE = FIXTURES / "moe_plus_plus" / "checkpoint", FIXTURES / "mistral" / "checkpoint"
TEXTS = [[4, 9, 5, 9, 7, 11], [8, 9, 4, 12, 6]]
RUN = {"layers": [0], "labels": ["a", "b"], "progress": False}


class Odd:
    """Of no type that anything takes."""


ODD = Odd()
WRONG = [ODD, None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**20, "", "nonesuch", "a\0b", b"x", [], [None], {}]
SLOW = {"n_jobs": [-1], "baseline": [], "tokenizer": ["nonesuch"]}  # what starts workers, or asks the network


def values(name):
    return [each for each in WRONG if each not in SLOW.get(name, [])]


@contextmanager
def in_time(seconds=10):
    """Within, what has no end ends: a number beyond all bounds has to be refused, not tried."""
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (2 << 30), memory[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _too_long(number, frame):
    raise TimeoutError("has no end")


def refusal(call, *, told):
    """What a call is refused with, None where it is taken; any error but a sentence of ours fails the test.

    Args:
        call: without arguments.
        told: one of these the sentence has to have.
    """
    try:
        with in_time():
            call()
    except MoEProbeError as error:
        text = str(error)
        assert text.endswith("."), text
        assert not text.startswith("It "), text
        assert "\n" not in text, text
        assert len(text) < 900, text
        assert any(str(each) in text for each in told), f"{text!r} names none of {told}"
        return text
    return None


def walk(function, name, arguments, parameter, *, only_odd=False):
    """Pass every wrong value in place of one argument; returns how many were refused."""
    refused, foreign = 0, []
    for value in [ODD] if only_odd else values(parameter):
        call = partial(function, **{**arguments, parameter: value})
        try:
            text = refusal(call, told=[parameter, parameter.rstrip("s"), "Odd"] if value is ODD else [""])
            refused += text is not None
            if value is ODD:
                assert text, f"{name}({parameter}=Odd()) is taken"
        except AssertionError as error:
            foreign.append(str(error).splitlines()[0])
        except Exception as error:
            where = error.__traceback__
            while where.tb_next:
                where = where.tb_next
            place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}"
            foreign.append(f"{name}({parameter}={value!r}): {type(error).__name__} in {place}: {str(error)[:90]}")
    assert not foreign, "\n".join(["", *foreign])
    return refused


@cache
def model():
    return moe_probe.load(CHECKPOINT)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whatever is written for want of a refusal


@pytest.fixture(scope="session")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("net") / "trace"
    dynamic.run(model(), TEXTS, dynamic.RoutingTrace(folder), **RUN)
    return folder


def parameters(function, options=()):
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    own = [name for name, each in inspect.signature(function).parameters.items() if each.kind not in several]
    return [*own, *(name for name in options if name not in own)]


def example_arguments(analysis):
    example = analysis.example()
    return {name: getattr(example, name) for name in inspect.signature(analysis).parameters}


# Arguments of analyses ------------------------------------------------------------------------------------------------


def constructed(analysis, **arguments):
    if isinstance(arguments.get("path"), str) and "overwrite" in arguments:
        arguments = {**arguments, "overwrite": arguments["overwrite"]}
    return dynamic.run(model(), TEXTS, analysis(**arguments), **RUN, baseline=None)


OF_ANALYSES = [(name, each) for name, kind in dynamic.names().items() for each in inspect.signature(kind).parameters]


@pytest.mark.parametrize("name", list(dynamic.names()))
def test_examples_are_taken(name):
    kind = dynamic.names()[name]
    assert refusal(partial(constructed, kind, **example_arguments(kind)), told=[""]) is None


@pytest.mark.parametrize(("name", "parameter"), OF_ANALYSES)
def test_arguments_of_a_dynamic_analysis(name, parameter):
    kind = dynamic.names()[name]
    assert walk(partial(constructed, kind), name, example_arguments(kind), parameter)


@pytest.mark.parametrize("name", list(dynamic.names()))
def test_a_dynamic_analysis_knows_its_options(name):
    kind = dynamic.names()[name]
    with pytest.raises(NoSuchName, match="nonesuch"):
        kind(**example_arguments(kind), nonesuch=1)
    with pytest.raises(NoSuchName, match="nonesuch"):
        getattr(dynamic, name)(model(), TEXTS, nonesuch=1)
    with pytest.raises(NoSuchName, match=f"{name[:-1]}'; did you mean '{name}'"):
        dynamic.run(model(), TEXTS, name[:-1])
    for parameter in parameters(getattr(dynamic, name)):
        arguments = {**example_arguments(kind), **RUN, "source": model(), "texts": TEXTS}
        assert walk(getattr(dynamic, name), name, arguments, parameter, only_odd=True)


# Arguments of functions -----------------------------------------------------------------------------------------------


OF_TRANSFORMERS = ("temperature", "do_sample", "num_beams", "top_k", "top_p", "use_cache")


def functions(folder):
    """Functions by name, with arguments that they take and the options that are theirs."""
    sources, patches = {"a": model(), "b": model()}, dynamic.PatchDivergence.example()
    observed = {name: RUN[name] for name in ("layers", "progress")}
    found = {
        "load": (moe_probe.load, {"source": CHECKPOINT}, ()),
        "run": (dynamic.run, {"source": model(), "texts": TEXTS, "analyses": "gate_choices", **RUN}, DEFAULTS),
        "generate": (
            partial(dynamic.generate, max_new_tokens=2),
            {"model": model(), "prompts": TEXTS, "analyses": "gate_choices", **observed},
            (*WRITING_OPTIONS, *OF_TRANSFORMERS),
        ),
        "from_trace": (dynamic.from_trace, {"trace": folder, "analyses": "gate_choices", **observed}, OBSERVE_OPTIONS),
        "make_corpus": (dynamic.make_corpus, {"model": model(), "texts": TEXTS}, ()),
        "word_list": (dynamic.word_list, {"name": "polysemous_en"}, ()),
        "read_trace": (dynamic.read_trace, {"folder": folder}, ()),
        "explore": (
            explorer.explore,
            {"source": model(), "texts": TEXTS, "similar": None, **RUN},
            EXPLORE_OPTIONS,
        ),
        "load_result": (results.load_result, {"path": results.save(results_of("gate_similarity"), "kept.nc")}, ()),
        "save": (results.save, {"dataset": results_of("gate_similarity"), "path": "a.nc"}, ()),
        "convert": (convert, {"source": CHECKPOINT, "destination": "new"}, ()),
        "draw": (figures.draw, {"dataset": results_of("expert_load"), "folder": Path("drawn")}, ()),
        "under": (model().under, {}, ()),
        "router_weight": (model().router_weight, {"layer": 0}, ()),
        "expert_weight": (model().expert_weight, {"layer": 0, "expert": 0, "projection": "up"}, ()),
        "layer": (model().layer, {"index": 0}, ()),
        "select_layers": (model().select_layers, {"layers": [0]}, ()),
        "open_sources": (comparisons.open_sources, {"sources": sources}, ()),
    }
    for name, function in {**static.names(), **comparisons.names()}.items():
        known = {"model": model(), "texts": TEXTS, "before": model(), "after": model(), "patches": patches}
        known |= {"checkpoints": sources, "steps": sources, "layers": [0]}
        takes = inspect.signature(function).parameters
        runs = any(each.kind is each.VAR_KEYWORD for each in takes.values())
        given = {key: value for key, value in known.items() if key in takes}
        found[name] = (function, given | (RUN if runs else {}), DEFAULTS if runs else ())
    return found


@cache
def results_of(name):
    if name in dynamic.names():
        return dynamic.run(model(), TEXTS, dynamic.names()[name].example(), **RUN)[name]
    function, arguments, _ = functions_alone()[name]
    return function(**arguments)


@cache
def functions_alone():
    return {
        name: (function, {"model": model(), "layers": [0]}, ())
        for name, function in static.names().items()
        if static.models(name) == 1
    }


FUNCTIONS = [
    *("load", "run", "generate", "from_trace", "make_corpus", "word_list", "read_trace", "explore", "load_result"),
    *("save", "convert", "draw", "router_weight", "expert_weight", "layer", "select_layers", "open_sources"),
    *dict.fromkeys([*static.names(), *comparisons.names()]),
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_of_a_function(name, trace):
    function, arguments, options = functions(trace)[name]
    assert refusal(partial(function, **arguments), told=[""]) is None
    refused = {}
    for parameter in parameters(function, options):
        of_all = parameter in options and name not in ("run", "generate", "from_trace")  # by one definition
        refused[parameter] = walk(function, name, arguments, parameter, only_odd=of_all)
    assert all(refused.values()), refused
    if options:
        refusal_of_unknown = refusal(partial(function, **arguments, nonesuch=1), told=["nonesuch"])
        assert refusal_of_unknown


def test_all_functions_are_walked(trace):
    assert set(functions(trace)) - {"under"} == set(FUNCTIONS)


REPRODUCE = {"paper": "moe-plus-plus", "models": CHECKPOINT, "out": "out", "texts": TEXTS, **RUN}


@pytest.mark.parametrize("parameter", parameters(figures.reproduce, DEFAULTS))
def test_arguments_of_reproduce(parameter):
    if parameter == "checkpoint_dir":
        parameter = "nonesuch"  # it takes none
    assert walk(figures.reproduce, "reproduce", REPRODUCE, parameter, only_odd=True)


@pytest.mark.parametrize("asked", [*WRONG, [ODD], ["gate_choices", None], [int], {"gate_choices": 1}])
def test_what_is_no_analysis(asked):
    assert refusal(partial(dynamic.run, model(), TEXTS, asked, **RUN), told=[""])


OF_INTERVENTIONS = [
    (name, each)
    for name, kind in intervene.names().items()
    for each in parameters(kind)
    if name != "config" and each != "expert"  # another name of `experts`, taken beside them
]


@pytest.mark.parametrize(("name", "parameter"), OF_INTERVENTIONS)
def test_arguments_of_an_intervention(name, parameter):
    example = intervene.names()[name].example()
    arguments = {each: getattr(example, each) for each in parameters(type(example)) if each != "expert"}

    def act(**asked):
        return dynamic.run(model().under(intervene.names()[name](**asked)), TEXTS, "gate_choices", **RUN)

    assert walk(act, name, arguments, parameter)


@pytest.mark.parametrize("value", WRONG)
def test_what_is_no_intervention(value):
    assert refusal(partial(model().under, value), told=[""])


# Plots ----------------------------------------------------------------------------------------------------------------

PLOTTED = [name for name in plotting.names() if name in dynamic.names() or name in static.names()]
PLOTTED = [name for name in PLOTTED if name != "weight_drift"]


@pytest.mark.parametrize("name", PLOTTED)
def test_arguments_of_a_plot(name):
    ds = results_of(name)
    for parameter in parameters(getattr(plotting, name).plot)[1:]:
        assert walk(partial(plotting.plot, ds), name, {}, parameter)
    assert refusal(partial(plotting.plot, ds, nonesuch=1), told=["nonesuch"])


def part_of(ds, how):
    match how:
        case "no variables":
            return ds.drop_vars(list(ds.data_vars))
        case "no coordinates":
            return ds.drop_vars(list(ds.coords))
        case "one layer":
            return ds.isel(layer=0) if "layer" in ds.dims else ds.drop_vars(list(ds.data_vars))
        case "no layers":
            return ds.isel(layer=[]) if "layer" in ds.dims else ds.drop_vars(list(ds.data_vars))
        case "mean":
            return ds.mean("layer", keep_attrs=True) if "layer" in ds.dims else ds.drop_vars(list(ds.data_vars))
        case "no attrs":
            return ds.drop_attrs(deep=False)
        case "undefined":
            return ds.map(lambda values: values.where(False) if values.dtype.kind == "f" else values, keep_attrs=True)
    return ds.assign_attrs(analysis="nonesuch")


@pytest.mark.parametrize(
    "how", ["no variables", "no coordinates", "one layer", "no layers", "no attrs", "undefined", "other"]
)
@pytest.mark.parametrize("name", PLOTTED)
def test_part_of_a_result_is_drawn_or_refused(name, how):
    refusal(lambda: list(plotting.figures(part_of(results_of(name), how))), told=[""])


@pytest.mark.parametrize("value", WRONG)
def test_what_is_no_result(value):
    assert refusal(partial(plotting.plot, value), told=["plot"])
    assert refusal(lambda: list(plotting.figures(value)), told=["plot"])


# The command line -----------------------------------------------------------------------------------------------------

COMMANDS = typer.main.get_command(app).commands
TYPED = ["-1", "0", "1e400", "nan", "9" * 21, "0-3000000", "", "nonesuch", "[", "a\x1b[31mb", "x.y=["]
NAMES = ("out", "column", "labels", "split", "checkpoint_dir", "destination")  # which any text may be
WITH_TOKENIZER = str(Path(__file__).parents[1] / "ckpt" / "tiny-moe-plus-plus")
OTHER = str(Path(WITH_TOKENIZER).with_name("tiny-mixtral"))
WRITTEN = {
    "source": WITH_TOKENIZER,
    "ckpt": WITH_TOKENIZER,
    "sources": WITH_TOKENIZER,
    "model": WITH_TOKENIZER,
    "paper": "moe-plus-plus",
    "destination": "new",
    "results": "results",
    "texts": "texts.txt",
    "layers": "0",
    "analysis": "gate_choices",
}
UNDER = "zero.layer=0,experts=1"  # which `effect` cannot do without


def typed(command):
    """Arguments that a command takes, by parameter."""
    known = {each.name: each for each in COMMANDS[command].params}
    given = {name: value for name, value in WRITTEN.items() if name in known}
    given |= {"out": "out"} if "out" in known else {}
    given |= {"analysis": {"static": "gate_similarity", "compare": "expert_activation"}.get(command, "gate_choices")}
    given |= {"under": UNDER} if command == "effect" else {}
    given |= {"plan": "plan.json", "ckpt": OTHER} if command == "prune" else {}
    return {name: value for name, value in given.items() if name in known}


def line(command, given):
    words = [command]
    for name, value in given.items():
        parameter = next(each for each in COMMANDS[command].params if each.name == name)
        words += [f"{parameter.opts[0]}={value}"] if parameter.opts[0].startswith("--") else ["--", value]
    last = [word for at, word in enumerate(words) if words[at - 1] == "--"]
    others = [word for at, word in enumerate(words) if word != "--" and words[at - 1] != "--"]
    return [*others, "--", *last, *([OTHER] if command == "compare" else [])] if last else others


def execute(arguments):
    out, err = StringIO(), StringIO()
    drawing = "moe_probe.figures.saving.draw", "moe_probe.figures.draw"
    quiet = [patch(place, lambda *_, **__: []) for place in drawing]
    argv = patch.object(sys, "argv", ["moe-probe", *arguments])
    with argv, quiet[0], quiet[1], redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0, err.getvalue()


def prepare():
    Path("texts.txt").write_text("def f(x):\n")
    results.save(results_of("gate_similarity"), "results/a.nc")
    pruning.Plan("tiny", dict.fromkeys(range(4), (0, 1, 2, 5)), dict.fromkeys(range(4), 8)).save("plan.json")


OF_COMMANDS = [(name, each.name) for name, each in COMMANDS.items() for each in each.params if name != "demo"]
# options of a run have one definition: every value is typed for one command, the most awkward one for the others
EVERY_VALUE = {parameter: command for command, parameter in sorted(OF_COMMANDS, key=lambda each: each[0] == "dynamic")}
DRAWING = ("reproduce", "report")  # take seconds for what they take


def values_typed(command, parameter):
    if command in DRAWING and parameter in ("out", "labels", "column", "split", "config"):
        return []
    every = TYPED[-5:] if parameter in NAMES else TYPED
    chosen = every if EVERY_VALUE[parameter] == command or parameter not in DEFAULTS else ["a\x1b[31mb"]
    refused = [value for value in chosen if (parameter, value) != ("n_jobs", "-1")]
    return [value for value in refused if command not in DRAWING or (parameter, value) != ("layers", "0")]


@pytest.mark.parametrize(("command", "parameter"), OF_COMMANDS)
def test_options_of_a_command(command, parameter):
    prepare()
    flag = getattr(next(each for each in COMMANDS[command].params if each.name == parameter), "is_flag", False)
    failed = []
    for value in values_typed(command, parameter):
        arguments = line(command, {**typed(command), parameter: value})
        try:
            code, said = execute(arguments)
        except Exception as error:
            failed.append(f"{parameter}={value!r}: {type(error).__name__}: {str(error)[:100]}")
            continue
        if code not in (0, 1, 2) or (code and not said.strip()) or "Traceback" in said or (flag and not code):
            failed.append(f"{parameter}={value!r}: code {code}: {said[:200]}")
        if "\x1b" in said:
            failed.append(f"{parameter}={value!r}: escapes reach the terminal")
    assert not failed, "\n".join(["", *failed])


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"demo", "reproduce"}))
def test_commands_are_taken(command):
    prepare()
    code, said = execute(line(command, typed(command)))
    assert code == 0, said


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_command_knows_its_options(command):
    for arguments in ([command, "--nonesuch"], [command, "--nonesuch=1", "x"], ["nonesuch"]):
        code, said = execute(arguments)
        assert code == 2
        assert "nonesuch" in said
        assert "Traceback" not in said


# Damaged checkpoints --------------------------------------------------------------------------------------------------

STRANGE = st.sampled_from([None, True, -1, 0, 1, 7, 2.5, 1e30, 10**12, "", "x", "../x", [], ["x"], {}, {"x": 1}])


@pytest.fixture(scope="session")
def copied(tmp_path_factory):
    return shutil.copytree(FIXTURES / "mixtral" / "checkpoint", tmp_path_factory.mktemp("net") / "checkpoint")


def use(folder):
    opened = moe_probe.load(folder)
    dynamic.run(
        opened,
        [[4, 5, 6]],
        "gate_choices",
        layers=[opened.moe_layers[0]] if opened.moe_layers else None,
        progress=False,
    )


def damaged_json(folder, name, data):
    """Use a checkpoint, of which a JSON file has one strange value."""
    path = folder / name
    whole = path.read_bytes()
    content = json.loads(whole)
    at, key = content, data.draw(st.sampled_from(sorted(content)))
    while isinstance(at[key], dict) and at[key] and data.draw(st.booleans()):
        at = at[key]
        key = data.draw(st.sampled_from(sorted(at)))
    at[key] = data.draw(STRANGE)
    path.write_text(json.dumps(content))
    try:
        refusal(partial(use, folder), told=[""])
    finally:
        path.write_bytes(whole)


@settings(max_examples=60)
@given(data=st.data())
def test_a_strange_configuration(data, copied):
    damaged_json(copied, "config.json", data)


@settings(max_examples=30)
@given(data=st.data())
def test_a_strange_index(data, copied):
    names = [path.name for path in copied.glob("*.index.json")]
    damaged_json(copied, names[0] if names else "config.json", data)


@settings(max_examples=60)
@given(data=st.data())
def test_a_strange_header(data, copied):
    path = sorted(copied.glob("*.safetensors"))[0]
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    key = data.draw(st.sampled_from(sorted(header)))
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", None]))
    value = data.draw(st.one_of(STRANGE, st.just("F64"), st.just([10**18, 64]), st.just([0, 10**15])))
    if field is None or not isinstance(header[key], dict):
        header[key] = value
    else:
        header[key][field] = value
    text = json.dumps(header).encode()
    cut = data.draw(st.sampled_from([None, -1, 100, 8, 0]))
    path.write_bytes((len(text).to_bytes(8, "little") + text + whole[8 + size :])[:cut])
    try:
        refusal(partial(use, copied), told=[""])
    finally:
        path.write_bytes(whole)


@settings(max_examples=25)
@given(data=st.data())
def test_a_strange_tokenizer(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "tokenizer-of-net"
    source = Path(__file__).parents[1] / "ckpt" / "tiny-mixtral"
    if not folder.exists():
        shutil.copytree(source, folder)
    path = folder / data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    whole = path.read_bytes()
    content = json.loads(whole)
    content[data.draw(st.sampled_from(sorted(content)))] = data.draw(STRANGE)
    changed = json.dumps(content).encode()
    path.write_bytes(changed[: data.draw(st.sampled_from([None, None, len(changed) // 2, 0]))])
    try:
        refusal(lambda: dynamic.make_corpus(moe_probe.load(folder), ["A text."]), told=[""])
    finally:
        path.write_bytes(whole)
