"""Results of real sizes for every figure: those of the plots' own examples, with as many experts and layers as asked.

`python docs/gallery.py FOLDER` draws every figure of every kind at 8 and at 128 experts. The page of the gallery is
made by `generated.py`; `tests/plotting/test_gallery.py` checks what is drawn.
"""

from __future__ import annotations

import argparse
import doctest
import inspect
import io
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import chdir
from functools import cache
from pathlib import Path
from unittest.mock import patch

import examples as pages
import numpy as np
import xarray as xr

from moe_probe import plotting

LAYERS = ("layer", "other_layer", "depth")
OTHERS = ("other", "source", "norm_rank", "score_rank", "router_expert")  # as many as there are experts
VARIED = (*LAYERS, "expert", "pair", "point")
SPECIAL = ("S", "F")  # the shared block and the dense FFN, which stay one each


def examples() -> Mapping[str, xr.Dataset]:
    """The example of each analysis by its name."""
    return {name: example(name) for name in plotting.names()}


@cache
def example(name: str) -> xr.Dataset:
    """The result that the docstring of an analysis' plot draws: the last one that it passes to `plotting.plot`."""
    docstring = inspect.getdoc(plotting.PLOTS[name].plot) or ""
    drawn: list[xr.Dataset] = []
    code = "".join(example.source for example in doctest.DocTestParser().get_examples(docstring))
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(plotting, "plot", lambda ds, **options: drawn.append(ds)),
        warnings.catch_warnings(action="ignore"),
    ):
        pages.prepare(Path(folder))
        with chdir(folder):
            exec(code, {})
    return drawn[-1]


def resized(ds: xr.Dataset, experts: int, layers: int, seed: int = 0) -> xr.Dataset:
    """A result with as many experts and layers: those that there are, again and again, each value a little different.

    Values of one cell, its interval and its chance level change by the same factor; shares still add up to 1.
    """
    rng = np.random.default_rng(seed)
    places = {dim: _places(ds, str(dim), experts, layers) for dim in ds.dims}
    pairs = ds.sizes.get("pair", 0)
    if pairs and pairs == ds.attrs.get("experts", _experts(ds)) * (_experts(ds) - 1) // 2:
        places["pair"] = np.arange(experts * (experts - 1) // 2) % pairs
    factors = {dim: np.exp(rng.normal(0, 0.4, len(at))) for dim, at in places.items() if dim in VARIED}
    variables = {name: _resized(values, places, factors, rng) for name, values in ds.variables.items()}
    coords = {dim: _coordinate(ds, dim, at) for dim, at in places.items() if dim in ds.coords}
    named = {name: variables[name] for name in ds.coords if name not in coords}
    if "num_experts" in variables:
        variables["num_experts"] = variables["num_experts"] * 0 + experts
    return xr.Dataset({name: variables[name] for name in ds.data_vars}, named | coords, ds.attrs)


def _experts(ds: xr.Dataset) -> int:
    return ds.sizes.get("expert", ds.sizes.get("norm_rank", 0)) or 8


def _places(ds: xr.Dataset, dim: str, experts: int, layers: int) -> np.ndarray:
    """Where along a dimension the new result takes its values from."""
    size = ds.sizes[dim]
    if dim in LAYERS or (dim == "other" and ds[dim].dtype.kind == "i"):  # the other layer
        return np.arange(layers) % size
    if dim == "index":  # of singular values, which fall
        return np.linspace(0, size - 1, experts).astype(int)
    if dim in ("expert", *OTHERS) or (dim == "point" and size <= 16):
        named = dim if dim in ds.coords else "expert"
        labels = ds[named].values if named in ds.coords and ds[named].dims == (dim,) else np.arange(size)
        own = [at for at, label in enumerate(labels) if str(label) not in SPECIAL]
        special = [at for at, label in enumerate(labels) if str(label) in SPECIAL]
        chosen = range(experts) if experts >= len(own) else np.linspace(0, len(own) - 1, experts).astype(int)
        return np.array([own[at % len(own)] for at in chosen] + special)
    return np.arange(size)


def _resized(
    variable: xr.Variable, places: Mapping[str, np.ndarray], factors: Mapping[str, np.ndarray], rng: np.random.Generator
) -> xr.Variable:
    larger = variable.isel({dim: places[str(dim)] for dim in variable.dims})
    values = larger.values
    if {"expert", "other"} <= set(variable.dims):
        values = _different(larger, places)
    if values.dtype.kind in "iu" and variable.dims and variable.dims[-1] in LAYERS:
        return xr.Variable(
            variable.dims, np.broadcast_to(np.arange(values.shape[-1]) + int(values.min()), values.shape)
        )
    if values.dtype.kind == "f":
        factor = np.ones(values.shape)
        for dim, along in factors.items():
            if dim in variable.dims:
                shape = [len(along) if each == dim else 1 for each in variable.dims]
                factor = factor * along.reshape(shape)
        share = "expert" in variable.dims and np.allclose(variable.sum("expert"), 1)
        most = 0.99 if (np.abs(np.nan_to_num(values)) <= 1).all() else np.inf
        changed = np.clip(values * factor, -most, most)
        values = np.where(_same(larger), values, changed)
        if share:
            values = values / values.sum(variable.dims.index("expert"), keepdims=True)
    return xr.Variable(variable.dims, values, variable.attrs)


def _same(variable: xr.Variable) -> np.ndarray:
    """Cells of an expert with itself."""
    if not {"expert", "other"} <= set(variable.dims):
        return np.zeros(variable.shape, bool)
    shape = [size if dim in ("expert", "other") else 1 for dim, size in variable.sizes.items()]
    return np.broadcast_to(np.eye(*[s for s in shape if s > 1], dtype=bool).reshape(shape), variable.shape)


def _different(larger: xr.Variable, places: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pairs of different experts have values of different experts, not those of an expert with itself."""
    rows, columns = places["expert"], places["other"]
    same = np.equal.outer(rows, columns) & ~np.eye(len(rows), len(columns), dtype=bool)
    values = larger.transpose(..., "expert", "other").values.copy()
    values[..., same] = np.roll(values, 1, -1)[..., same]
    dims = [*(dim for dim in larger.dims if dim not in ("expert", "other")), "expert", "other"]
    return xr.Variable(dims, values).transpose(*larger.dims).values


def _coordinate(ds: xr.Dataset, dim: str, at: np.ndarray) -> tuple[str, np.ndarray]:
    values = ds[dim].values
    if len(at) == len(values):
        return dim, values
    if values.dtype.kind in "iu":
        return dim, np.arange(len(at)) + int(values[0])
    special = [str(label) for label in values if str(label) in SPECIAL]
    return dim, np.array([*(str(number) for number in range(len(at) - len(special))), *special])


def pictures(experts: int = 128, layers: int = 48) -> Iterator[tuple[str, bytes]]:
    """The first figure of every result, as PNG, by the name of its analysis."""
    for name, ds in examples().items():
        content = io.BytesIO()
        next(iter(plotting.figures(resized(ds, experts, layers))))[1].savefig(content, format="png", dpi=110)
        yield name, content.getvalue()


def drawn(ds: xr.Dataset, folder: Path, dpi: int = 100) -> None:
    """Write every figure of a result as PNG."""
    for stem, figure in plotting.figures(ds):
        figure.savefig(folder / f"{stem}.png", dpi=dpi)


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--sizes", default="[[8, 4], [128, 48]]", type=json.loads)
    asked = parser.parse_args()
    for name, ds in examples().items():
        for experts, layers in asked.sizes if asked.only is None or name in asked.only else ():
            folder = asked.folder / f"{experts}x{layers}"
            folder.mkdir(parents=True, exist_ok=True)
            drawn(resized(ds, experts, layers), folder)


if __name__ == "__main__":
    main()
