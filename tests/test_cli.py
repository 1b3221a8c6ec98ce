"""The command line, as a user runs it."""

import importlib
import inspect
import json
import subprocess
import sys
import typing
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import xarray as xr

from moe_probe.cli import main
from moe_probe.cli.options import FIGURE_OPTIONS, MODEL_OPTIONS, parse_layers, split_name
from moe_probe.errors import InputError
from moe_probe.options import DEFAULTS
from moe_probe.results import load_result

ROOT = Path(__file__).parents[1]


@dataclass
class Done:
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments):
    """A command in this process: importing torch anew for each would take longer than the commands themselves."""
    out, err = StringIO(), StringIO()
    typed = patch.object(sys, "argv", ["moe-probe", *map(str, arguments)])
    with typed, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main()
    return Done(ended.value.code or 0, out.getvalue(), err.getvalue())


def test_the_installed_command_runs_and_refuses_without_a_traceback():
    command = Path(sys.executable).with_name("moe-probe")
    done = subprocess.run([command, "info", "nowhere"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "not a folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_static_writes_results_and_figures_and_redraws_them(tmp_path):
    out = run("static", "ckpt/tiny-mixtral", "--analysis", "similarity", "--layers", "0,2-3", "-o", tmp_path)
    assert out.returncode == 0, out.stderr
    assert {path.name for path in tmp_path.glob("*.nc")} == {"similarity_matrix.nc", "similarity_neuron_mean.nc"}
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert "similarity_matrix_cosine.pdf" in drawn
    for path in (tmp_path / "figures").iterdir():
        path.unlink()
    assert run("figures", tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == drawn


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "nowhere"], "not a folder"),
        (["static", "ckpt/tiny-mistral", "-o", "out/x"], "dense"),
        (["static", "ckpt/tiny-mixtral", "--analysis", "magic", "-o", "out/x"], "similarity"),
        (["static", "ckpt/tiny-mixtral", "--layers", "two", "-o", "out/x"], "0,5,10-12"),
        (["static", "ckpt/tiny-mixtral", "--level", "atom", "-o", "out/x"], "atom"),
        (["figures", "tests"], "no results"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_code_2(arguments, words):
    out = run(*arguments)
    assert out.returncode == 2
    assert words in out.stderr.replace("\n", " ")
    assert "Traceback" not in out.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        ImportError("lib.so: failed to map segment from shared object"),
    ],
)
def test_full_memory_is_one_sentence_and_code_1(error, monkeypatch):
    monkeypatch.setattr("moe_probe.cli.tables.info_table", Mock(side_effect=error))
    done = run("info", "ckpt/tiny-mixtral")
    assert done.returncode == 1
    assert done.stderr.startswith("moe-probe: The memory of this machine is full;")


def test_a_layer_that_is_named_twice_is_refused(tmp_path):
    done = run("static", "ckpt/tiny-mixtral", "--layers", "0,0", "-o", tmp_path)
    assert done.returncode == 2
    assert "names layer 0 more than once" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("Mixtral 8x7B=ckpt/tiny-mixtral", ("Mixtral 8x7B", "ckpt/tiny-mixtral")),
        ("模型 $x$=a=b", ("模型 $x$", "a=b")),
        ("ckpt/tiny-mixtral", (None, "ckpt/tiny-mixtral")),
        ("mistralai/Mixtral-8x7B-v0.1", (None, "mistralai/Mixtral-8x7B-v0.1")),
    ],
)
def test_a_model_is_named_before_its_folder(source, parts):
    assert split_name(source) == parts


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path):
    (tmp_path / "a=b").mkdir()
    assert split_name(str(tmp_path / "a=b")) == (None, str(tmp_path / "a=b"))


@pytest.mark.parametrize("source", ["=ckpt/tiny-mixtral", "name=", " =x"])
def test_half_a_name_is_refused(source):
    with pytest.raises(InputError, match="pass something like 'Mixtral 8x7B=FOLDER'"):
        split_name(source)


def test_a_name_reaches_info_and_results(tmp_path):
    named = "Größe $1$=ckpt/tiny-mixtral"
    assert run("info", named).stdout.startswith("Größe $1$")
    assert json.loads(run("info", named, "--json").stdout)["name"] == "Größe $1$"
    done = run("static", named, "--analysis", "gate_similarity", "--layers", "0", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    with xr.open_dataset(next(tmp_path.glob("*.nc"))) as found:
        assert found.attrs["model"] == "Größe $1$"


def test_layers_are_read_as_people_write_them():
    assert parse_layers("0,5,10-12") == [0, 5, 10, 11, 12]


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("tiny-mistral", ["mistral", "188,992 in all, 188,992 active", "bfloat16"]),
        ("tiny-mixtral", ["8 ffn; 96 neurons", "707,136 in all"]),
        ("tiny-deepseek-moe", ["16 ffn + 2 shared", "3: 1-3"]),
        ("tiny-grok-1", ["674,880 in all", "int8 with scales", "50 files"]),
        ("tiny-moe-plus-plus", ["8 ffn, 2 constant, 1 copy, 1 zero", "skip them", "at most"]),
        ("tiny-mh-moe", ["336,960 in all", "2: 1, 3", "per sub-token"]),
        ("tiny-x-moe", ["469,824 in all", "1 per token"]),
    ],
)
def test_info_says_what_a_checkpoint_is_made_of(folder, words):
    done = run("info", f"ckpt/{folder}")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.replace("│", " ").split())
    for word in words:
        assert word in text


def test_dynamic_writes_results_and_convert_a_folder(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "def f(x):", "domain": "code"}\n{"text": "1 + 1 = 2"}\n')
    names = ["--analysis", "output_similarity", "--analysis", "gate_choices"]
    options = ["--texts", tmp_path / "texts.jsonl", "--baseline", "ckpt/tiny-mistral", "-o", tmp_path / "out"]
    done = run("dynamic", "ckpt/tiny-mixtral", *names, *options)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nc")) == ["gate_choices.nc", "output_similarity.nc"]
    assert (tmp_path / "out" / "figures" / "gate_choices_layer0.pdf").exists()
    assert load_result(tmp_path / "out" / "output_similarity.nc").expert.values[-1] == "F"
    done = run("convert", "ckpt/tiny-grok-1", tmp_path / "grok", "--keep-int8")
    assert done.returncode == 0, done.stderr
    again = run("convert", "ckpt/tiny-grok-1", tmp_path / "grok")
    assert again.returncode == 2
    assert "exists already" in " ".join(again.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--texts", "none.txt"], "not a file of texts"),
        (["--texts", "README.md", "--analysis", "nonesuch"], "no analysis 'nonesuch'"),
        (["--texts", "README.md", "--layers", "9"], "has the MoE layers 0-3"),
    ],
)
def test_bad_input_of_dynamic_is_one_sentence(arguments, sentence, tmp_path):
    done = run("dynamic", "ckpt/tiny-mixtral", *arguments, "-o", tmp_path)
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())


def test_a_trace_takes_the_place_of_the_model(tmp_path):
    names = [part for name in ("routing_trace", "expert_load") for part in ("--analysis", name)]
    names += ["--labels", "domain", "--layers", "2"]
    run("dynamic", "ckpt/tiny-mixtral", "--texts", "ckpt/texts.jsonl", *names, "--figures", "none", "-o", tmp_path)
    done = run("dynamic", tmp_path / "trace", "--figures", "none", "-o", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert "Wrote 7 results (.nc)" in done.stdout
    expected, found = (load_result(folder / "expert_load.nc") for folder in (tmp_path, tmp_path / "again"))
    xr.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.attrs == expected.attrs
    assert sorted(found.label.values) == ["arithmetic", "code", "prose"]
    done = run("dynamic", tmp_path / "trace", "--analysis", "output_norms", "-o", tmp_path)
    assert done.returncode == 2
    assert "output_norms needs outputs, which a trace does not hold" in " ".join(done.stderr.split())


def test_a_model_without_texts_is_refused(tmp_path):
    done = run("dynamic", "ckpt/tiny-mixtral", "-o", tmp_path)
    assert done.returncode == 2
    assert "is a model, not a routing trace; pass texts to run it on" in " ".join(done.stderr.split())


def test_results_without_a_figure_are_passed_over(tmp_path):
    names = ["--analysis", "record", "--analysis", "expert_load", "--layers", "2"]
    done = run("dynamic", "ckpt/tiny-mixtral", "--texts", "ckpt/texts.jsonl", *names, "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Wrote 2 results (.nc) and 2 figures (.pdf)" in " ".join(done.stdout.split())
    done = run("figures", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Drew 2 figures of 1 results" in " ".join(done.stdout.split())


def test_generate_tells_prompt_and_generated_tokens_apart(tmp_path):
    (tmp_path / "prompts.txt").write_text("def f(x):\n")
    names = ["--analysis", "gate_choices", "--max-new-tokens", "4", "--layers", "1", "--dtype", "bfloat16"]
    done = run("generate", "ckpt/tiny-mixtral", "--texts", tmp_path / "prompts.txt", *names, "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    labels = load_result(tmp_path / "gate_choices.nc").label.values.tolist()
    assert labels[-3:] == ["generated"] * 3
    assert labels[0] == "prompt"


def test_options_reach_the_analyses(tmp_path):
    wanted = ["--analysis", "pca", "--level", "matrix", "--layers", "1", "--option", "pca.n_components=3"]
    assert run("static", "ckpt/tiny-mixtral", *wanted, "-o", tmp_path).returncode == 0
    assert load_result(tmp_path / "pca_matrix.nc").sizes["component"] == 3
    wanted = ["--analysis", "output_similarity", "--layers", "1", "--option", "output_similarity.metric=angular"]
    assert run("dynamic", "ckpt/tiny-mixtral", "--texts", "ckpt/texts.jsonl", *wanted, "-o", tmp_path).returncode == 0
    (path,) = tmp_path.glob("output_similarity*.nc")
    assert load_result(path).attrs["metric"] == "angular"
    done = run("static", "ckpt/tiny-mixtral", "--option", "pca.layers=[1]", "-o", tmp_path)
    assert done.returncode == 2
    assert "no option of pca 'layers'; there are n_components" in " ".join(done.stderr.split())


def test_compare_makes_what_can_be_made_and_says_what_cannot(tmp_path):
    pair = ["ckpt/tiny-mixtral", "ckpt/tiny-mixtral", "--label", "a", "--label", "b"]
    (tmp_path / "texts.txt").write_text("def f(x): return x\n1 + 1 = 2\n")
    done = run("compare", *pair, "--texts", tmp_path / "texts.txt", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    names = ["expert_activation", "router_saturation", "routing_drift", "weight_drift"]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.nc")) == names
    assert (tmp_path / "out" / "figures" / "routing_drift.pdf").exists()
    assert float(load_result(tmp_path / "out" / "routing_drift.nc").changed.max()) == 0
    others = ["ckpt/tiny-mixtral", "ckpt/tiny-mh-moe", "--texts", tmp_path / "texts.txt", "-o", tmp_path / "other"]
    done = run("compare", *others)
    assert done.returncode == 0, done.stderr
    assert "Skipping weight_drift: Layer 0: tiny-mixtral has 8 experts" in " ".join(done.stdout.split())
    assert [path.stem for path in (tmp_path / "other").glob("*.nc")] == ["expert_activation"]
    done = run("compare", *others, "--analysis", "weight_drift")
    assert done.returncode == 2
    for arguments, sentence in (
        (["--analysis", "magic"], "no comparison 'magic'"),
        (
            ["--option", "routing_drift.width=1"],
            "no option of routing_drift 'width'; there are bins, bootstrap, chance",
        ),
    ):
        done = run("compare", *others, *arguments)
        assert done.returncode == 2
        assert sentence in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("factors=1", "is not an option; pass one like"),
        ("expert_capacity.factor=1", "no option of expert_capacity 'factor'; did you mean 'factors'?"),
        ("nonesuch.x=1", "no analysis 'nonesuch'"),
    ],
)
def test_options_of_analyses_are_checked(option, sentence, tmp_path):
    done = run("dynamic", "ckpt/tiny-mixtral", "--texts", "ckpt/texts.jsonl", "--option", option, "-o", tmp_path)
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())


def test_figures_are_drawn_in_the_format_and_the_number_asked_for(tmp_path):
    asked = ("static", "ckpt/tiny-mixtral", "--analysis", "router_spectrum", "-o")
    assert run(*asked, tmp_path / "a", "--format", "png", "--dpi", 40).returncode == 0
    small = list((tmp_path / "a" / "figures").iterdir())
    assert small
    assert {path.suffix for path in small} == {".png"}
    assert run("figures", tmp_path / "a", "--format", "png", "--dpi", 80, "--figures", "main").returncode == 0
    assert run(*asked, tmp_path / "b", "--figures", "none").returncode == 0
    assert not (tmp_path / "b" / "figures").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--format", "bmp", "pdf, png, svg"), ("--dpi", 3, "30"), ("--figures", "every", "main, all, none")],
)
def test_a_slip_in_the_options_of_figures_is_refused_before_anything_runs(tmp_path, option, value, words):
    done = run("static", "ckpt/tiny-mixtral", "-o", tmp_path, option, value)
    assert done.returncode == 2
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def parameters(command):
    return inspect.signature(importlib.import_module(f"moe_probe.cli.commands.{command}").command).parameters


COMMANDS = sorted(path.stem for path in (ROOT / "moe_probe" / "cli" / "commands").glob("[!_]*.py"))


def test_an_option_is_the_same_on_every_command_that_has_it():
    told = {}
    for command in COMMANDS:
        for name, each in parameters(command).items():
            if name in (*DEFAULTS, *MODEL_OPTIONS, *FIGURE_OPTIONS, "table", "option"):
                option = typing.get_args(each.annotation)[1]
                told.setdefault(name, set()).add((option.help, option.metavar, repr(each.default)))
    told.pop("dtype")  # of convert, what is written
    assert {name: len(kinds) for name, kinds in told.items()} == dict.fromkeys(told, 1)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_does_says_which_options_it_has(command):
    names = parameters(command).keys()
    source = (ROOT / "moe_probe" / "cli" / "commands" / f"{command}.py").read_text()
    if "    write(" in source or "draw(" in source:
        assert set(FIGURE_OPTIONS) <= names
    if "    write(" in source:
        assert "table" in names
    if "texts" in names:
        assert {"tokenizer", "column", "device", "under", "layers"} - names <= (
            {"layers"} if command == "effect" else set()
        )
        assert command == "generate" or {"labels", "unit", "max_length"} <= names
    assert command in ("figures", "info") or "out" in names or "destination" in names
