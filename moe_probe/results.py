"""Results: labelled datasets with their provenance, saved and loaded whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr

from moe_probe.errors import InputError
from moe_probe.files import whole_file

LIBRARIES = ("moe-probe", "torch", "transformers", "numpy", "scipy", "scikit-learn")


def provenance(analysis: str, model: Any, **parameters: Any) -> dict[str, Any]:
    """The `attrs` of a result: analysis, model, parameters (those that are set, as JSON) and library versions.

    Args:
        analysis: name of the function that computes the result.
        model: a `MoEModel`.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    return {
        "analysis": analysis,
        "model": model.name,
        "family": model.family,
        "fingerprint": model.fingerprint,
        "parameters": json.dumps(given, default=str, sort_keys=True),
        "versions": _versions(),
    }


@cache
def _versions() -> str:
    return json.dumps({name: version(name) for name in LIBRARIES})


def save(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write a result as netCDF; the file appears under its name only when it is complete.

    Returns:
        The path.
    """
    with whole_file(path) as partial:
        dataset.to_netcdf(partial, engine="h5netcdf")
    return Path(path)


def load_result(path: str | Path) -> xr.Dataset:
    """Read a result that `save` wrote, into memory.

    Raises:
        InputError: the file is no result of moe_probe.
    """
    try:
        with xr.open_dataset(path, engine="h5netcdf") as dataset:
            loaded = dataset.load()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a result file ({error}).") from error
    if "analysis" not in loaded.attrs:
        raise InputError(f"{path} is a netCDF file, but not a result of moe_probe: it has no attribute 'analysis'.")
    return loaded


def with_attrs(variables: Mapping[str, Any], coords: Mapping[str, Any], attrs: Mapping[str, Any]) -> xr.Dataset:
    """A Dataset of `variables` (name to (dims, values)); labels become strings that netCDF keeps."""
    return xr.Dataset(dict(variables), coords=dict(coords), attrs=dict(attrs))


def dataset(variables: Mapping[str, xr.DataArray], about: Mapping[str, Any]) -> xr.Dataset:
    """A Dataset of variables with its provenance.

    Raises:
        ValueError: a variable bears a name that `xr.Dataset` hides, or lacks `long_name` or `units`.
    """
    for name, array in variables.items():
        if hasattr(xr.Dataset, name):
            raise ValueError(f"A variable cannot be called {name!r}: xr.Dataset has an attribute of that name.")
        if lacking := {"long_name", "units"} - array.attrs.keys():
            raise ValueError(f"The variable {name} has no {' and no '.join(sorted(lacking))}.")
    return xr.Dataset(dict(variables)).assign_attrs(about)
