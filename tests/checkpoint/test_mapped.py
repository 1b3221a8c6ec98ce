"""Files are mapped so that nobody changes them, on systems without private pages too."""

import mmap

import pytest
import torch
from safetensors.torch import save_file

from moe_probe.checkpoint.formats.safetensors import SafetensorsFile
from moe_probe.checkpoint.identity import identity_of_files


@pytest.mark.parametrize("private", [True, False])
def test_whoever_writes_into_a_mapped_tensor_leaves_the_file_as_it_is(tmp_path, monkeypatch, private):
    if not private:
        monkeypatch.delattr(mmap, "MAP_PRIVATE")
    path = tmp_path / "größer als 模型.safetensors"
    values = torch.arange(6.0).view(2, 3)
    save_file({"x": values}, path)
    stored = path.read_bytes()
    read = SafetensorsFile(path).tensors()["x"].read()
    assert torch.equal(read, values)
    read.add_(1)
    assert torch.equal(read, values + 1)
    assert path.read_bytes() == stored
    assert torch.equal(SafetensorsFile(path).tensors()["x"].read(), values)


def test_the_identity_of_files_needs_no_call_that_one_system_alone_has(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.randn(64, 64), "gate.weight": torch.randn(4, 64)}, path)
    monkeypatch.setattr("moe_probe.checkpoint.identity.READ_WHOLE", 0)
    tensors = SafetensorsFile(path).tensors()
    whole = identity_of_files([path], tensors)
    monkeypatch.delattr("os.posix_fadvise", raising=False)
    monkeypatch.delattr("os.pread", raising=False)
    assert identity_of_files([path], tensors) == whole
