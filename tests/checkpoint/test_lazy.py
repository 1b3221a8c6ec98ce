"""Lazy tensors read what the same operations on torch tensors give, and no more than they must."""

import pickle

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from moe_probe.checkpoint import InMemory, Stored


class Counting(InMemory):
    """A source that remembers how many values were read."""

    def __init__(self, tensor):
        super().__init__(tensor)
        self.values_read = 0

    def read(self, index):
        out = super().read(index)
        self.values_read += out.numel()
        return out


def apply(tensor, steps):
    """The same steps on a lazy or a real tensor."""
    for kind, a, b in steps:
        if tensor.ndim == 0:
            break
        dim = a % tensor.ndim
        if kind in ("select", "split") and tensor.shape[dim] == 0:
            continue
        if kind == "select":
            tensor = tensor[(slice(None),) * dim + (b % tensor.shape[dim],)]
        elif kind == "narrow":
            start = b % max(tensor.shape[dim], 1)
            tensor = tensor[(slice(None),) * dim + (slice(start, start + 2),)]
        elif kind == "from the end":
            tensor = torch.narrow(tensor, dim - tensor.ndim, -tensor.shape[dim], min(b, tensor.shape[dim]))
        elif kind == "last" and tensor.shape[dim]:
            tensor = torch.select(tensor, dim - tensor.ndim, -1)
        elif kind == "stride":
            tensor = tensor[(slice(None),) * dim + (slice(None, None, 1 + b % 2),)]
        elif kind == "transpose":
            tensor = torch.transpose(tensor, dim, b % tensor.ndim)
        elif kind == "reshape" and tensor.ndim >= 2:
            tensor = tensor.reshape((*tensor.shape[:-2], tensor.shape[-2] * tensor.shape[-1]))
        elif kind == "split" and tensor.shape[dim] % 2 == 0:
            tensor = tensor.reshape((*tensor.shape[:dim], tensor.shape[dim] // 2, 2, *tensor.shape[dim + 1 :]))
        elif kind == "cat":
            tensor = torch.cat([tensor, tensor], dim=dim)
        elif kind == "stack":
            tensor = torch.stack([tensor, tensor], dim=dim)
        elif kind == "chunk":
            tensor = torch.chunk(tensor, 2, dim=dim)[b % 2 if tensor.shape[dim] > 1 else 0]
    return tensor


KINDS = ["select", "last", "narrow", "from the end", "stride", "transpose", "reshape", "split", "cat", "stack", "chunk"]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3), st.integers(0, 5)), max_size=6)


@example([("from the end", 0, 0), ("chunk", 0, 0)])
@given(STEPS)
def test_any_chain_of_operations_reads_what_torch_computes(steps):
    values = torch.arange(4 * 6 * 5).reshape(4, 6, 5)
    expected = apply(values, steps)
    lazy = apply(Stored(InMemory(values)), steps)
    assert lazy.shape == expected.shape
    assert torch.equal(lazy.read(), expected)


def test_one_expert_of_a_fused_stack_reads_only_its_own_rows():
    sources = [Counting(torch.randn(8, 5)) for _ in range(6)]
    gates, ups = (torch.stack([Stored(s) for s in part]) for part in (sources[:3], sources[3:]))
    fused = torch.cat([gates, ups], dim=1)
    assert torch.equal(fused[1][8:].read(), sources[4].tensor)
    assert [s.values_read for s in sources] == [0, 0, 0, 0, 40, 0]


def test_rows_of_a_transposed_tensor_read_only_those_columns():
    source = Counting(torch.randn(6, 7))
    assert torch.equal(Stored(source).T[2:4].read(), source.tensor.T[2:4])
    assert source.values_read == 12


@pytest.mark.parametrize("index", [5, -3, (0, 0, 0), (0, 4)])
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(IndexError):
        torch.stack([Stored(InMemory(torch.ones(3)))] * 2)[index]


def test_a_range_beyond_the_tensor_is_refused():
    part = Stored(InMemory(torch.arange(10)))[:4]
    with pytest.raises(IndexError):
        part.narrow(0, 2, 5)
    with pytest.raises(IndexError):
        part.select(0, 6)
    assert part.select(0, -1).read() == 3


@pytest.mark.parametrize("join", [torch.stack, torch.cat])
def test_parts_of_unlike_shapes_are_not_joined(join):
    with pytest.raises(ValueError, match=r"\(2, 3\), \(2, 4\)"):
        join([Stored(InMemory(torch.ones(2, 3))), Stored(InMemory(torch.ones(2, 4)))])


def test_lazy_tensors_travel_to_other_processes():
    lazy = torch.stack([Stored(InMemory(torch.randn(2, 3)))] * 2).transpose(0, 1)
    assert torch.equal(pickle.loads(pickle.dumps(lazy)).read(), lazy.read())
