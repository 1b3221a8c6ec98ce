"""What files of torch.save hold is told without torch as torch tells it; what is odd is left to torch."""

import collections
import os
import shutil
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_probe.checkpoint import open_checkpoint
from moe_probe.checkpoint.torch_headers import TensorHeader, read_headers

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e8m0fnu,
)  # fmt: skip
WIDE = torch.arange(24.0).view(2, 3, 4)


def told(value):
    """What torch loads, with headers in the place of tensors."""
    if isinstance(value, torch.Tensor):
        return TensorHeader(tuple(value.shape), str(value.dtype).removeprefix("torch."))
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return {key: told(part) for key, part in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(
    "held",
    [
        {str(dtype): torch.zeros(2, 3).to(dtype) for dtype in DTYPES},
        {"view": WIDE[1, :, 1:3], "turned": WIDE.mT, "spread": WIDE[0, 0, :1].expand(5), "same": WIDE, "all": WIDE},
        collections.OrderedDict(none=torch.empty(0, 4), one=torch.tensor(3), parameter=torch.nn.Parameter(WIDE)),
        torch.nn.Linear(3, 2).state_dict(),
        {
            "m": {
                "weight": WIDE,
                "meta": {"shape": WIDE.shape, "dtype": torch.float16, "nbits": 4, "words": ["a", None]},
            }
        },
    ],
    ids=["dtypes", "views", "ordered", "module", "nested"],
)
def test_headers_are_those_that_torch_loads(tmp_path, held):
    torch.save(held, tmp_path / "f.bin")
    assert told(read_headers(tmp_path / "f.bin")) == told(torch.load(tmp_path / "f.bin", weights_only=True))


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    "held",
    [
        {"w": WIDE.to_sparse()},
        {"w": torch.empty(2, device="meta")},
        {"w": torch.device("cpu")},
    ],
    ids=["sparse", "meta", "device"],
)
def test_what_is_no_plain_tensor_is_left_to_torch(tmp_path, held):
    torch.save(held, tmp_path / "f.bin")
    assert read_headers(tmp_path / "f.bin") is None


def test_a_pickle_that_wants_to_run_code_is_not_run(tmp_path):
    torch.save({"w": Evil(tmp_path / "mark")}, tmp_path / "f.bin")
    assert read_headers(tmp_path / "f.bin") is None
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("options", [{"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_files_of_other_versions_are_left_to_torch(tmp_path, options):
    torch.save({"w": WIDE}, tmp_path / "f.bin", **options)
    assert read_headers(tmp_path / "f.bin") is None


def rewritten(source, target, change, compression=zipfile.ZIP_STORED):
    """A copy of a file of torch, with its entries changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            for entry, content in change(name, old.read(name)):
                new.writestr(entry, content)
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda name, content: [(name, content[:-4] if "/data/" in name else content)],
        lambda name, content: [] if "/data/" in name else [(name, content)],
        lambda name, content: [(name, content.replace(b"K\x18", b"K\x19"))],  # a size of 25 for 24
        lambda name, content: [(name, content), *([("other/data.pkl", content)] if ".pkl" in name else [])],
        lambda name, content: [] if name.endswith(".pkl") else [(name, content)],
    ],
    ids=["short", "none", "larger", "two", "no pickle"],
)
def test_storages_that_do_not_hold_their_tensors_are_left_to_torch(tmp_path, change):
    torch.save({"w": WIDE.flatten()}, tmp_path / "f.bin")
    assert read_headers(rewritten(tmp_path / "f.bin", tmp_path / "same.bin", lambda *entry: [entry])) is not None
    assert read_headers(rewritten(tmp_path / "f.bin", tmp_path / "g.bin", change)) is None


def test_compressed_entries_are_left_to_torch(tmp_path):
    torch.save({"w": WIDE}, tmp_path / "f.bin")
    packed = rewritten(tmp_path / "f.bin", tmp_path / "g.bin", lambda *entry: [entry], zipfile.ZIP_DEFLATED)
    assert read_headers(packed) is None


@given(program=st.binary(max_size=40))
def test_no_program_of_a_pickle_escapes(tmp_path_factory, program):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", b"\x80\x02" + program)
    read_headers(path)


def test_a_folder_of_such_files_opens_as_torch_reads_it(tmp_path):
    folder = shutil.copytree("ckpt/tiny-moe-plus-plus", tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    stored = {key: each for path in folder.glob("*.bin") for key, each in torch.load(path, weights_only=True).items()}
    assert checkpoint.keys() == stored.keys()
    assert all(torch.equal(checkpoint[key].read(), stored[key]) for key in stored)
