"""Converted folders give the same numbers as what they were made of."""

import json
import resource

import pytest
import torch
from conftest import FIXTURES
from transformers import AutoModelForCausalLM

import moe_probe
from moe_probe.checkpoint import open_checkpoint
from moe_probe.convert import convert
from moe_probe.errors import InputError, MachineError, WeightError

CHECKPOINTS = sorted(path.parent for path in FIXTURES.glob("*/checkpoint"))


def logits(folder, **options):
    model = moe_probe.load(folder, **options)
    ids = torch.randint(4, 70, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.module(ids).logits


def source(family):
    """The checkpoint with what it does not store itself."""
    config = FIXTURES / family / "model_config.json"
    options = json.loads(config.read_text()) if config.exists() else None
    return moe_probe.load(FIXTURES / family / "checkpoint", config=options)


@pytest.mark.parametrize("family", [path.name for path in CHECKPOINTS])
def test_a_converted_folder_gives_the_same_numbers(family, tmp_path):
    model = source(family)
    convert(model, tmp_path / "out", shard_bytes=50_000)
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    published = logits(FIXTURES / family / "checkpoint", config=model.checkpoint.config)
    assert torch.equal(logits(tmp_path / "out"), published)
    converted = moe_probe.load(tmp_path / "out")
    assert converted.family == model.family
    for index in model.moe_layers:
        assert torch.equal(converted.router_weight(index), model.router_weight(index))
        for label in model.layer(index).weighted_experts:
            assert torch.equal(converted.expert_weight(index, label, "down"), model.expert_weight(index, label, "down"))


def test_transformers_loads_a_converted_folder_by_itself(tmp_path):
    convert(FIXTURES / "deepseek" / "checkpoint", tmp_path / "out")
    exact = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
    module, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True, **exact)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.randint(4, 70, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(ids).logits, logits(FIXTURES / "deepseek" / "checkpoint"))


def test_int8_stays_int8_on_request(tmp_path):
    model = source("grok1_jax")
    convert(model, tmp_path / "plain")
    convert(model, tmp_path / "int8", keep_int8=True)
    plain, quantized = open_checkpoint(tmp_path / "plain"), open_checkpoint(tmp_path / "int8")
    assert quantized.nbytes < 0.75 * plain.nbytes
    key = "model.layers.11.moe_block.experts.5.linear_1.weight"
    assert torch.equal(quantized[key].read(), model.published[key].read())
    assert torch.equal(quantized[key][3:9, 5:20].read(), model.published[key].read()[3:9, 5:20])
    assert torch.equal(logits(tmp_path / "int8"), logits(tmp_path / "plain"))
    with pytest.raises(InputError, match="no int8"):
        convert(FIXTURES / "deepseek" / "checkpoint", tmp_path / "none", keep_int8=True)


def test_another_dtype_on_request(tmp_path):
    convert(FIXTURES / "mixtral" / "checkpoint", tmp_path / "out", dtype=torch.float32)
    assert {tensor.dtype for tensor in open_checkpoint(tmp_path / "out").values()} == {torch.float32}


@pytest.fixture
def small_files():
    """No file may grow beyond 20 kB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("shard_bytes", [15_000, 10**9])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, small_files, shard_bytes):
    with pytest.raises(MachineError, match="cannot be written"):
        convert("ckpt/tiny-mixtral", tmp_path / "out", shard_bytes=shard_bytes)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file is in the way"):
        convert("ckpt/tiny-mixtral", tmp_path / "file" / "out")


@pytest.mark.parametrize("options", [{"shard_bytes": 0}, {"shard_bytes": "5"}, {"dtype": "int4"}])
def test_wrong_options_are_refused(tmp_path, options):
    with pytest.raises(InputError):
        convert("ckpt/tiny-mixtral", tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_or_left_half_written(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists already"):
        convert(FIXTURES / "mixtral" / "checkpoint", tmp_path / "there")
    with pytest.raises(WeightError):
        convert(moe_probe.load(FIXTURES / "deepseek" / "checkpoint", config={"vocab_size": 7}), tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
