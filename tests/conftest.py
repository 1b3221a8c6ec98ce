"""Fixtures: tiny checkpoints in their published layout, and the values that the original code computes on them."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, on tiny models; before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched; asking and waiting would take minutes

import pytest
from hypothesis import settings
from safetensors.torch import load_file

import moe_probe

FIXTURES = Path(__file__).parent / "fixtures"

# `make test` gives the same verdict each time; HYPOTHESIS_PROFILE=explore looks further, with new examples each run
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


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
