"""Packed layers against float64 of their definitions, and against the formats' own packages where installed."""

import json

import numpy as np
import packing
import pytest
import torch
from safetensors.torch import save_file

from moe_probe.checkpoint import InMemory, Stored, open_checkpoint
from moe_probe.checkpoint.encodings import decoded
from moe_probe.errors import CheckpointError

SLICES = [(...,), (slice(3, 9),), (5,), (slice(None), slice(5, 21)), (slice(1, 6), 9), (slice(7, 8), slice(32, 33))]
ROUNDING = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float32: 2.0**-22}  # of one or two operations


class Counting(InMemory):
    """A tensor in memory that counts the values that are read of it."""

    def __init__(self, tensor):
        super().__init__(tensor)
        self.count = 0

    def read(self, index):
        values = super().read(index)
        self.count += values.numel()
        return values


def plain(stored, quantization, prefix="m.", name=None):
    """The only matrix that stored tensors stand for."""
    tensors = {prefix + key: Stored(InMemory(tensor)) for key, tensor in stored.items()}
    found = decoded(tensors, {"quantization_config": quantization})
    assert list(found) == [name or prefix + "weight"]
    return found[name or prefix + "weight"]


def assert_values(lazy, expected):
    values = lazy.read()
    assert values.dtype == lazy.dtype
    assert tuple(values.shape) == tuple(lazy.shape) == expected.shape
    np.testing.assert_allclose(
        packing.float64(values), expected, rtol=ROUNDING[lazy.dtype], atol=1e-6 * np.abs(expected).max()
    )
    for index in SLICES:
        index = index if lazy.ndim == 2 else (1, *index)
        assert torch.equal(lazy[index].read(), values[index]), index


def reads_only_its_bytes(stored, quantization):
    """A slice of 1/4 of the rows reads about 1/4 of what all rows do."""
    sources = {"m." + key: Counting(tensor) for key, tensor in stored.items()}
    lazy = decoded({key: Stored(source) for key, source in sources.items()}, {"quantization_config": quantization})
    matrix = lazy["m.weight"]
    for source in sources.values():
        source.count = 0
    matrix[: matrix.shape[0] // 4].read()
    part = sum(source.count for source in sources.values())
    matrix.read()
    whole = sum(source.count for source in sources.values()) - part
    assert part < 0.4 * whole


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 32), (4, 16), (4, 96), (8, 48)])
def test_gptq(bits, group, order, version):
    stored, expected = packing.gptq(bits, group, order=order, version=version)
    config = {"quant_method": "gptq", "bits": bits, "group_size": -1 if group == 96 else group, "desc_act": order}
    config["checkpoint_format"] = "gptq" if version == 1 else "gptq_v2"
    assert_values(plain(stored, config), expected)
    reads_only_its_bytes(stored, config)


def test_gptq_without_a_format_is_the_first_one_and_needs_no_order():
    stored, expected = packing.gptq(4, 32, version=1)
    del stored["g_idx"]
    assert_values(plain(stored, {"quant_method": "gptq", "group_size": 32}), expected)


@pytest.mark.parametrize("rule", ["m.*", "+:.*m", "+:^m$"])
def test_gptq_with_a_rule_for_some_layers(rule):
    stored, expected = packing.gptq(8, 48)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}
    assert_values(plain(stored, {**config, "dynamic": {"-:m": {}, rule: {"bits": 8, "group_size": 48}}}), expected)
    with pytest.raises(CheckpointError, match="group_size=32"):
        plain(stored, {**config, "dynamic": {"other": {"bits": 8, "group_size": 48}}})


def test_gptq_in_the_order_of_activations_needs_that_order():
    stored, _ = packing.gptq(4, 32, order=True)
    del stored["g_idx"]
    with pytest.raises(CheckpointError, match=r"m\.g_idx"):
        plain(stored, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True})


AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "data_type": "int"}


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ({"packing_format": "auto_round:auto_gptq"}, 1),
        ({"packing_format": "auto_round:auto_gptq:exllamav2"}, 1),
        ({"quant_method": "intel/auto-round", "backend": "auto_round:gptq:exllamav2"}, 1),
        ({}, 1),
        ({"packing_format": "auto_round"}, 2),
        ({"packing_format": "auto_round:gptqmodel", "act_bits": 16}, 2),
        ({"quant_method": "intel/auto-round", "backend": "auto_round:exllamav2"}, 2),
    ],
)
def test_auto_round_in_the_layout_of_gptq(fields, version):
    stored, expected = packing.gptq(4, 32, version=version)
    del stored["g_idx"]
    assert_values(plain(stored, {**AUTO_ROUND, **fields}), expected)
    reads_only_its_bytes(stored, {**AUTO_ROUND, **fields})


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("name", "written"), [("qlinear_torch_zp", "auto_round:auto_gptq"), ("qlinear_torch", "auto_round")]
)
def test_auto_round_is_what_its_package_computes(bits, name, written):
    program = pytest.importorskip(f"auto_round_extension.torch.{name}")
    stored, _ = packing.gptq(bits, 32, version=1 if name.endswith("zp") else 2)
    del stored["g_idx"]
    layer = program.QuantLinear(bits, 32, 96, 128, bias=False)
    layer.load_state_dict(stored)
    expected = layer(torch.eye(96, dtype=torch.float16)).T
    values = plain(stored, {**AUTO_ROUND, "bits": bits, "packing_format": written})
    assert torch.equal(values.read(), expected)


def test_auto_round_in_the_layout_of_awq():
    stored, expected = packing.awq(32)
    assert_values(plain(stored, {**AUTO_ROUND, "packing_format": "auto_round:auto_awq"}), expected)


@pytest.mark.parametrize("name", ["m", ".*m$", "^m"])
def test_auto_round_with_more_bits_for_some_layers(name):
    stored, expected = packing.gptq(8, 48, version=1)
    del stored["g_idx"]
    extra = {"(": {"bits": 2}, name: {"bits": 8, "group_size": 48}, "m.*": {"bits": 3}}
    assert_values(plain(stored, {**AUTO_ROUND, "extra_config": extra}), expected)
    with pytest.raises(CheckpointError, match="group_size=32"):
        plain(stored, {**AUTO_ROUND, "extra_config": {"other": {"bits": 8, "group_size": 48}}})


@pytest.mark.parametrize("group", [16, 64])
def test_awq(group):
    stored, expected = packing.awq(group)
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    assert_values(plain(stored, config), expected)
    reads_only_its_bytes(stored, config)


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, 64), (4, 32), (5, 64), (6, 128), (8, 64)])
def test_mlx(bits, group, lead):
    stored, expected = packing.mlx(bits, group, *lead)
    assert_values(plain(stored, {"bits": 4, "group_size": 64, "m": {"bits": bits, "group_size": group}}), expected)


def test_mlx_is_what_its_package_dequantizes():
    mx = pytest.importorskip("mlx.core")
    for bits, group in ((2, 32), (3, 64), (4, 64), (6, 32), (8, 128)):
        stored, _ = packing.mlx(bits, group)
        arrays = [
            mx.array(np.array(part.view(torch.uint32) if n == 0 else part.float()))
            for n, part in enumerate(stored.values())
        ]
        expected = np.array(mx.dequantize(*arrays, group_size=group, bits=bits))
        exact = {key: part if key == "weight" else part.float() for key, part in stored.items()}
        values = plain(exact, {"bits": bits, "group_size": group}).read()
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-6)


FLOATS = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("mode", FLOATS)
def test_mlx_floats(mode, lead):
    stored, expected = packing.mlx_floats(mode, *lead)
    bits, group = FLOATS[mode]
    config = {"mode": mode, "bits": bits, "group_size": group}
    assert_values(plain(stored, config), expected)
    with pytest.raises(CheckpointError, match="groups of 64"):
        plain(stored, {**config, "group_size": 64})


@pytest.mark.parametrize("mode", FLOATS)
def test_mlx_floats_are_what_its_package_dequantizes(mode):
    mx = pytest.importorskip("mlx.core")
    stored, _ = packing.mlx_floats(mode)
    bits, group = FLOATS[mode]
    arrays = [mx.array(np.array(part)) for part in stored.values()]
    expected = mx.dequantize(*arrays, group_size=group, bits=bits, mode=mode).astype(mx.float32)
    values = plain(stored, {"mode": mode, "bits": bits, "group_size": group}).read()
    np.testing.assert_array_equal(values.float().numpy(), np.array(expected))


def compressed(**weights):
    groups = {"group_0": {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, **weights}}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head", "re:.*gate$"]}


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(4, 16), (8, 32), (4, 64), (3, 32), (5, 64), (2, 32)])
def test_compressed_tensors_packed_integers(bits, group, zero, lead):
    stored, expected = packing.packed_integers(bits, group, *lead, zero=zero)
    assert_values(plain(stored, compressed(num_bits=bits, group_size=group, symmetric=not zero)), expected)


def test_compressed_tensors_whole_codes_in_each_word():
    stored, expected = packing.packed_integers(3, 32, pack=packing.whole)
    assert_values(plain(stored, compressed(num_bits=3, group_size=32)), expected)


def test_compressed_tensors_groups_in_the_order_of_activations():
    stored, expected = packing.packed_integers(4, 16, rows=80, order=True)
    config = compressed(num_bits=4, group_size=16, actorder="group")
    assert_values(plain(stored, config), expected)
    reads_only_its_bytes(stored, config)


def test_compressed_tensors_in_the_order_of_activations_needs_that_order():
    stored, _ = packing.packed_integers(4, 16, order=True)
    del stored["weight_g_idx"]
    with pytest.raises(CheckpointError, match="weight_g_idx"):
        plain(stored, compressed(num_bits=4, group_size=16, actorder="group"))


@pytest.mark.parametrize("method", ["compressed-tensors", "gptq"])
def test_a_rule_that_is_no_regular_expression_is_named(method):
    stored, config = packing.packed_integers(4, 16)[0], compressed(num_bits=4, group_size=16)
    config["config_groups"]["group_0"]["targets"] = ["re:(m"]
    if method == "gptq":
        stored, config = packing.gptq(4, 32)[0], {"quant_method": method, "group_size": 32, "dynamic": {"(m": {}}}
    with pytest.raises(CheckpointError, match=r"\(m' *, which is no regular expression"):
        plain(stored, config)


def test_compressed_tensors_takes_the_group_of_all_layers_where_none_names_one():
    stored, expected = packing.packed_integers(8, 16)
    config = compressed(num_bits=4, group_size=32)
    config["config_groups"]["group_0"]["targets"] = ["re:other.*"]
    config["config_groups"]["group_1"] = {"targets": ["Linear"], "weights": {"num_bits": 8, "group_size": 16}}
    assert_values(plain(stored, config), expected)


def test_compressed_tensors_takes_the_group_that_targets_a_layer():
    stored, expected = packing.packed_integers(8, 16)
    config = compressed(num_bits=4, group_size=32)
    config["config_groups"]["group_1"] = {"targets": ["re:m.*"], "weights": {"num_bits": 8, "group_size": 16}}
    assert_values(plain(stored, config), expected)


@pytest.mark.parametrize("damaged", [1e308, "Linear", [None], {"weights": [4]}, {"weights": "int4", "targets": 3}])
def test_compressed_tensors_whose_groups_are_damaged_are_refused(damaged):
    config = compressed(num_bits=4, group_size=16)
    config["config_groups"]["group_0"] |= damaged if isinstance(damaged, dict) else {"targets": damaged}
    stored, expected = packing.packed_integers(4, 16)
    if isinstance(damaged, dict):
        with pytest.raises(CheckpointError, match="num_bits=None"):
            plain(stored, config)
    else:
        assert_values(plain(stored, config), expected)


def scheme(**arguments):
    quantization = pytest.importorskip("compressed_tensors.quantization")
    return quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**arguments))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_integers_are_what_the_package_decompresses(bits, symmetric):
    args = scheme(num_bits=bits, type="int", strategy="group", group_size=32, symmetric=symmetric)
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor

    stored, _ = packing.packed_integers(bits, 32, zero=not symmetric)
    expected = PackedQuantizationCompressor.decompress(dict(stored), args)["weight"]
    values = plain(stored, compressed(num_bits=bits, group_size=32, symmetric=symmetric)).read()
    assert torch.equal(values, expected)


def test_nvfp4_is_what_the_package_decompresses():
    args = scheme(num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True)
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor

    packed, scale, overall, _ = packing.nvfp4()
    stored = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": overall}
    expected = NVFP4PackedCompressor.decompress(dict(stored), args)["weight"]
    assert torch.equal(plain(stored, compressed(num_bits=4, type="float", group_size=16)).read(), expected.bfloat16())


@pytest.mark.parametrize("lead", [(), (3,)])
def test_nvfp4_of_both_packages_divides_by_one_scale_and_multiplies_by_the_other(lead):
    packed, scale, overall, expected = packing.nvfp4(*lead)
    stored = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": overall}
    stored["input_global_scale"] = torch.tensor([5.0])
    assert_values(plain(stored, compressed(num_bits=4, type="float", group_size=16)), expected)
    packed, scale, overall, expected = packing.nvfp4(*lead, dividing=False)
    stored = {"weight": packed, "weight_scale": scale, "weight_scale_2": overall, "input_scale": torch.tensor(0.1)}
    assert_values(plain(stored, {"quant_algo": "NVFP4"}), expected)


def test_nvfp4_has_one_overall_scale():
    packed, scale, overall, _ = packing.nvfp4()
    stored = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": torch.cat([overall, overall])}
    with pytest.raises(CheckpointError, match="weight_global_scale"):
        plain(stored, compressed(num_bits=4, type="float", group_size=16))


SCALES = {"channel": (12, 1), "tensor": (1,), "one": (), "block": (3, 4)}


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("strategy", SCALES)
def test_codes_of_eight_bits_times_scales(strategy, kind):
    codes = torch.from_numpy(packing.RNG.integers(-100, 100, (12, 64))).to(kind)
    scale = packing.scales_of(torch.bfloat16, *SCALES[strategy])
    spread = packing.float64(scale)
    spread = spread.repeat(4, 0).repeat(16, 1) if strategy == "block" else spread
    blocks = {"block_structure": [4, 16]} if strategy == "block" else {}
    config = compressed(num_bits=8, strategy=strategy, **blocks)
    expected = packing.float64(codes) * spread
    assert_values(plain({"weight": codes, "weight_scale": scale}, config), expected)
    if blocks:
        config = compressed(num_bits=8, strategy=strategy, block_structure="4x16")
        assert_values(plain({"weight": codes, "weight_scale": scale}, config), expected)
    if strategy != "block" and kind is not torch.int8:
        stored = {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.5)}
        assert_values(plain(stored, {"quant_method": "fp8", "activation_scheme": "static"}), expected)
        assert_values(plain(stored, {"quant_method": "modelopt", "quant_algo": "FP8"}), expected)


@pytest.mark.parametrize("rows", [slice(0, 12), slice(3, 4), slice(3, 9), slice(2, 6), slice(4, 5), slice(7, 12)])
@pytest.mark.parametrize("columns", [slice(0, 40), slice(15, 17), slice(17, 31), slice(33, 40)])
def test_a_slice_of_blocks_is_a_slice_of_the_values(rows, columns):
    codes = torch.from_numpy(packing.RNG.integers(-100, 100, (12, 40))).to(torch.int8)
    scale, zero = (
        packing.scales_of(torch.float32, 3, 3),
        torch.from_numpy(packing.RNG.integers(-9, 9, (3, 3))).to(torch.int8),
    )
    spread = [packing.float64(part).repeat(4, 0).repeat(16, 1)[:, :40] for part in (zero, scale)]
    expected = (packing.float64(codes) - spread[0]) * spread[1]
    config = compressed(num_bits=8, strategy="block", block_structure=[4, 16], symmetric=False)
    stored = {"weight": codes, "weight_scale": scale, "weight_zero_point": zero}
    values = packing.float64(plain(stored, config)[rows, columns].read())
    np.testing.assert_allclose(values, expected[rows, columns], rtol=8e-3)


def test_fp8_reads_no_more_values_than_asked_for():
    codes = Counting(torch.ones(256, 256).to(torch.float8_e4m3fn))
    stored = {"m.weight": Stored(codes), "m.weight_scale_inv": Stored(InMemory(torch.ones(2, 2)))}
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    lazy = decoded(stored, config)["m.weight"]
    codes.count = 0
    lazy[200:203, 5:9].read()
    assert codes.count == 12


def test_int8_with_zero_points():
    codes = torch.from_numpy(packing.RNG.integers(-128, 128, (12, 64))).to(torch.int8)
    zero = torch.from_numpy(packing.RNG.integers(-128, 128, (12, 1))).to(torch.int8)
    scale = packing.scales_of(torch.bfloat16, 12, 1)
    stored = {"weight": codes, "weight_scale": scale, "weight_zero_point": zero}
    expected = (packing.float64(codes) - packing.float64(zero)) * packing.float64(scale)
    assert_values(plain(stored, compressed(num_bits=8, strategy="channel", symmetric=False)), expected)


def test_fp8_of_mistral_and_of_fbgemm():
    codes = torch.from_numpy(packing.RNG.integers(-100, 100, (12, 64))).to(torch.float8_e4m3fn)
    stored = {"weight": codes, "qscale_weight": torch.tensor(0.5), "qscale_act": torch.tensor(2.0)}
    assert_values(plain(stored, {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}), packing.float64(codes) / 2)
    fused = codes.view(3, 16, 16)
    outputs = packing.scales_of(torch.float32, 3, 16, 1)
    stored = {"down_proj": fused, "down_proj_scale": outputs}
    expected = packing.float64(fused) * packing.float64(outputs).swapaxes(1, 2)  # outputs are the stored columns
    assert_values(plain(stored, {"quant_method": "fbgemm_fp8"}, name="m.down_proj"), expected)
    stored = {"gate_up_proj": fused, "gate_up_proj_scale": outputs.transpose(1, 2)}
    assert_values(plain(stored, {"quant_method": "fbgemm_fp8"}, name="m.gate_up_proj"), expected)


def test_deepseek_v4s_exponents_and_fp4():
    codes = packing.codes_of(4, 12, 64)
    exponent = torch.from_numpy(packing.RNG.integers(120, 130, (12, 2)).astype(np.uint8)).view(torch.float8_e8m0fnu)
    packed = torch.from_numpy((codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)).view(torch.int8)
    config = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    expected = packing.FP4[codes] * packing.float64(exponent.float()).repeat(32, 1)
    assert_values(plain({"weight": packed, "scale": exponent}, config), expected)
    weight = torch.from_numpy(packing.RNG.integers(-8, 8, (12, 64))).to(torch.float8_e4m3fn)
    expected = packing.float64(weight) * float(exponent[0, 0].float())
    assert_values(plain({"weight": weight, "scale": exponent[:1, :1].contiguous()}, config), expected)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(16, 128), (6, 40), (5, 7)])
def test_bitsandbytes_four_bits(shape, nested):
    rows, columns = shape
    values = rows * columns
    blocks = -(-values // 16)
    table = np.sort(packing.RNG.normal(size=16))
    codes = packing.codes_of(4, values + values % 2)
    factors, stored = packing.RNG.uniform(1, 2, blocks), {}
    more = {}
    if nested:
        bytes_, inner = packing.codes_of(8, blocks), packing.RNG.uniform(1, 2, -(-blocks // 8))
        wide = packing.RNG.normal(size=256)
        factors = wide.astype(np.float32)[bytes_] * inner.astype(np.float32).repeat(8)[:blocks] + 0.25
        stored["weight.nested_absmax"] = torch.from_numpy(inner).float()
        stored["weight.nested_quant_map"] = torch.from_numpy(wide).float()
        more = {"nested_blocksize": 8, "nested_offset": 0.25, "nested_dtype": "float32"}
    absmax = torch.from_numpy(bytes_.astype(np.uint8)) if nested else torch.from_numpy(factors).float()
    stored |= {
        "weight": torch.from_numpy((codes[0::2] << 4 | codes[1::2]).astype(np.uint8)).unsqueeze(1),
        "weight.absmax": absmax,
        "weight.quant_map": torch.from_numpy(table).float(),
        "weight.quant_state.bitsandbytes__nf4": packing.state("nf4", shape, 16, **more),
    }
    expected = (table[codes[:values]] * factors.repeat(16)[:values]).reshape(shape)
    lazy = plain(stored, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    np.testing.assert_allclose(packing.float64(lazy.read()), expected, rtol=1e-5, atol=1e-6)
    for part in (slice(1, 3), slice(2, 5)):
        assert torch.equal(lazy[part].read(), lazy.read()[part])
        assert torch.equal(lazy[part, 1:4].read(), lazy.read()[part, 1:4])


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32, torch.int8])
def test_bitsandbytes_codes_are_the_bytes_of_any_numbers(storage):
    codes, absmax = packing.codes_of(4, 16 * 128), packing.RNG.uniform(1, 2, 32)
    table = packing.RNG.normal(size=16)
    stored = {
        "weight": torch.from_numpy((codes[0::2] << 4 | codes[1::2]).astype(np.uint8)).view(storage).unsqueeze(1),
        "weight.absmax": torch.from_numpy(absmax).float(),
        "weight.quant_map": torch.from_numpy(table).float(),
        "weight.quant_state.bitsandbytes__nf4": packing.state("nf4", (16, 128), 64),
    }
    lazy = plain(stored, {"quant_method": "bitsandbytes", "bnb_4bit_quant_storage": str(storage)})
    expected = (table[codes] * absmax.repeat(64)).reshape(16, 128)
    np.testing.assert_allclose(packing.float64(lazy.read()), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(lazy[3:5, 7:20].read(), lazy.read()[3:5, 7:20])


@pytest.mark.parametrize("odd", ["quant_map", "nested_quant_map", "nested_absmax"])
def test_tables_and_factors_of_bitsandbytes_have_their_sizes(odd):
    stored = {
        "weight": torch.zeros(64, 1, dtype=torch.uint8),
        "weight.absmax": torch.zeros(8, dtype=torch.uint8),
        "weight.quant_map": torch.zeros(16),
        "weight.nested_absmax": torch.ones(2),
        "weight.nested_quant_map": torch.zeros(256),
        "weight.quant_state.bitsandbytes__nf4": packing.state("nf4", (8, 16), 16, nested_blocksize=4, nested_offset=0),
    }
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert plain(stored, config).shape == (8, 16)
    longer = torch.cat([stored[f"weight.{odd}"]] * 2)
    with pytest.raises(CheckpointError, match=f"{odd}' holds {len(longer)}"):
        plain({**stored, f"weight.{odd}": longer}, config)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("twice", [False, True])
def test_bitsandbytes_is_what_its_package_dequantizes(kind, twice):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.from_numpy(packing.RNG.normal(size=(96, 256))).float()
    codes, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=twice)
    stored = {"weight": codes} | {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    values = plain(stored, {"quant_method": "bitsandbytes", "load_in_4bit": True}).read()
    np.testing.assert_allclose(values, functional.dequantize_4bit(codes, state), rtol=1e-6, atol=1e-7)


def test_bitsandbytes_eight_bits():
    codes = torch.from_numpy(packing.RNG.integers(-127, 128, (12, 64))).to(torch.int8)
    scale = packing.scales_of(torch.float32, 12)
    stored = {"weight": codes, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    assert_values(plain(stored, config), packing.float64(codes) * packing.float64(scale)[:, None] / 127)


@pytest.mark.parametrize(
    ("stored", "config", "words"),
    [
        (packing.gptq(4, 32)[0], {"quant_method": "gptq", "group_size": 16}, "group_size=16"),
        (packing.gptq(4, 32)[0], {"quant_method": "gptq", "group_size": 32, "checkpoint_format": "marlin"}, "'marlin'"),
        (packing.gptq(4, 32)[0], {"quant_method": "gptq", "group_size": 32, "bits": 8}, "states 8"),
        (packing.awq(16)[0], {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemv_fast"}, "gemv_fast"),
        (packing.awq(16)[0], {"quant_method": "awq", "bits": 4, "group_size": 32}, "groups of 32"),
        (packing.gptq(4, 32)[0], {**AUTO_ROUND, "bits": 8}, "states 8"),
        (packing.gptq(4, 32)[0], {**AUTO_ROUND, "packing_format": "auto_round:llm_compressor"}, "llm_compressor"),
        (packing.gptq(4, 32)[0], {**AUTO_ROUND, "data_type": "mx_fp"}, "'mx_fp'"),
        (packing.gptq(4, 32)[0], {**AUTO_ROUND, "act_bits": 8}, "act_bits=8"),
        (packing.gptq(4, 32)[0], {**AUTO_ROUND, "spinquant_config": {"r1": True}}, "spinquant_config"),
        (packing.gptq(4, 32)[0], {**AUTO_ROUND, "extra_config": [1]}, "extra_config"),
        (packing.awq(32)[0], {**AUTO_ROUND, "packing_format": "auto_round:auto_awq", "bits": 8}, "8 bits"),
        (packing.mlx(4, 64)[0], {"bits": 4, "group_size": 128}, "groups of 128"),
        (packing.mlx(4, 64)[0], {"bits": 4, "group_size": 64, "mode": "nvfp4"}, "'nvfp4'"),
        (packing.mlx_floats("nvfp4")[0], {"bits": 4, "group_size": 16, "mode": "fp6"}, "'fp6'"),
        (packing.packed_integers(4, 16)[0], compressed(num_bits=8, group_size=16), "int8"),
        (packing.packed_integers(4, 16)[0], compressed(num_bits=4, group_size=32), "groups of 32"),
        (packing.packed_integers(4, 16)[0], compressed(num_bits=4, group_size=16, symmetric=False), "zero_point"),
    ],
)
def test_what_does_not_fit_its_configuration_is_refused_by_name(stored, config, words):
    with pytest.raises(CheckpointError, match=words):
        plain(stored, config)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}}, "transform_config"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ({"format": "marlin-24"}, "marlin-24"),
    ],
)
def test_compressed_tensors_that_are_turned_or_sparse_are_refused(fields, words):
    stored = packing.packed_integers(4, 16)[0]
    with pytest.raises(CheckpointError, match=words):
        plain(stored, {**compressed(num_bits=4, group_size=16), **fields})
    none = {"transform_config": {}, "sparsity_config": {"format": "dense"}, "format": "pack-quantized"}
    assert plain(stored, {**compressed(num_bits=4, group_size=16), **none}).shape == (20, 64)


@pytest.mark.parametrize("sizes", [torch.zeros(0), torch.zeros(2), torch.tensor([20]), torch.tensor([-20, 64])])
def test_compressed_tensors_whose_sizes_are_damaged_are_refused(sizes):
    stored = packing.packed_integers(4, 16)[0] | {"weight_shape": sizes}
    with pytest.raises(CheckpointError, match=r"'m\.weight_shape' .* sizes of a matrix"):
        plain(stored, compressed(num_bits=4, group_size=16))


QUANTIZED = {
    "hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}},
    "quantize_config.json": {"bits": 4, "group_size": 32, "desc_act": False},
    "quant_config.json": {"w_bit": 4, "q_group_size": 32, "version": "GEMM", "zero_point": True},
    "quantization_config.json": AUTO_ROUND,
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_file_beside_says_how_weights_are_quantized_where_the_configuration_does_not(tmp_path, name):
    fp8 = torch.from_numpy(packing.RNG.integers(-8, 8, (12, 64))).to(torch.float8_e4m3fn)
    stored, expected = {
        "hf_quant_config.json": ({"weight": fp8, "weight_scale": torch.tensor(0.5)}, packing.float64(fp8) * 0.5),
        "quantize_config.json": packing.gptq(4, 32, version=1),
        "quantization_config.json": packing.gptq(4, 32, version=1),
        "quant_config.json": packing.awq(32),
    }[name]
    save_file({"m." + key: value.contiguous() for key, value in stored.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    (tmp_path / name).write_text(json.dumps(QUANTIZED[name]))
    assert_values(open_checkpoint(tmp_path)["m.weight"], expected)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "aqlm"}}')
    with pytest.raises(CheckpointError, match="'aqlm'"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "stored",
    [
        packing.gptq(4, 32)[0],
        packing.awq(16)[0],
        packing.packed_integers(4, 16)[0],
        packing.mlx(4, 64)[0],
        {"weight": torch.ones(4, 8, dtype=torch.int8), "weight_scale": torch.ones(4, 1)},
        {"weight": torch.ones(4, 8, dtype=torch.int8)},
        {"weight": torch.ones(4, 8).to(torch.float8_e4m3fn), "weight_scale": torch.ones(4, 1)},
        {"W_q": torch.ones(4, 8, dtype=torch.uint8)},
    ],
    ids=lambda stored: "+".join(stored),
)
def test_packed_layers_without_a_configuration_are_refused(stored):
    with pytest.raises(CheckpointError, match=r"m.*packed matrix"):
        decoded({"m." + key: Stored(InMemory(tensor)) for key, tensor in stored.items()}, {})


HQQ_LAYERS = [(bits, axis) for bits in packing.HQQ for axis in (0, 1)]
HQQ_CONFIG = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {}}, "skip_modules": ["lm_head"]}


@pytest.mark.parametrize(("bits", "axis"), HQQ_LAYERS)
def test_hqq_as_transformers_stores_it(bits, axis):
    stored, said, expected = packing.hqq(bits, 16 if bits != 3 else 20, axis)
    assert_values(plain({**stored, **packing.hqq_beside(said)}, HQQ_CONFIG), expected)


@pytest.mark.parametrize(("bits", "axis"), HQQ_LAYERS)
def test_hqq_in_its_own_file(tmp_path, bits, axis):
    stored, said, expected = packing.hqq(bits, 16 if bits != 3 else 20, axis)
    words = stored.pop("W_q")
    (tmp_path / "config.json").write_text("{}")
    torch.save(
        {"m": {"W_q": words, "meta": {**said, **stored}}, "n": {"weight": torch.ones(2)}}, tmp_path / "qmodel.pt"
    )
    checkpoint = open_checkpoint(tmp_path)
    assert sorted(checkpoint) == ["m.weight", "n.weight"]
    assert_values(checkpoint["m.weight"], expected)


def test_hqq_with_scales_that_are_quantized_too(tmp_path):
    stored, said, _ = packing.hqq(4, 16, 1)
    inner, about, scales = packing.hqq(8, 32, 1, rows=len(stored["scale"]), columns=1)
    meta = {**said, "zero": stored["zero"], "scale_q": inner.pop("W_q"), "meta_scale": {**about, **inner}}
    (tmp_path / "config.json").write_text("{}")
    torch.save({"m": {"W_q": stored["W_q"], "meta": meta}}, tmp_path / "qmodel.pt")
    words = stored["W_q"].numpy()
    codes = np.concatenate([words >> 4, words & 15]).astype(np.int64)
    expected = ((codes - packing.float64(stored["zero"])) * scales).reshape(said["shape"])
    values = packing.float64(open_checkpoint(tmp_path)["m.weight"].read())
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("damaged", [torch.tensor([-4, 52]), torch.tensor([]).int(), torch.tensor([1 << 21])])
def test_hqq_whose_words_are_damaged_is_refused(damaged):
    stored, said, _ = packing.hqq(4, 16, 1)
    with pytest.raises(CheckpointError, match="says nothing of it"):
        plain({**stored, **packing.hqq_beside(said), "packing": damaged}, HQQ_CONFIG)


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"view_as_float": True}, "packed as"), ({"packing": "5bit_u8"}, "5bit_u8"), ({"shape": [40, 65]}, "40, 65")],
)
def test_hqq_that_is_not_read_is_refused_by_name(changed, words):
    stored, said, _ = packing.hqq(4, 16, 1)
    with pytest.raises(CheckpointError, match=words):
        plain({**stored, **packing.hqq_beside({**said, **changed})}, HQQ_CONFIG)


@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_awq_for_gemv(group):
    stored, expected = packing.awq_gemv(group)
    config = {"quant_method": "awq", "bits": 4, "group_size": group if group < 256 else -1, "version": "gemv"}
    assert_values(plain(stored, config), expected)
    reads_only_its_bytes(stored, config)


@pytest.mark.parametrize("version", ["gemv_fast", "marlin", "exllama"])
def test_another_packing_of_awq_is_refused_by_name(version):
    stored, _ = packing.awq_gemv(64)
    with pytest.raises(CheckpointError, match=f"AWQ for '{version}'"):
        plain(stored, {"quant_method": "awq", "bits": 4, "group_size": 64, "version": version})


@pytest.mark.parametrize("stated", ["gemm", "gemv"])
def test_a_packing_of_awq_is_not_taken_for_the_other(stated):
    stored, _ = packing.awq(32) if stated == "gemv" else packing.awq_gemv(32)
    with pytest.raises(CheckpointError, match="do not fit"):
        plain(stored, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": stated})
