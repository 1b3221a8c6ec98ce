"""Grok-1's release: what its pickles hold, lazily and without running them; and what is refused."""

import contextlib
import os
import pickle
import random
import re
import resource
import runpy
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FIXTURES

from moe_probe.checkpoint.array_pickle import read_pickle
from moe_probe.checkpoint.formats.grok import open_grok
from moe_probe.errors import CheckpointError

RELEASE = FIXTURES / "grok1_jax" / "checkpoint"
WRITER = runpy.run_path(str(Path(__file__).parents[2] / "ckpt" / "grok_release.py"))
write_pickle, quantize = WRITER["write_pickle"], WRITER["quantize"]
WEIGHT = torch.randint(-127, 128, (3, 8, 5), dtype=torch.int8)
SCALES = torch.randn(3, 4, 5).bfloat16()
ARRAYS = [torch.randn(4), torch.randn(6, 70), torch.randn(3, 2, 2).bfloat16(), (WEIGHT, SCALES)]
NEW_NAMES = {b"numpy.core.multiarray": b"numpy._core.multiarray", b"numpy.core.numeric": b"numpy._core.numeric"}


def product(weight, scales):
    """Each int8 weight times the scale of its group of rows, rounded to bfloat16."""
    out = torch.empty(weight.shape, dtype=torch.bfloat16)
    rows = weight.shape[-2] // scales.shape[-2]
    for row in range(weight.shape[-2]):
        exact = weight[..., row, :].double() * scales[..., row // rows, :].double()
        out[..., row, :] = exact.bfloat16()
    return out


def plain(array):
    return product(*array) if isinstance(array, tuple) else array


def write(folder, arrays=ARRAYS, protocol=4):
    folder.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        write_pickle(folder / f"tensor{number:05d}_000", array, protocol)
    return folder


def refused(folder, *words):
    with pytest.raises(CheckpointError, match=".*".join(map(re.escape, words))) as caught:
        open_grok(folder)
    assert "\n" not in str(caught.value)


def test_the_release_opens_by_its_folder_and_by_the_folder_above():
    by_parent, by_itself = open_grok(RELEASE), open_grok(RELEASE / "ckpt-0")
    assert list(by_parent.tensors) == [f"tensor{i:05d}" for i in range(146)] == list(by_itself.tensors)
    assert [path.name for path in by_parent.files] == [f"tensor{i:05d}_000" for i in range(146)]
    assert by_parent.config == by_itself.config
    assert by_parent.config["format"] == "grok-1 release"
    assert by_parent.config["model"]["num_q_heads"] == 4
    assert by_parent.tensors["tensor00002"].shape == (8, 64, 32)
    assert by_parent.tensors["tensor00002"].dtype == torch.bfloat16
    assert by_parent.tensors["tensor00013"].dtype == torch.float32


def test_a_folder_of_other_files_is_none_of_it(tmp_path):
    (tmp_path / "tensor1.txt").write_text("")
    assert open_grok(tmp_path) is None


def test_without_a_model_config_the_format_is_all_that_is_known(tmp_path):
    folder = write(tmp_path / "a" / "b" / "ckpt-0")
    assert open_grok(folder).config == {"format": "grok-1 release"}
    (tmp_path / "a" / "model_config.json").write_text('{"vocab_size": 7}')
    assert open_grok(folder).config["vocab_size"] == 7
    (tmp_path / "a" / "b" / "model_config.json").write_text('{"vocab_size": 8}')
    assert open_grok(folder.parent).config["vocab_size"] == 8


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("new_names", [False, True])
def test_pickles_of_every_protocol_and_numpy_hold_the_same(tmp_path, protocol, new_names):
    folder = write(tmp_path, protocol=protocol)
    for path in folder.iterdir():
        for old, new in NEW_NAMES.items() if new_names else ():
            short, long = (pickle.SHORT_BINUNICODE + bytes([len(name)]) + name for name in (old, new))
            path.write_bytes(path.read_bytes().replace(short, long).replace(b"c" + old + b"\n", b"c" + new + b"\n"))
    opened = open_grok(folder)
    for tensor, array in zip(opened.tensors.values(), ARRAYS, strict=True):
        assert torch.equal(tensor.read(), plain(array))
        assert torch.equal(tensor[1:3].read(), plain(array)[1:3])


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_itself_pickles_is_read(tmp_path, protocol, order):
    array = np.asarray(np.random.default_rng(0).standard_normal((3, 4, 5)), np.float32, order)
    (tmp_path / "tensor00000_000").write_bytes(pickle.dumps(array, protocol))
    tensor = open_grok(tmp_path).tensors["tensor00000"]
    assert np.array_equal(tensor.read().numpy(), array)
    assert np.array_equal(tensor[2, 1:].T.read().numpy(), array[2, 1:].T)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_every_slice_of_a_quantized_weight_is_the_slice_of_the_product(tmp_path, groups):
    scales = torch.randn(3, groups, 5).bfloat16()
    tensor = open_grok(write(tmp_path, [(WEIGHT, scales)])).tensors["tensor00000"]
    expected = product(WEIGHT, scales)
    for index in [
        1,
        (2, 5),
        (slice(1, 3), slice(3, 7), slice(2, 4)),
        (..., 4),
        (0, slice(6, 8)),
        (..., 7, slice(1, 5)),
    ]:
        assert torch.equal(tensor[index].read(), expected[index]), index
    assert torch.equal(tensor.permute(2, 0, 1)[3].read(), expected.permute(2, 0, 1)[3])


def test_a_written_release_is_the_published_one_to_the_byte(tmp_path):
    opened = open_grok(RELEASE)
    for path, tensor in zip(opened.files, opened.tensors.values(), strict=True):
        stored = tensor.source
        array = (stored.weight.read(), stored.scales.read()) if hasattr(stored, "scales") else tensor.read()
        write_pickle(tmp_path / path.name, array)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_quantized_weights_are_within_half_a_step():
    weight = torch.randn(2, 12, 7)
    weight[1, :4, 2] = 0
    values, scales = quantize(weight, 3)
    error = (product(values, scales) - weight).abs().unflatten(1, (3, 4))
    largest = weight.unflatten(1, (3, 4)).abs().amax(dim=2, keepdim=True)
    assert (error <= largest * (0.5 / 127 + 2**-8)).all()


def test_one_slice_of_a_large_file_reads_only_itself(tmp_path):
    """A file of 1.1 GB, a hole but for its ends: memory for a slice of it stays small."""
    path, shape = tmp_path / "tensor00000_000", (70_000, 64, 64)
    write_pickle(path, torch.zeros(70_000, 1, 1, dtype=torch.int8))
    small = path.read_bytes()
    payload = read_pickle(path).data
    size = shape[0] * shape[1] * shape[2]
    header = small[: payload.start - 4].replace(b"K\x01K\x01", b"K\x40K\x40") + struct.pack("<I", size)
    with open(path, "wb") as file:
        file.write(header)
        file.seek(size - 4096, 1)
        file.write(b"\x07" * 4096 + small[payload.start + payload.length :])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tensor = open_grok(tmp_path).tensors["tensor00000"]
    assert tensor.shape == shape
    assert tensor[-1].read().eq(7).all()
    assert tensor[5].read().eq(0).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_tensors_are_sent_to_other_processes_without_their_values(tmp_path):
    tensor = open_grok(write(tmp_path)).tensors["tensor00003"]
    sent = pickle.dumps(tensor)
    assert len(sent) < 2000
    assert torch.equal(pickle.loads(sent).read(), plain(ARRAYS[3]))


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_os_system_is_refused_and_nothing_runs(tmp_path, protocol):
    path, mark = tmp_path / "tensor00000_000", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Evil(mark), protocol))
    refused(tmp_path, "tensor00000_000", f"{os.name}.system", "refused")
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # it would have run


def test_code_hidden_inside_a_weight_is_refused(tmp_path):
    path, mark = tmp_path / "tensor00000_000", tmp_path / "ran"
    write_pickle(path, (WEIGHT, SCALES))
    call = b"cposix\nsystem\n(X" + struct.pack("<I", len(f"touch {mark}")) + f"touch {mark}".encode() + b"tR0"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + call + b".")
    refused(tmp_path, "posix.system", "refused")
    assert not mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cbuiltins\neval\n(Vprint(1)\ntR.",
        b"(Vprint(1)\nibuiltins\neval\n.",  # INST
        b"(cnumpy\ndtype\nVprint(1)\no.",  # OBJ
        b"\x82\x01.",  # EXT1
        b"P1\n.",  # PERSID
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"c__main__\nsystem\n.",
        b"\x8c\x05numpy\x8c\x10f2py.diagnose.os\x93.",
        b"]V1\na.",
        b"N.",
        b"}.",
    ],
)
def test_whatever_else_a_pickle_does_is_refused(tmp_path, program):
    (tmp_path / "tensor00000_000").write_bytes(program)
    refused(tmp_path, "tensor00000_000")


def test_a_file_truncated_anywhere_is_refused(tmp_path):
    path = write(tmp_path, [(WEIGHT, SCALES)]) / "tensor00000_000"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(tmp_path, "tensor00000_000", "truncated")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_whatever_is_damaged_only_a_checkpoint_error_is_raised(tmp_path, protocol):
    path, chance = write(tmp_path, [(WEIGHT, SCALES)], protocol) / "tensor00000_000", random.Random(0)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(2):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            for tensor in open_grok(tmp_path).tensors.values():
                tensor.read()


def test_a_missing_number_is_named(tmp_path):
    folder = write(tmp_path / "ckpt-0")
    (folder / "tensor00001_000").unlink()
    refused(tmp_path, "tensor00001_000 is missing", "tensor00003_000")


def test_a_tensor_split_over_hosts_is_refused(tmp_path):
    shutil.copy(write(tmp_path) / "tensor00003_000", tmp_path / "tensor00003_001")
    refused(tmp_path, "tensor00003_001", "split")


@pytest.mark.parametrize(
    ("weight", "scales"),
    [
        (WEIGHT, SCALES[:, :3]),
        (WEIGHT, SCALES[:2]),
        (WEIGHT, SCALES[..., :4]),
        (WEIGHT[0, 0], SCALES[0, 0]),
        (WEIGHT.float(), SCALES),
        (WEIGHT, WEIGHT[:, :4]),
    ],
)
def test_scales_that_fit_no_weight_are_refused(tmp_path, weight, scales):
    refused(write(tmp_path, [(weight, scales)]), "tensor00000_000", "scales of shape", str(tuple(scales.shape)))


@pytest.mark.parametrize("array", [np.ones(3), np.ones(3, ">f4"), np.ones((0, 3), np.float32), np.array(["a"])])
def test_arrays_of_other_kinds_are_refused(tmp_path, array):
    (tmp_path / "tensor00000_000").write_bytes(pickle.dumps(array, 4))
    refused(tmp_path, "tensor00000_000")


def test_a_link_that_leads_outside_is_refused_also_of_the_folder(tmp_path):
    folder = write(tmp_path / "disk" / "ckpt-0")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "ckpt-0").symlink_to(folder)
    refused(tmp_path / "model", "ckpt-0", "leads out")
    shutil.move(folder / "tensor00002_000", tmp_path / "elsewhere")
    (folder / "tensor00002_000").symlink_to(tmp_path / "elsewhere")
    refused(tmp_path / "disk", "tensor00002_000", "outside")
