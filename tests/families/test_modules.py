"""A loaded module computes with what was read, and with nothing else."""

import pytest
import torch

import moe_probe
from moe_probe.errors import MissingWeight
from moe_probe.families.modules import require_values


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
