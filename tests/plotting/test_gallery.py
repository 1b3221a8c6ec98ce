"""Every kind of figure, found in the registry, at the sizes of real models: readable, and true to its numbers."""

import os
from itertools import count, product
from time import process_time

import gallery
import pytest
from budget import one_in_three, seconds_here
from figure_checks import check_figure, check_legends, check_letters, check_room, check_texts, rendered

from moe_probe import plotting
from moe_probe.figures import write_figure

MOST = 8  # files that a result of 48 layers of 128 experts is drawn into
KINDS = plotting.names()
EVERY = list(product([8, 64, 128, 256], [1, 4, 61]))
# GALLERY=all draws every size, which takes a quarter of an hour; else each number is drawn once, 64 experts and 4
# layers by the test of one size
SIZES = EVERY if os.environ.get("GALLERY") == "all" else [(8, 61), (128, 61), (256, 1)]


def check(ds):
    stems = []
    for stem, figure in plotting.figures(ds):
        check_figure(figure, stem)
        stems.append(stem)
    assert stems
    assert len(stems) == len(set(stems))
    return stems


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_an_example_that_is_drawn_as_it_is(name):
    check(gallery.example(name))


@pytest.mark.thorough
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_readable(name):
    check(gallery.resized(gallery.example(name), 64, 4))


@pytest.mark.thorough
@pytest.mark.parametrize(("experts", "layers"), SIZES)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_readable_at_every_size_and_a_page_takes_at_most_three_seconds(name, experts, layers, tmp_path):
    drawn = plotting.figures(gallery.resized(gallery.example(name), experts, layers))
    for number in count():
        began = process_time()
        stem, figure = next(drawn, (None, None))
        if figure is None:
            break
        write_figure(figure, tmp_path / f"{number}.pdf")
        took = process_time() - began
        assert took < 3 or took < seconds_here(3), stem
        check_figure(figure, stem)


@pytest.mark.parametrize("name", one_in_three(KINDS))
def test_a_figure_that_is_asked_for_at_a_columns_width_is_readable(name):
    figure = plotting.plot(gallery.resized(gallery.example(name), 64, 4), figsize=(3.3, 2.6))
    _, texts = rendered(figure)
    check_texts(figure, texts, name)
    check_legends(figure, name)
    check_room(figure, name)
    check_letters(figure, name)


@pytest.mark.thorough
@pytest.mark.parametrize("name", KINDS)
def test_single_layers_are_readable(name):
    for stem, figure in plotting.figures(gallery.resized(gallery.example(name), 128, 2), "all"):
        check_figure(figure, stem)
