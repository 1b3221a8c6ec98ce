"""Every option of load is taken or refused, for everything that it opens."""

import copy
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import MixtralForCausalLM

import moe_probe
from moe_probe.errors import InputError, MissingFiles, NoSuchName, NotFitting, WrongType
from moe_probe.intervene import Zero

SOURCE = "ckpt/tiny-mixtral"


@pytest.fixture(scope="module")
def live():
    return MixtralForCausalLM.from_pretrained(SOURCE, dtype=torch.float32).eval()


def test_an_open_model_takes_options_and_stays_what_it_was():
    model = moe_probe.load(SOURCE)
    tokenizer = copy.deepcopy(model.tokenizer)
    assert moe_probe.load(model) is model
    other = moe_probe.load(model, tokenizer=tokenizer)
    assert (other.tokenizer is tokenizer, model.tokenizer is tokenizer) == (True, False)
    assert moe_probe.load(model, dtype="bfloat16").dtype == torch.bfloat16
    assert moe_probe.load(model, dtype="bfloat16").module.dtype == torch.bfloat16
    assert moe_probe.load(model, config={"num_experts_per_tok": 4}).layer(0).top_k == 4
    assert model.dtype == torch.float32
    assert model.layer(0).top_k == 2


def test_interventions_stay_when_options_change():
    model = moe_probe.load(SOURCE).under(Zero(layer=0, experts=[3]))
    for options in ({"dtype": "bfloat16"}, {"config": {"num_experts_per_tok": 4}}, {"tokenizer": "ckpt/tiny-mistral"}):
        other = moe_probe.load(model, **options)
        assert other.interventions == model.interventions
        assert other.name == model.name
    assert moe_probe.load(model, dtype="bfloat16").module.dtype == torch.bfloat16


def test_a_live_model_refuses_what_it_cannot_be_given(live):
    assert moe_probe.load(live, dtype=torch.float32, device="cpu").module is live
    for options in ({"dtype": "bfloat16"}, {"config": {"num_experts_per_tok": 4}}, {"revision": "main"}):
        with pytest.raises(NotFitting, match=next(iter(options))):
            moe_probe.load(live, **options)
        with pytest.raises(NotFitting):
            moe_probe.load(moe_probe.load(live), **options)
    with pytest.raises(InputError, match="no tokenizer"):
        _ = moe_probe.load(live).tokenizer


def test_a_folder_has_no_revision():
    with pytest.raises(NotFitting, match="revision='nope'"):
        moe_probe.load(SOURCE, revision="nope")


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16", torch.bfloat16, "auto"])
def test_dtypes_have_names(dtype):
    assert moe_probe.load(SOURCE, dtype=dtype).module.dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), {"": "cpu"}])
def test_devices_have_several_forms(device):
    assert moe_probe.load(SOURCE, device=device).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dtype": "bfloat17"}, NoSuchName),
        ({"dtype": "int8"}, NoSuchName),
        ({"dtype": 5}, WrongType),
        ({"device": "cpuu"}, NoSuchName),
        ({"device": "meta"}, NotFitting),
        ({"device": "cuda:99"}, NotFitting),
        ({"device": 1.5}, WrongType),
        ({"tokenizer": 5}, WrongType),
        ({"config": 5}, WrongType),
    ],
)
def test_wrong_options_are_refused(options, error):
    with pytest.raises(error):
        moe_probe.load(SOURCE, **options)


@pytest.mark.parametrize("source", [None, 5, [], {}, b"ckpt", torch.zeros(2)])
def test_wrong_sources_are_refused(source):
    with pytest.raises(WrongType, match="load takes a folder"):
        moe_probe.load(source)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("ckpt/tiny-mixtral/config.json", "pass its folder, ckpt/tiny-mixtral"),
        ("ckpt/tiny-mixtral/model.safetensors", "pass the folder of the checkpoint, ckpt/tiny-mixtral"),
        ("ckpt", "subfolders tiny-deepseek-moe"),
        ("./ckpt/tiny-mixtrall", "did you mean ckpt/tiny-mixtral"),
    ],
)
def test_misspelt_folders_are_pointed_out(source, words):
    with pytest.raises(MissingFiles, match=words):
        moe_probe.load(source)


def test_a_hub_id_misspelt_for_a_folder_is_pointed_out():
    with pytest.raises(MissingFiles, match="did you mean ckpt/tiny-mixtral"):
        moe_probe.load("ckpt/tiny-mixtrall")


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "base_model.model.", "language_model.", "module._orig_mod."]
)
def test_prefixes_of_wrappers_are_stripped(tmp_path, prefix):
    tensors = {}
    for path in moe_probe.load(SOURCE).checkpoint.files:
        tensors |= load_file(path)
    save_file({prefix + key: value for key, value in tensors.items()}, tmp_path / "model.safetensors")
    shutil.copy(f"{SOURCE}/config.json", tmp_path)
    router = moe_probe.load(tmp_path).router_weight(1)
    assert torch.equal(router, moe_probe.load(SOURCE).router_weight(1))


def test_loading_writes_nothing_on_the_terminal(tmp_path, capfd):
    folder = tmp_path / "shorter"
    shutil.copytree("ckpt/tiny-mixtral", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))  # tensors are left over
    assert moe_probe.load(folder).module.config.num_hidden_layers == 2
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()
