"""What a page holds of the routing can be read back to so many digits, whatever the values."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from unpacking import decode, routing_of

from moe_probe.errors import NotFitting
from moe_probe.explorer.packing import encode, from_significant, pack, pack_layer, significant
from moe_probe.explorer.recorded import RecordedLayer
from moe_probe.families import Layer


@given(arrays(np.int64, array_shapes(max_dims=2), elements=st.integers(-(2**31), 2**31 - 1)))
def test_integers_come_back_as_they_were(values):
    encoded = encode(values)
    np.testing.assert_array_equal(decode(*encoded, values.shape), values)
    assert not set(encoded.text) & set("<>&\"'\\")


@given(
    arrays(np.float32, (5, 4), elements=st.floats(-(2**99), 2**99, width=32, allow_subnormal=False)),
    st.integers(1, 6),
)
def test_numbers_are_off_by_half_of_their_last_digit_at_most(values, digits):
    exact = values.astype(float)
    back = from_significant(*significant(values, digits), digits)
    last = 10.0 ** (np.floor(np.log10(np.abs(exact), where=exact != 0, out=np.zeros_like(exact))) - digits + 1)
    assert (np.abs(back - exact) <= 0.5 * last * (1 + 1e-6)).all()
    assert (np.sign(back) == np.sign(exact)).all()


def layer_of(rows=400, experts=16, k=3, listed=5, normalize=True, sigmoid=False):
    generator = np.random.default_rng(0)
    logits = 2 * generator.normal(size=(rows, experts)).astype(np.float32)
    index = np.argsort(-logits, axis=1)[:, :listed].astype(np.int16)
    logits = np.take_along_axis(logits, index, 1)
    weight = 1 / (1 + np.exp(-logits[:, :k])) if sigmoid else np.exp(logits[:, :k])
    if normalize:
        weight /= weight.sum(1, keepdims=True)
    return RecordedLayer(Layer(7, 8, 8, experts, k, ("ffn",) * experts), index, logits, weight.astype(np.float32))


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("digits", [1, 3, 5])
def test_a_layer_comes_back_rounded_to_its_digits(digits, sigmoid):
    layer = layer_of(sigmoid=sigmoid)
    packed = pack_layer(layer, digits)
    facts = asdict(layer.layer) | {"listed": 5} | dict(packed.facts)
    index, weight, logits = routing_of(facts, {n: decode(*a) for n, a in packed.arrays.items()}, digits)
    np.testing.assert_array_equal(index, layer.index)
    np.testing.assert_allclose(weight, layer.weight, rtol=0.51 * 10.0 ** (1 - digits))
    np.testing.assert_allclose(logits, layer.logits, atol=0.501 * packed.facts["step"])
    assert packed.facts["step"] == float(f"1e{1 - digits}")
    assert packed.facts["predicted"] == (not sigmoid)


def test_weights_that_are_zero_or_negative_come_back():
    layer = layer_of()
    layer.weight[:5] = 0
    layer.weight[5:9, 1] = -0.25
    packed = pack_layer(layer, 3)
    facts = asdict(layer.layer) | {"listed": 5} | dict(packed.facts)
    _, weight, logits = routing_of(facts, {n: decode(*a) for n, a in packed.arrays.items()}, 3)
    np.testing.assert_allclose(weight, layer.weight, rtol=0.006)
    np.testing.assert_allclose(logits, layer.logits, atol=0.00501)


def test_logits_cost_little_where_weights_tell_them():
    softmax, sigmoid = (len(pack_layer(layer_of(4000, sigmoid=s), 3).arrays["logits"].text) for s in (False, True))
    assert softmax < 0.8 * sigmoid


def test_digits_are_a_limit_and_fewer_where_there_is_no_room():
    sizes = {}
    for room in (60_000, 17_000, 15_000):
        digits, (packed,) = pack([{7: layer_of(2000)}], room)
        sizes[digits] = sum(len(array.text) for array in packed[7].arrays.values())
        assert sizes[digits] <= room
    assert list(sizes) == sorted(sizes, reverse=True)
    assert max(sizes) == 3
    assert len(sizes) > 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(NotFitting, match=r"does not fit into the 1\.0 kB that max_bytes leaves"):
        pack([{7: layer_of(4000)}], 1000)
