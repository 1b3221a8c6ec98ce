"""A loaded module computes with what was read, and with nothing else."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import FIXTURES
from transformers.utils import logging as transformers_logging

import moe_probe
from moe_probe.errors import MissingWeight
from moe_probe.families.modules import require_values
from moe_probe.forward.streaming import empty_module


@pytest.mark.parametrize("name", ["tiny-grok-1", "tiny-mh-moe"])
def test_a_tied_head_is_tied(name):
    module = moe_probe.load(f"ckpt/{name}").module
    assert module.config.tie_word_embeddings
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight


def test_nothing_is_unwritten():
    module = moe_probe.load("ckpt/tiny-mixtral").module
    require_values(module)
    with pytest.raises(MissingWeight, match=r"model.norm.weight"):
        require_values(module, ["model.norm.weight"])
    module.model.layers[1].to("meta")
    with pytest.raises(MissingWeight, match=r"model.layers.1"):
        require_values(module)


def test_masks_of_minus_infinity_are_weights():
    model = moe_probe.load("ckpt/tiny-mixtral")
    with torch.no_grad():
        model.module.model.layers[0].mlp.gate.weight[3] = float("-inf")
    require_values(model.module)


def test_threads_that_open_models_at_once_leave_each_other_their_dtypes():
    verbosity = transformers_logging.get_verbosity()

    def opened(_):
        model = moe_probe.load(FIXTURES / "mixtral" / "checkpoint")  # stored as bfloat16
        modules = model.module, empty_module(model)
        return {parameter.dtype for module in modules for parameter in module.parameters()}

    with ThreadPoolExecutor(4) as pool:
        dtypes = set().union(*pool.map(opened, range(12)))
    assert dtypes == {torch.float32}
    assert torch.get_default_dtype() == torch.float32
    assert transformers_logging.get_verbosity() == verbosity
