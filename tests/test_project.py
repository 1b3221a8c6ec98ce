"""The files of the project agree with each other."""

import re
import tomllib
from pathlib import Path

import architecture_picture
import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_conda_environment_has_the_packages_of_the_project():
    extras = PROJECT["project"]["optional-dependencies"]
    of_extras = [each for name in ("trace", "gguf", "pos", "notebook") for each in extras[name]]
    expected = [*PROJECT["project"]["dependencies"], *of_extras]
    written = (ROOT / "env.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^      - (.*)$", written, re.MULTILINE)
    assert sorted(listed) == sorted([*expected, "--editable ."])
    python = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert f"- python={python}\n" in written


def test_the_lowest_versions_are_those_of_the_ranges():
    extras = PROJECT["project"]["optional-dependencies"]
    of_extras = [each for name in ("trace", "gguf", "pos") for each in extras[name]]
    ranges = (re.match(r"([\w-]+)>=([\d.]+)", each) for each in [*PROJECT["project"]["dependencies"], *of_extras])
    stated = dict(match.groups() for match in ranges)
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    lowest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert lowest.keys() == stated.keys()
    assert all(f"{version}.".startswith(f"{stated[name]}.") for name, version in lowest.items())


def test_every_extra_that_an_error_names_exists():
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "moe_probe").rglob("*.py"))
    named = {extra for source in sources for extra in re.findall(r'(?:needed|Extra)\([^()\n]*?, "(\w+)",', source)}
    assert named
    assert named <= PROJECT["project"]["optional-dependencies"].keys()


def test_the_picture_of_the_rooms_is_that_of_the_rule_about_imports():
    assert architecture_picture.PICTURE.read_text(encoding="utf-8") == architecture_picture.picture()
    assert {room for arrow in architecture_picture.arrows() for room in arrow} == set(architecture_picture.ROOMS)


def test_every_arrow_of_the_picture_points_down():
    rooms = architecture_picture.ROOMS
    assert all(rooms[room][1] < rooms[other][1] for room, other in architecture_picture.arrows())


def test_every_room_has_a_line_on_the_page():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(
        re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("|")))
    )
    assert set(architecture_picture.ALLOWED) - {"moved", "__init__", "__main__"} <= named


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / link).exists(), link


def test_the_license_is_the_stated_one():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
