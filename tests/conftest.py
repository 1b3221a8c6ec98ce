"""Fixtures: tiny checkpoints in their published layout, and the values that the original code computes on them."""

import os
import shutil
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, on tiny models; before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched; asking and waiting would take minutes

import numpy as np
import pytest
from budget import seconds_here
from hypothesis import settings
from safetensors.torch import load_file

import moe_probe
from moe_probe.errors import MoEProbeError
from moe_probe.facts import facts, numbers
from moe_probe.families.headers import outline

FIXTURES = Path(__file__).parent / "fixtures"
MOST_SECONDS = 10
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

# `make test` gives the same verdict each time; HYPOTHESIS_PROFILE=explore looks further, with new examples each run
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test of `make test` is short: at most MOST_SECONDS of a usual processor."""
    began = time.process_time()
    outcome = yield
    took = time.process_time() - began
    if took > MOST_SECONDS and item.get_closest_marker("thorough") is None and took > seconds_here(MOST_SECONDS):
        pytest.fail(f"{took:.0f} s of the processor are too many for a test; make it smaller, or thorough.")
    return outcome


@pytest.fixture(scope="session")
def golden():
    """Values of every experiment of arXiv 2406.18219, by `<family>.<name>...`."""
    folder = FIXTURES / "look_into_moes"
    return load_file(folder / "golden.safetensors") | load_file(folder / "golden_grok1.safetensors")


@pytest.fixture(scope="session")
def mixtral():
    return moe_probe.load(FIXTURES / "mixtral" / "checkpoint")


@pytest.fixture(scope="session")
def mistral():
    return moe_probe.load(FIXTURES / "mistral" / "checkpoint")


@pytest.fixture(scope="session")
def deepseek():
    return moe_probe.load(FIXTURES / "deepseek" / "checkpoint")


@pytest.fixture(scope="session")
def grok():
    return moe_probe.load(FIXTURES / "grok1_hf" / "checkpoint")


LOAD = moe_probe.load


def load_and_outline(source, **options):
    """`moe_probe.load`; of a folder or file, compared with what its headers say."""
    told = outline(str(source), options.get("config")) if isinstance(source, str | Path) else None
    try:
        model = LOAD(source, **options)
    except MoEProbeError:
        assert told is None, "headers describe what load refuses"
        raise
    if told is not None:
        assert facts(told) == facts(model)
        assert numbers(told) == numbers(model)
    return model


@pytest.fixture
def headers_say_the_same(monkeypatch):
    """What a test opens is also described by headers alone, which has to give the same facts."""
    monkeypatch.setattr(moe_probe, "load", load_and_outline)


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made, but not turned into files' contents, which is most of the time."""
    monkeypatch.setattr("moe_probe.figures.album.thumbnail", lambda figure: np.zeros((2, 2, 4), np.uint8))
    monkeypatch.setattr("moe_probe.figures.album.write_figure", lambda figure, path, dpi: path)


@pytest.fixture(scope="session")
def browser():
    """Chromium, for tests of pages."""
    if CHROMIUM is None and "REQUIRE_BROWSER" not in os.environ:
        pytest.skip("no chromium; .ci/run installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
