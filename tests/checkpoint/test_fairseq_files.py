"""fairseq's files: which are taken, how experts are numbered, and what is refused."""

import os
import shutil

import pytest
import torch
from conftest import FIXTURES

from moe_probe.checkpoint import open_checkpoint
from moe_probe.errors import CheckpointError

SOURCE = FIXTURES / "mh_moe" / "checkpoint"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(SOURCE, tmp_path / "c")


def refused(folder, match):
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(folder)


def test_experts_of_all_ranks_are_numbered_through(folder):
    checkpoint = open_checkpoint(folder)
    second = torch.load(folder / "checkpoint_last-rank-1.pt", weights_only=True)["model"]
    local = second["decoder.layers.1.moe_layer.experts.2.fc1.weight"]
    assert torch.equal(checkpoint["decoder.layers.1.moe_layer.experts.6.fc1.weight"].read(), local)
    assert sum(".experts." in key for key in checkpoint) == 2 * 8 * 3
    assert checkpoint.config["format"] == "fairseq"
    assert checkpoint.config["moe_expert_count"] == 8


def test_ranks_are_sorted_as_numbers(tmp_path):
    for rank in range(12):
        value = torch.full((2,), float(rank))
        torch.save({"model": {"l.experts.0.w": value}}, tmp_path / f"checkpoint_last-rank-{rank}.pt")
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "checkpoint_last-shared.pt")
    checkpoint = open_checkpoint(tmp_path)
    assert [checkpoint[f"l.experts.{rank}.w"].read()[0].item() for rank in range(12)] == list(range(12))


def test_a_missing_rank_or_shared_file_is_named(folder):
    (folder / "checkpoint_last-rank-0.pt").rename(folder / "checkpoint_last-rank-2.pt")
    refused(folder, r"checkpoint_last-rank-0\.pt is missing")
    (folder / "checkpoint_last-shared.pt").unlink()
    refused(folder, "0 files with the shared parameters")


def test_two_files_with_the_same_experts_are_refused(folder):
    shutil.copy(folder / "checkpoint_last-rank-1.pt", folder / "checkpoint_last-rank-01.pt")
    refused(folder, "two files of rank 1")
    (folder / "checkpoint_last-rank-01.pt").unlink()
    shutil.copy(folder / "checkpoint_last-rank-0.pt", folder / "checkpoint_last-rank-1.pt")
    refused(folder, "the same experts")


def test_ranks_that_disagree_are_refused(folder):
    path = folder / "checkpoint_last-rank-1.pt"
    value = torch.load(path, weights_only=True)
    del value["model"]["decoder.layers.3.moe_layer.experts.1.fc2.weight"]
    torch.save(value, path)
    refused(folder, r"only one of them has 'decoder\.layers\.3\.moe_layer\.experts\.1\.fc2\.weight'")


def test_the_last_of_several_checkpoints_is_taken(folder):
    torch.save({"model": {"x": torch.ones(1)}}, folder / "checkpoint_1_100.pt")
    assert "x" not in open_checkpoint(folder)
    for path in folder.glob("checkpoint_last*"):
        path.rename(folder / path.name.replace("last", "7_700"))
    refused(folder, "several checkpoints .checkpoint_1_100, checkpoint_7_700.")


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_that_wants_to_run_code_is_refused_before_it_runs(folder, tmp_path):
    mark = tmp_path / "ran"
    torch.save({"model": {}, "args": Evil(mark)}, folder / "checkpoint_last-shared.pt")
    refused(folder, "system, code that it wants to run, which is refused")
    assert not mark.exists()


@pytest.mark.parametrize("kept", [0, 100, 0.5, -20])
def test_a_truncated_file_is_named(folder, kept):
    path = folder / "checkpoint_last-rank-0.pt"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    refused(folder, r"checkpoint_last-rank-0\.pt is truncated or damaged")


def test_a_file_of_another_kind_is_refused(folder):
    torch.save({"weights": 3}, folder / "checkpoint_last-shared.pt")
    refused(folder, "no entry 'model'")
