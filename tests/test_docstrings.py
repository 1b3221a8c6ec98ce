"""The examples in docstrings run, and give what they say."""

import doctest
import importlib
import pkgutil
from contextlib import chdir

import pytest
from examples import CHECKS, prepare

import moe_probe

MODULES = sorted(info.name for info in pkgutil.walk_packages(moe_probe.__path__, "moe_probe."))
FINDER = doctest.DocTestFinder(exclude_empty=True)


def examples(name):
    """The docstrings of a module that have examples."""
    return [found for found in FINDER.find(importlib.import_module(name)) if found.examples]


@pytest.mark.parametrize(
    "name", [name for name in MODULES if ">>>" in importlib.util.find_spec(name).loader.get_source(name)]
)
def test_examples_run(name, tmp_path):
    prepare(tmp_path)
    found = []
    with chdir(tmp_path):
        for example in examples(name):
            doctest.DocTestRunner(optionflags=CHECKS).run(example, out=found.append)
    assert examples(name)
    assert not found, "".join(found)
