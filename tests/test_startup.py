"""What starts at once imports nothing heavy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = ROOT / "moe_probe" / "cli" / "commands"

HEAVY = {"torch", "transformers", "pandas", "xarray", "matplotlib", "scipy", "sklearn", "pyarrow", "h5py"}
NOT_AT_ALL = HEAVY | {"numpy", "typeguard", "joblib", "jinja2"}


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


@pytest.mark.parametrize("command", sorted(path.stem for path in COMMANDS.glob("[!_]*.py")))
def test_help_of_a_command_runs_no_analysis(command):
    code = f"import sys; sys.argv = ['moe-probe', '{command}', '--help']\nfrom moe_probe.cli import main\nmain()"
    loaded, written = imported(code)
    assert f"moe-probe {command}" in written
    assert not loaded & HEAVY


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--config", "num_experts_per_tok=1"]])
def test_info_of_a_folder_reads_json_alone(arguments):
    told = ["moe-probe", "info", str(ROOT / "ckpt" / "tiny-mixtral"), *arguments]
    loaded, written = imported(f"import sys; sys.argv = {told}\nfrom moe_probe.cli import main\nmain()")
    assert "mixtral" in written
    assert not loaded & HEAVY


def test_parts_are_found_in_a_new_process():
    code = "import moe_probe\nprint(moe_probe.plotting.expert_load.balance.__name__, moe_probe.load.__name__)"
    assert "balance load" in imported(code)[1]
    assert "dynamic" in dir(__import__("moe_probe"))


@pytest.mark.parametrize("part", ["errors", "results", "options", "families.live", "checkpoint"])
def test_every_module_is_an_attribute_in_a_new_process(part):
    assert part.split(".")[-1] in imported(f"import moe_probe\nprint(moe_probe.{part}.__name__)")[1]


def test_what_there_is_not_is_no_attribute():
    assert not hasattr(__import__("moe_probe"), "nonesuch")
