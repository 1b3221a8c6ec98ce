"""Without the packages of the extras the core works, and what needs one says which command installs it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough  # each in a new process, which imports everything
ROOT = Path(__file__).parents[1]
WITHOUT = """
import sys
for package in ("pyarrow", "gguf", "textblob", "ray", "distributed", "jupyter"):
    sys.modules[package] = None
import moe_probe
from moe_probe import comparisons, dynamic, explorer, figures, intervene, plotting, pruning, static
"""
NEEDED = {
    "trace": "dynamic.routing_trace('ckpt/tiny-mixtral', ['a b'], path='/nowhere/trace', progress=False)",
    "gguf": "moe_probe.load(folder + '/model.gguf')",
    "pos": "from moe_probe.texts.tagging import _textblob; _textblob(['a'])",
}


def without(code):
    done = subprocess.run([sys.executable, "-c", WITHOUT + code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_needs_no_extra():
    code = """
model = moe_probe.load("ckpt/tiny-mixtral")
results = dynamic.run(model, ["a b", "c d"], ["expert_load", dynamic.OutputSimilarity], progress=False)
print(len(dynamic.names().items()), plotting.plot(results["expert_load"]), static.gate_similarity(model).sizes)
print(explorer.explore(model, ["a b"], progress=False))
"""
    assert "Figure" in without(code)


@pytest.mark.parametrize("extra", NEEDED)
def test_what_needs_an_extra_says_so(extra, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    code = f"""
folder = {str(tmp_path)!r}
try:
    {NEEDED[extra]}
except moe_probe.errors.MissingPackage as error:
    print(error)
"""
    assert f'pip install "moe-probe[{extra}]"' in without(code)


def test_a_parquet_file_of_texts_needs_an_extra(tmp_path):
    (tmp_path / "texts.parquet").write_bytes(b"PAR1")
    code = f"""
try:
    dynamic.expert_load("ckpt/tiny-mixtral", {str(tmp_path / "texts.parquet")!r})
except moe_probe.errors.MissingPackage as error:
    print(error)
"""
    assert 'pip install "moe-probe[trace]"' in without(code)
