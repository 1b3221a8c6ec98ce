"""The command line, as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from moe_probe.cli import parse_layers

ROOT = Path(__file__).parents[1]


def run(*arguments):
    command = [sys.executable, "-c", "from moe_probe.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_static_writes_results_and_figures_and_redraws_them(tmp_path):
    out = run("static", "ckpt/tiny-mixtral", "--analysis", "similarity", "--layers", "0,2-3", "-o", tmp_path)
    assert out.returncode == 0, out.stderr
    assert {path.name for path in tmp_path.glob("*.nc")} == {"similarity_matrix.nc", "similarity_neuron_mean.nc"}
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert "similarity_matrix_cosine_layer3_scale-all.pdf" in drawn
    for path in (tmp_path / "figures").iterdir():
        path.unlink()
    assert run("figures", tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == drawn


def test_info_tells_what_the_model_is_made_of():
    out = run("info", "ckpt/tiny-mixtral").stdout
    assert "707,136" in out
    assert "8 ffn" in out


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


def test_layers_are_read_as_people_write_them():
    assert parse_layers("0,5,10-12") == [0, 5, 10, 11, 12]
