"""Recipes of papers' figures: an analysis of weights, of texts or of several models, and a function that draws it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import xarray as xr
from matplotlib.figure import Figure

from moe_probe import plotting
from moe_probe.dynamic import Analysis
from moe_probe.model import MoEModel
from moe_probe.plotting._grid import chosen_layers

Draw = Callable[[xr.Dataset, Mapping[str, xr.Dataset]], Iterator[tuple[str, Figure]]]
DrawLayers = Callable[[xr.Dataset, Mapping[str, xr.Dataset], Sequence[int]], Iterator[tuple[str, Figure]]]
LAYERS = re.compile(r"layers?(\d+)(?:-(\d+))?")
NUMBER = re.compile(r"(figure|table)([0-9A-Z]+)_")  # at the beginning of a stem: the number of that figure alone


def all_figures(ds: xr.Dataset, results: Mapping[str, xr.Dataset]) -> Iterator[tuple[str, Figure]]:
    """Draws every figure of a result."""
    return plotting.figures(ds)


@dataclass(frozen=True)
class Subject:
    """The model that a figure shows.

    Attributes:
        model: the model.
        baseline: a dense model of the same shapes, or None.
        layers: MoE layers of the model.
        n_jobs: number of workers.
    """

    model: MoEModel
    baseline: MoEModel | None
    layers: Sequence[int]
    n_jobs: int = 1

    @property
    def shared(self) -> bool:
        """Whether the layers have a shared block."""
        return self.model.layer(self.layers[0]).num_shared > 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The instructions for one kind of figure.

    Attributes:
        figure: its number in the paper, such as `figure 7`, with which file names begin; "" if it has none. A stem that
            already begins with a number, such as `figureA_task_load`, keeps that number.
        shows: the subject of the figure, for its caption.
        name: name of the result's file.
        draw: draws figures of the result (the second argument holds this model's earlier results by name).
        layers: draws figures of single layers in the paper's layout (the third argument gives the layers).
    """

    figure: str = ""
    shows: str
    name: str
    draw: Draw = all_figures
    layers: DrawLayers | None = None

    def figures(
        self, ds: xr.Dataset, results: Mapping[str, xr.Dataset], which: plotting.Which
    ) -> Iterator[tuple[str, Figure]]:
        """Yields all figures as (file stem, figure): of `all` layers, of six evenly spaced ones (`main`), or `none`."""
        if which == "none":
            return
        yield from self.draw(ds, results)
        if self.layers is not None and "layer" in ds.dims:
            numbers = [int(layer) for layer in ds.layer.values] if which == "all" else chosen_layers(ds.layer.values)
            yield from self.layers(ds, results, numbers)

    def caption(self, stem: str, model: str) -> str:
        """Returns the caption of one of its figures, such as `Figure 4, layer 2: load by task (Mixtral 8x7B)`."""
        parts = ", ".join(filter(None, [self.number(stem), layers_of(stem)]))
        text = ": ".join(filter(None, [parts, f"{self.shows} ({model})"]))
        return text[0].upper() + text[1:]

    def number(self, stem: str) -> str:
        """Returns the number in the paper of one of its figures."""
        match = NUMBER.match(stem)
        return f"{match[1]} {match[2]}" if match else self.figure

    def stem(self, figure: str) -> str:
        """Returns the file stem of one of its figures."""
        if NUMBER.match(figure):
            return figure
        return "_".join(part for part in (self.figure.replace(" ", ""), figure) if part)


def layers_of(stem: str) -> str:
    """Returns the layers that a stem names, as text.

    Examples:
        >>> layers_of("task_load_layer3"), layers_of("task_load_layers0-4")
        ('layer 3', 'layers 0 to 4')
    """
    named = LAYERS.search(stem)
    if named is None:
        return ""
    return f"layers {named[1]} to {named[2]}" if named[2] else f"layer {named[1]}"


@dataclass(frozen=True, kw_only=True)
class FromWeights(Recipe):
    """A figure that needs only weights."""

    compute: Callable[[Subject], xr.Dataset]


@dataclass(frozen=True, kw_only=True)
class FromTexts(Recipe):
    """A figure that needs a run over texts; all analyses with the same `tokens` share a pass.

    Attributes:
        analysis: makes the analysis for a model, with the user's options.
        tokens: number of tokens of the first text to use; None for all texts.
    """

    analysis: Callable[..., Analysis]
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class FromModel(Recipe):
    """A figure that compares a model with itself; `compute` takes the model, the texts, and options."""

    compute: Callable[..., xr.Dataset]


@dataclass(frozen=True, kw_only=True)
class FromModels(Recipe):
    """A figure that compares several models on the same texts.

    Attributes:
        compute: takes the models by label, the texts, the analysis if there is one, and `run`'s options.
        analysis: makes the analysis, with the user's options for the name `options`.
        options: the name of that analysis.
    """

    compute: Callable[..., xr.Dataset]
    analysis: Callable[..., Analysis] | None = None
    options: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper's name on the command line, its arXiv number, and the recipes of its figures."""

    name: str
    arxiv: str
    recipes: tuple[Recipe, ...]
