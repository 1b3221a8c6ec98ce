"""Checked choice of the part of a result that a figure shows; by default the first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from moe_probe.errors import NoSuchName, NotFitting


def pick(ds: xr.Dataset, dim: str, value: Any = None) -> Any:
    """The coordinate `value` of a dimension; its first one by default.

    Raises:
        NoSuchName: the result has no such coordinate.
    """
    known = np.atleast_1d(ds[dim].values).tolist()
    if value is None:
        return known[0]
    if value not in known:
        raise NoSuchName.among(dim, value, known)
    return known[known.index(value)]


def pick_layer(ds: xr.Dataset, layer: int | None) -> int:
    """The number of a layer of the result; of its first one by default.

    Raises:
        NoSuchName: the result has no such layer.
    """
    return int(pick(ds, "layer", layer))


def with_layer_dimension(ds: xr.Dataset, over_layers: Iterable[str]) -> xr.Dataset:
    """Returns a result like `result.sel(layer=3)` in the form of `result.sel(layer=[3])`.

    Args:
        ds: a result whose coordinate `layer` has no dimension.
        over_layers: its variables that do not belong to a single layer.
    """
    whole = set(over_layers)
    variables = {
        name: values.drop_vars("layer") if name in whole else values.expand_dims("layer")
        for name, values in ds.data_vars.items()
    }
    result = xr.Dataset(variables, attrs=ds.attrs)
    coords = ds.drop_vars("layer").coords.items()
    return result.assign_coords({name: values for name, values in coords if name not in result.coords})


def require(ds: xr.Dataset, dims: Iterable[str]) -> None:
    """Raises an error if a result lacks dimensions, as after `ds.sel(layer=2)` or `ds.mean("layer")`.

    Raises:
        NotFitting: a dimension is missing.
    """
    empty = [f"no {dim}" for dim, size in ds.sizes.items() if not size]
    if empty or not ds.data_vars:
        lacking = " and ".join(map(str, empty)) or "no variables"
        raise NotFitting(
            f"This result of {ds.attrs.get('analysis')} has {lacking}; pass the result as it was returned."
        )
    for dim in dims:
        if dim not in ds.dims:
            how = f"keep it with ds.sel({dim}=[...])" if dim in ds.coords else "pass the result as it was returned"
            name, known = ds.attrs.get("analysis"), ", ".join(map(str, ds.dims)) or "none"
            raise NotFitting(f"This result of {name} has the dimensions {known}; its figure needs {dim!r}: {how}.")
