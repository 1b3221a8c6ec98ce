"""Fixtures: tiny checkpoints in their published layout, and the values that the original code computes on them."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

import moe_probe

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def golden():
    """Values of every experiment of arXiv 2406.18219, by `<family>.<name>...`."""
    return load_file(FIXTURES / "look_into_moes" / "golden.safetensors")


@pytest.fixture(scope="session")
def mixtral():
    return moe_probe.load(FIXTURES / "mixtral" / "checkpoint")


@pytest.fixture(scope="session")
def mistral():
    return moe_probe.load(FIXTURES / "mistral" / "checkpoint")


@pytest.fixture(scope="session")
def deepseek():
    return moe_probe.load(FIXTURES / "deepseek" / "checkpoint")
