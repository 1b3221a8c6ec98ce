"""Quantized storage against transformers' own dequantization, whole and in slices."""

import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import _convert_moe_packed_tensors

from moe_probe.checkpoint import InMemory, Stored
from moe_probe.checkpoint.encodings import decoded
from moe_probe.errors import CheckpointError

FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 8]}}
SLICES = [(...,), (slice(3, 9),), (5,), (slice(None), slice(3, 17)), (slice(1, 6), 9)]


def stored(tensors, config):
    return decoded({key: Stored(InMemory(tensor)) for key, tensor in tensors.items()}, config)


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


@pytest.mark.parametrize("index", [(slice(3, 10), slice(15, 20)), (9, slice(None)), (slice(None), 19), (9, 19), (4,)])
def test_slices_of_blocks_at_the_edge_are_those_of_the_whole(index):
    weight, scale = torch.randn(10, 20).to(torch.float8_e4m3fn), torch.rand(3, 3)
    found = stored({"w.weight": weight, "w.weight_scale_inv": scale}, FP8)["w.weight"]
    assert torch.equal(found[index].read(), found.read()[index])


def test_fp8_of_fused_experts_has_scales_of_its_own_for_each():
    weight, scale = torch.randn(2, 8, 16).to(torch.float8_e4m3fn), torch.rand(2, 2, 2)
    found = stored({"w": weight, "w_scale_inv": scale}, FP8)["w"]
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    assert torch.equal(found.read(), expected)
    assert torch.equal(found[1, 3:7, 2:9].read(), expected[1, 3:7, 2:9])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e8m0fnu])
def test_scales_that_are_exponents_alone_are_powers_of_two(dtype):
    weight = torch.randn(8, 16).to(torch.float8_e4m3fn)
    scale = torch.tensor([[120, 127], [130, 125]], dtype=torch.uint8).view(dtype)
    found = stored({"w": weight, "w_scale_inv": scale}, FP8)["w"].read()
    assert torch.equal(found, Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16))


def test_mxfp4_of_every_exponent_is_what_transformers_dequantizes():
    blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 256, 1, 1)
    scales = torch.arange(256, dtype=torch.uint8).reshape(1, 256, 1).repeat(1, 1, 16)
    found = stored({"x_blocks": blocks, "x_scales": scales}, {})["x"].read()
    expected = _convert_moe_packed_tensors(blocks, scales)
    assert torch.equal(found.nan_to_num(nan=-12345), expected.nan_to_num(nan=-12345))


def test_mxfp4_without_scales_that_fit_is_refused():
    mxfp4 = {"quantization_config": {"quant_method": "mxfp4"}}
    blocks = torch.zeros(2, 6, 3, 16, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="'x_blocks' is stored as MXFP4 without its scales 'x_scales'"):
        stored({"x_blocks": blocks}, mxfp4)
    with pytest.raises(CheckpointError, match=r"shapes \(2, 6, 3, 16\) and \(2, 6, 2\)"):
        stored({"x_blocks": blocks, "x_scales": torch.zeros(2, 6, 2, dtype=torch.uint8)}, mxfp4)


def test_fp8_without_scales_and_unknown_methods_are_refused():
    weight = torch.randn(4, 8).to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match="without its scales"):
        stored({"w.weight": weight}, FP8)
    with pytest.raises(CheckpointError, match=r"expected \(1, 1\)"):
        stored({"w.weight": weight, "w.weight_scale_inv": torch.rand(2, 2)}, FP8)
    with pytest.raises(CheckpointError, match=r"expected \(2, 1, 1\)"):
        stored({"w": weight.expand(2, 4, 8), "w_scale_inv": torch.rand(3, 1, 1)}, FP8)
    with pytest.raises(CheckpointError, match="expected a matrix"):
        stored({"w": weight[0], "w_scale_inv": torch.rand(1)}, FP8)
    with pytest.raises(CheckpointError, match="vptq"):
        stored({}, {"quantization_config": {"quant_method": "vptq"}})
