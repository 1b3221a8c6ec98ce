"""The wheel, installed in a clean environment, does what the README says, outside the checkout."""

import os
import runpy
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_BYTES, MOST_CODE_BYTES = 5_000_000, 1_000_000  # of what the demo runs on, and of the rest


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


@pytest.fixture(scope="module")
def source_release(tmp_path_factory):
    tools, folder = tmp_path_factory.mktemp("tools"), tmp_path_factory.mktemp("sdist")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", tools, "hatchling"], check=True)
    code = f"from hatchling.build import build_sdist; print(build_sdist({str(folder)!r}))"
    environment = {**os.environ, "PYTHONPATH": str(tools)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True)
    return next(folder.glob("moe_probe-*.tar.gz"))


def outside():
    """The environment without a path to the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(python, folder, *arguments):
    return subprocess.run(
        [python, "-m", "moe_probe", *arguments], cwd=folder, env=outside(), capture_output=True, text=True
    )


def test_the_wheel_is_small_and_has_what_the_demo_needs(wheel):
    archive = zipfile.ZipFile(wheel)
    names = set(archive.namelist())
    data = [entry for entry in archive.infolist() if entry.filename.startswith("moe_probe/ckpt/")]
    assert sum(entry.compress_size for entry in data) < MOST_BYTES
    assert wheel.stat().st_size < MOST_BYTES + MOST_CODE_BYTES
    assert {"moe_probe/ckpt/texts.jsonl", "moe_probe/ckpt/tiny-mixtral/config.json", "moe_probe/py.typed"} <= names
    assert not [name for name in names if name.startswith("tests") or name.endswith("train_tiny.py")]


@pytest.mark.thorough
def test_the_source_release_is_small_and_makes_the_same_wheel(source_release, wheel, tmp_path):
    assert source_release.stat().st_size < MOST_BYTES + MOST_CODE_BYTES
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source_release]
    subprocess.run(command, check=True)
    made = zipfile.ZipFile(next(tmp_path.glob("moe_probe-*.whl"))).namelist()
    assert sorted(made) == sorted(zipfile.ZipFile(wheel).namelist())


def test_the_metadata_names_every_extra_and_the_license(wheel):
    archive = zipfile.ZipFile(wheel)
    written = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    extras = {line.removeprefix("Provides-Extra: ") for line in written.splitlines() if line.startswith("Provides-Ex")}
    assert {"trace", "gguf", "pos", "ray", "dask", "notebook", "all"} <= extras
    for field in ("License-Expression: Apache-2.0", "License-File: LICENSE", "Requires-Python: >=3.11", "Keywords: "):
        assert field in written


def test_the_long_description_has_no_link_that_leads_nowhere(wheel):
    archive = zipfile.ZipFile(wheel)
    written = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    description = written.partition("\n\n")[2]
    assert description.startswith("# ")
    assert "](docs/" not in description
    assert "![" not in description or "](http" in description
    assert "are in the repository" in description or "](http" in description
    assert "moe-probe report" in description


def test_relative_links_go_below_the_address_of_the_project():
    build = runpy.run_path(str(ROOT / "hatch_build.py"), run_name="hatch_build")
    readme = "# A\n\n![b](docs/b.png)\n\n[c](docs/c.md) [d](https://d) [e](#e)\n"
    links = "# A\n\n![b](https://x/docs/b.png)\n\n[c](https://x/docs/c.md) [d](https://d) [e](#e)\n"
    assert build["long_description"](readme, "https://x/") == links
    assert build["long_description"](readme, None).endswith("repository.\n\nc [d](https://d) [e](#e)\n")


def test_the_installed_package_is_the_wheels(installed, tmp_path):
    code = "import moe_probe; print(moe_probe.__file__)"
    shown = subprocess.run([installed, "-c", code], cwd=tmp_path, env=outside(), capture_output=True, text=True)
    assert str(installed.parents[1]) in shown.stdout


def test_version_and_info_work_outside_the_checkout(installed, tmp_path):
    assert run(installed, tmp_path, "--version").stdout.startswith("moe-probe 0.")
    done = run(installed, tmp_path, "info", str(ROOT / "ckpt" / "tiny-mixtral"))
    assert "8 ffn" in done.stdout, done.stderr


@pytest.mark.thorough
def test_the_demo_runs_outside_the_checkout(installed, tmp_path):
    done = run(installed, tmp_path, "demo", "-o", "demo", "--only", "tiny-mixtral")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "index.html").stat().st_size > 100_000
    assert (tmp_path / "demo" / "explorer.html").exists()
