"""What starts at once imports nothing heavy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf_files
import packing
import pytest
import test_releases
import torch

ROOT = Path(__file__).parents[1]
COMMANDS = ROOT / "moe_probe" / "cli" / "commands"

HEAVY = {"torch", "transformers", "pandas", "xarray", "matplotlib", "scipy", "sklearn", "pyarrow", "h5py"}
NOT_AT_ALL = HEAVY | {"numpy", "typeguard", "joblib", "jinja2", "filelock", "psutil"}


def imported(code, **environment):
    """Packages that are loaded after some code has run in a new process."""
    shown = (
        "import atexit, sys; atexit.register(lambda: print('\\n' + ' '.join(m for m in sys.modules if '.' not in m)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", shown + code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    return set(done.stdout.splitlines()[-1].split()), done.stdout


def test_importing_the_package_loads_none_of_its_parts():
    assert not imported("import moe_probe")[0] & (NOT_AT_ALL | {"rich", "typer"})


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonesuch"]])
def test_the_list_of_commands_is_read_without_the_commands(arguments):
    loaded, _ = imported(f"import sys; sys.argv = ['moe-probe', *{arguments}]\nfrom moe_probe.cli import main\nmain()")
    assert "typer" in loaded
    assert not loaded & NOT_AT_ALL


def test_completion_of_commands_reads_no_command():
    environment = {"_MOE_PROBE_COMPLETE": "complete_bash", "COMP_WORDS": "moe-probe sta", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['moe-probe']\nfrom moe_probe.cli import main\nmain()"
    loaded, written = imported(code, **environment)
    assert "static" in written.split()
    assert not loaded & NOT_AT_ALL


HELP = """
import contextlib, sys
from moe_probe.cli import main
for command in {commands}:
    sys.argv = ["moe-probe", command, "--help"]
    with contextlib.suppress(SystemExit):
        main()
"""


def test_help_of_no_command_runs_an_analysis():
    commands = sorted(path.stem for path in COMMANDS.glob("[!_]*.py"))
    loaded, written = imported(HELP.format(commands=commands))
    assert not [command for command in commands if f"moe-probe {command}" not in written]
    assert not loaded & HEAVY


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--config", "num_experts_per_tok=1"]])
def test_info_of_a_folder_reads_json_alone(arguments):
    told = ["moe-probe", "info", str(ROOT / "ckpt" / "tiny-mixtral"), *arguments]
    loaded, written = imported(f"import sys; sys.argv = {told}\nfrom moe_probe.cli import main\nmain()")
    assert "mixtral" in written
    assert not loaded & HEAVY


def packed(folder):
    """Mixtral with its experts in GPTQ."""
    made = test_releases.mixtral()
    for key in [key for key in made if ".experts." in key]:
        rows, columns = made.pop(key).shape
        stored, _ = packing.gptq(4, 8, rows, columns, version=1, order=True)
        made |= {key.removesuffix("weight") + part: tensor for part, tensor in stored.items()}
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": True}
    return test_releases.write(folder, made, {**test_releases.MIXTRAL, "quantization_config": quantization})


def fused(folder):
    """gpt-oss, all experts of a layer in one tensor."""
    sizes = {"intermediate_size": 24, "num_local_experts": 4, "head_dim": 8, "attention_bias": True}
    config = {**test_releases.SMALL, **sizes, "model_type": "gpt_oss"}
    return test_releases.write(folder, test_releases.gpt_oss(), config)


def declared(folder):
    """A model that transformers does not have."""
    made = test_releases.Made()
    made.new("model.embed_tokens.weight", 48, 32)
    made.new("model.layers.0.mlp.router.weight", 2, 32)
    for expert in range(2):
        for name, shape in {"gate": (24, 32), "up": (24, 32), "down": (32, 24)}.items():
            made.new(f"model.layers.0.mlp.experts.{expert}.{name}_proj.weight", *shape)
    config = {"model_type": "xverse", "hidden_size": 32, "num_hidden_layers": 1, "num_experts_per_tok": 1}
    return test_releases.write(folder, made, config)


def of_llama_cpp(folder):
    """Mixtral as GGUF, in blocks of 4 bits."""
    made = gguf_files.tensors_of(gguf_files.original("Mixtral", gguf_files.CASES["llama"][1]), permuted=True)
    folder.mkdir()
    return gguf_files.write(folder / "m.gguf", "llama", made, gguf_files.META, kinds=["Q4_0"])


def pickled(folder):
    """Mixtral in a file of torch.save."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(test_releases.MIXTRAL))
    torch.save(dict(test_releases.mixtral()), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("make", [packed, fused, declared, of_llama_cpp, pickled])
def test_info_of_models_in_every_kind_of_file_loads_nothing_heavy(tmp_path, make):
    told = ["moe-probe", "info", str(make(tmp_path / "m")), "--json"]
    loaded, written = imported(f"import sys; sys.argv = {told}\nfrom moe_probe.cli import main\nmain()")
    assert '"moe_layers"' in written
    assert not loaded & HEAVY


def test_parts_are_found_in_a_new_process():
    code = "import moe_probe\nprint(moe_probe.plotting.expert_load.balance.__name__, moe_probe.load.__name__)"
    assert "balance load" in imported(code)[1]
    assert "dynamic" in dir(__import__("moe_probe"))


def test_processes_that_draw_a_page_load_no_models():
    loaded, _ = imported("from moe_probe.report.page import draw_section")
    assert "matplotlib" in loaded
    assert not loaded & {"torch", "transformers", "sklearn"}


MODULES = ["errors", "results", "options", "checkpoint"]


@pytest.mark.parametrize(
    "part", ["families.live", *(pytest.param(each, marks=pytest.mark.thorough) for each in MODULES)]
)
def test_every_module_is_an_attribute_in_a_new_process(part):
    assert part.split(".")[-1] in imported(f"import moe_probe\nprint(moe_probe.{part}.__name__)")[1]


def test_what_there_is_not_is_no_attribute():
    assert not hasattr(__import__("moe_probe"), "nonesuch")
