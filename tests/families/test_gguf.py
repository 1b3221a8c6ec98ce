"""GGUF files, written by hand after llama.cpp's conversion, give the numbers of the model that they were made of."""

import gguf
import numpy as np
import pytest
import torch
from gguf_files import CASES, META, E, H, L, mixtral_tensors, original, tensors_of, write

import moe_probe
from moe_probe import dynamic, static
from moe_probe.checkpoint.formats.gguf import PIECE_ELEMENTS, Blocks
from moe_probe.checkpoint.lazy import InMemory, Stored
from moe_probe.errors import CheckpointError, FamilyError, MoEProbeError

pytestmark = pytest.mark.usefixtures("headers_say_the_same")
PLAIN_TYPES = {getattr(gguf.GGMLQuantizationType, name) for name in ("F32", "F16", "BF16")}


@pytest.mark.parametrize("case", CASES)
def test_a_file_gives_the_logits_of_the_model_that_it_was_made_of(tmp_path, case):
    name, fields, metadata, layout = CASES[case]
    module = original(name, fields)
    path = write(tmp_path / "m.gguf", case.split()[0], tensors_of(module, **layout), {**META, **metadata})
    model = moe_probe.load(path)
    assert model.config.model_type == module.config.model_type
    ids = torch.tensor([[5, 9, 3, 7, 11, 2, 40, 8, 33, 21]])
    with torch.no_grad():
        expected, found = module(ids).logits, model.module(ids).logits
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    texts = [[5, 9, 3, 7, 11], [2, 40, 8]]
    resident = dynamic.run(model, texts, dynamic.ExpertLoad())["expert_load"]
    layerwise = dynamic.run(model, texts, dynamic.ExpertLoad(), execution="layerwise")["expert_load"]
    assert resident.equals(layerwise)


def test_newer_deepseek_files_have_keys_and_values_in_two_parts(tmp_path):
    name, fields, metadata, layout = CASES["deepseek2 v3"]
    module = original(name, fields)
    tensors = tensors_of(module, **layout)
    for layer in range(L):
        rows = tensors.pop(f"blk.{layer}.attn_kv_b.weight").reshape(H, 16, 12)
        tensors[f"blk.{layer}.attn_k_b.weight"] = rows[:, :8].swapaxes(1, 2)
        tensors[f"blk.{layer}.attn_v_b.weight"] = rows[:, 8:]
    lengths = {
        "attention.key_length": 20,
        "attention.value_length": 12,
        "attention.key_length_mla": 16,
        "attention.value_length_mla": 8,
        "attention.head_count_kv": 1,
    }
    model = moe_probe.load(write(tmp_path / "m.gguf", "deepseek2", tensors, {**META, **metadata, **lengths}))
    ids = torch.tensor([[5, 9, 3, 7]])
    with torch.no_grad():
        torch.testing.assert_close(model.module(ids).logits, module(ids).logits, rtol=2e-5, atol=2e-5)


def test_old_files_have_one_tensor_per_expert(tmp_path):
    tensors, apart = mixtral_tensors(), {}
    for key, value in tensors.items():
        if "_exps" in key:
            apart |= {key.replace("_exps", f".{expert}"): value[expert] for expert in range(E)}
        else:
            apart[key] = value
    old = moe_probe.load(write(tmp_path / "old.gguf", "llama", apart, META))
    assert np.array_equal(old.expert_weight(1, "2", "gate"), tensors["blk.1.ffn_gate_exps.weight"][2])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16"])
def test_blocks_are_what_the_package_dequantizes_slice_by_slice(tmp_path, kind):
    tensors = mixtral_tensors()
    model = moe_probe.load(write(tmp_path / "m.gguf", "llama", tensors, META, [kind]))
    quantized = gguf.quants.quantize(tensors["blk.1.ffn_down_exps.weight"], gguf.GGMLQuantizationType[kind])
    expected = gguf.quants.dequantize(quantized, gguf.GGMLQuantizationType[kind])
    tensor = model.expert_tensor(1, "3", "down")
    assert np.array_equal(tensor.read().float(), expected[3])
    assert np.array_equal(tensor[4:9, 7:30].read().float(), expected[3, 4:9, 7:30])
    static.similarity(model)


@pytest.mark.parametrize("kind", sorted(set(gguf.quants._type_traits) - PLAIN_TYPES))
@pytest.mark.filterwarnings("ignore:.*encountered")  # some bytes are scales that are not finite
def test_every_type_is_what_the_package_dequantizes_whole_and_in_slices_of_many_pieces(kind):
    size, length = gguf.GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(0).integers(0, 256, (3, 140, 2048 // size * length), dtype=np.uint8)
    tensor = Stored(Blocks(Stored(InMemory(torch.from_numpy(stored))), kind.name, size, length))
    expected = gguf.quants.dequantize(stored, kind)
    assert expected.size > 2 * PIECE_ELEMENTS
    for index in ((slice(0, 3), slice(0, 140), slice(0, 2048)), (slice(1, 3), slice(5, 136), slice(300, 1700))):
        np.testing.assert_array_equal(tensor[index].read().numpy(), expected[index])


def parts(folder, tensors, count):
    keys = list(tensors)
    for number in range(count):
        split = {"split.count": count, "split.no": number, "split.tensors.count": len(keys)}
        chosen = {key: tensors[key] for key in keys[number::count]}
        write(folder / f"m-{number + 1:05}-of-{count:05}.gguf", "llama", chosen, split if number else {**META, **split})


def test_a_model_in_parts_opens_as_a_folder_and_by_one_of_them(tmp_path):
    tensors = mixtral_tensors()
    parts(tmp_path, tensors, 3)
    (tmp_path / "mmproj-m.gguf").write_bytes(b"a tower")
    whole, by_part = moe_probe.load(tmp_path), moe_probe.load(tmp_path / "m-00002-of-00003.gguf")
    for model in (whole, by_part):
        assert np.array_equal(model.expert_weight(1, "2", "up"), tensors["blk.1.ffn_up_exps.weight"][2])
    assert whole.fingerprint == by_part.fingerprint
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(MoEProbeError, match=r"m-00003-of-00003.gguf is missing"):
        moe_probe.load(tmp_path)


def test_an_architecture_without_code_opens_for_static_analyses(tmp_path):
    tensors = {key: value for key, value in mixtral_tensors().items() if "attn_q" not in key}
    model = moe_probe.load(write(tmp_path / "m.gguf", "grok", tensors, META))
    assert model.layer(1).num_experts == E
    assert np.array_equal(model.expert_weight(1, "2", "down"), tensors["blk.1.ffn_down_exps.weight"][2])
    assert np.array_equal(model.router_weight(0), tensors["blk.0.ffn_gate_inp.weight"])
    static.similarity(model)
    with pytest.raises(FamilyError, match="static analyses only"):
        dynamic.run(model, [[1, 2, 3]], dynamic.ExpertLoad())


def test_a_number_of_experts_that_no_layer_has_is_refused(tmp_path):
    other = {**META, "expert_count": 2 * E}
    with pytest.raises(MoEProbeError, match=rf"has {E} experts, and the configuration states {2 * E} .expert_count"):
        moe_probe.load(write(tmp_path / "m.gguf", "grok", mixtral_tensors(), other))


def test_damage_is_one_sentence(tmp_path):
    path = write(tmp_path / "m.gguf", "llama", mixtral_tensors(), META)
    data = path.read_bytes()
    for length in (3, 30, 200, 1500, len(data) // 2, len(data) - 100):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="gguf"):
            moe_probe.load(path)


def test_several_models_in_a_folder_are_named(tmp_path):
    for name in ("m.Q4_K_M.gguf", "m.Q8_0.gguf"):
        write(tmp_path / name, "llama", mixtral_tensors(), META)
    with pytest.raises(MoEProbeError, match=r"2 GGUF models \(m.Q4_K_M.gguf, m.Q8_0.gguf\); pass the file"):
        moe_probe.load(tmp_path)
    assert moe_probe.load(tmp_path / "m.Q8_0.gguf").moe_layers == (0, 1)


def test_a_header_that_was_changed_is_refused_or_means_the_same(tmp_path):
    made = tensors_of(original("Mixtral", CASES["llama"][1]), permuted=True)
    whole = write(tmp_path / "m.gguf", "llama", made, {**META, "general.alignment": 64}, kinds=["Q4_0"]).read_bytes()
    truth = weights_of(moe_probe.load(tmp_path / "m.gguf"))
    header, rng, refused = whole.index(b"blk.1.ffn_down_exps") + 200, np.random.default_rng(0), 0
    for _ in range(300):
        changed, place, count = bytearray(whole), int(rng.integers(header)), int(rng.integers(1, 9))
        match rng.integers(4):
            case 0:
                changed[place] ^= 1 << int(rng.integers(8))
            case 1:
                changed[place : place + count] = rng.bytes(count)
            case 2:
                changed[place:place] = rng.bytes(count)
            case 3:
                del changed[place : place + count]
        (tmp_path / "changed.gguf").write_bytes(changed)
        try:
            found = weights_of(moe_probe.load(tmp_path / "changed.gguf"))
        except MoEProbeError:
            refused += 1
            continue
        assert all(torch.equal(found[key], truth[key]) for key in found.keys() & truth.keys())
    assert refused > 100


def weights_of(model):
    """Every matrix of every expert."""
    places = [(layer, expert) for layer in model.moe_layers for expert in model.layer(layer).weighted_experts]
    return {
        (layer, expert, projection): model.expert_weight(layer, expert, projection)
        for layer, expert in places
        for projection in model.layer(layer).projections
    }


def test_files_without_tensors_or_with_another_alignment_open(tmp_path):
    made = tensors_of(original("Mixtral", CASES["llama"][1]), permuted=True)
    parts = {"split.count": 2, "split.no": 0, "split.tensors.count": len(made)}
    write(tmp_path / "m-00001-of-00002.gguf", "llama", {}, {**META, **parts})
    write(tmp_path / "m-00002-of-00002.gguf", "llama", made, {**META, **parts, "general.alignment": 128})
    write(tmp_path / "one.gguf", "llama", made, META)
    found, expected = (weights_of(moe_probe.load(tmp_path / name)) for name in ("m-00001-of-00002.gguf", "one.gguf"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
