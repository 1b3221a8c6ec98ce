"""The wheel, installed in a clean environment, does what the README says, outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    return next(folder.glob("moe_probe-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A new environment with the wheel; what it depends on is found where it is installed already, not the checkout."""
    folder = tmp_path_factory.mktemp("clean") / "environment"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    )
    target = Path(site.stdout.strip())
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel]
    subprocess.run(command, check=True)
    (target / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    return python


def run(python, folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [python, "-m", "moe_probe", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_wheel_is_small_and_has_what_the_demo_needs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.stat().st_size < MOST_BYTES
    assert {"moe_probe/ckpt/texts.jsonl", "moe_probe/ckpt/tiny-mixtral/config.json", "moe_probe/py.typed"} <= names
    assert not [name for name in names if name.startswith("tests") or name.endswith("train_tiny.py")]


def test_the_installed_package_is_the_wheels(installed, tmp_path):
    code = "import moe_probe; print(moe_probe.__file__)"
    shown = subprocess.run([installed, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert str(installed.parents[1]) in shown.stdout


def test_version_and_info_work_outside_the_checkout(installed, tmp_path):
    assert run(installed, tmp_path, "--version").stdout.startswith("moe-probe 0.")
    done = run(installed, tmp_path, "info", str(ROOT / "ckpt" / "tiny-mixtral"))
    assert "8 ffn" in done.stdout, done.stderr


def test_the_demo_runs_outside_the_checkout(installed, tmp_path):
    done = run(installed, tmp_path, "demo", "-o", "demo", "--only", "tiny-mixtral")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "index.html").stat().st_size > 100_000
    assert (tmp_path / "demo" / "explorer.html").exists()
