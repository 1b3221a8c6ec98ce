"""Quantized storage against transformers' own dequantization, whole and in slices."""

import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import _convert_moe_packed_tensors

from moe_probe.checkpoint import InMemory, Stored
from moe_probe.checkpoint.quantized import dequantized
from moe_probe.errors import CheckpointError

FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 8]}}
SLICES = [(...,), (slice(3, 9),), (5,), (slice(None), slice(3, 17)), (slice(1, 6), 9)]


def stored(tensors, config):
    return dequantized({key: Stored(InMemory(tensor)) for key, tensor in tensors.items()}, config)


@pytest.mark.parametrize("index", SLICES)
def test_fp8_blocks_are_what_transformers_dequantizes(index):
    weight, scale = torch.randn(12, 24).to(torch.float8_e4m3fn), torch.rand(3, 3)
    found = stored({"w.weight": weight, "w.weight_scale_inv": scale}, FP8)
    assert set(found) == {"w.weight"}
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    assert torch.equal(found["w.weight"][index].read(), expected[index])


def test_fp8_blocks_at_the_edge_may_be_smaller():
    weight, scale = torch.randn(10, 20).to(torch.float8_e4m3fn), torch.rand(3, 3)
    found = stored({"w.weight": weight, "w.weight_scale_inv": scale}, FP8)["w.weight"].read()
    expected = torch.stack(
        [torch.stack([weight[i, j].float() * scale[i // 4, j // 8] for j in range(20)]) for i in range(10)]
    )
    assert torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize("index", [(...,), (1,), (1, slice(5, 40)), (0, slice(None), slice(2, 5)), (1, 33, 4)])
def test_mxfp4_experts_are_what_transformers_dequantizes(index):
    blocks = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8)
    scales = torch.randint(118, 136, (2, 6, 3), dtype=torch.uint8)
    found = stored({"x_blocks": blocks, "x_scales": scales}, {"quantization_config": {"quant_method": "mxfp4"}})
    assert set(found) == {"x"}
    assert torch.equal(found["x"][index].read(), _convert_moe_packed_tensors(blocks, scales)[index])


def test_fp8_without_scales_and_unknown_methods_are_refused():
    weight = torch.randn(4, 8).to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match="without its scales"):
        stored({"w.weight": weight}, FP8)
    with pytest.raises(CheckpointError, match=r"expected \(1, 1\)"):
        stored({"w.weight": weight, "w.weight_scale_inv": torch.rand(2, 2)}, FP8)
    with pytest.raises(CheckpointError, match="gptq"):
        stored({}, {"quantization_config": {"quant_method": "gptq"}})
