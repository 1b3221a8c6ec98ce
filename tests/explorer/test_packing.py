"""What a page holds of the routing can be read back to within half a step, whatever the values."""

import base64
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from moe_probe.errors import InputError
from moe_probe.explorer.packing import STEPS, encode, pack, rounded
from moe_probe.explorer.recorded import RecordedLayer


def decode(dtype, text, shape):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype).reshape(shape)


@given(arrays(np.int64, array_shapes(max_dims=2), elements=st.integers(-(2**31), 2**31 - 1)))
def test_integers_come_back_as_they_were(values):
    dtype, text = encode(values)
    np.testing.assert_array_equal(decode(dtype, text, values.shape), values)


@given(
    arrays(np.float32, (5, 4), elements=st.floats(-100, 100, width=32)),
    st.sampled_from(STEPS),
)
def test_rounding_is_off_by_half_a_step_at_most(values, step):
    back = rounded(values, step) * step
    assert np.abs(back - values).max() <= step / 2 * (1 + 1e-6) + 1e-9


def layers(rows=4000, experts=16, k=2):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(rows, experts)).astype(np.float32)
    index = np.argsort(-logits, axis=1)[:, :k].astype(np.int16)
    return {7: RecordedLayer(logits, index, generator.random((rows, k)).astype(np.float32))}


def test_more_room_gives_finer_numbers_and_the_size_is_kept():
    steps = []
    for room in (40_000, 80_000, 400_000):
        packed = pack(layers(), room)
        assert packed.size <= room
        steps.append(packed.logit_step)
        found = layers()[7]
        np.testing.assert_array_equal(decode(*packed.layers[7]["index"], found.index.shape), found.index)
        logits = decode(*packed.layers[7]["logits"], found.logits.shape) * packed.logit_step
        assert np.abs(logits - found.logits).max() <= packed.logit_step / 2 * 1.001
        weight = decode(*packed.layers[7]["weight"], found.weight.shape) * packed.weight_step
        assert np.abs(weight - found.weight).max() <= packed.weight_step / 2 * 1.001
    assert steps[0] > steps[1] > steps[2] == STEPS[0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"does not fit into the 1\.0 kB that max_bytes leaves"):
        pack(layers(), 1000)
