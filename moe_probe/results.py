"""Results: labeled datasets with provenance; saving and loading keeps everything."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import h5py
import numpy as np
import xarray as xr

from moe_probe.checked import digest, seal, unsealed
from moe_probe.errors import Damaged, NothingToRead, reason
from moe_probe.files import as_path, whole_file
from moe_probe.shown import brief, html_table
from moe_probe.signatures import checked

SCHEMA = 2  # number of the format of saved results
LIBRARIES = ("moe-probe", "torch", "transformers", "numpy", "scipy", "scikit-learn")
DIGEST, ESCAPED = "digest", "escaped"
# dimensions whose coordinates are labels of experts, and whose experts these are
EXPERTS = {"expert": "the expert", "other": "the other expert", "source": "the expert of the layer before"}
SELECTED = "labels are strings: sel({name}='5'); 'S' is the shared block, 'F' the FFN of a dense layer"


class Provenance(TypedDict):
    """The `attrs` that every result has; its analysis may add others.

    `schema` is the number of the result format; `parameters` and `versions` are JSON.
    """

    analysis: str
    model: str
    family: str
    fingerprint: str
    parameters: str
    versions: str
    schema: int


class Results(dict[str, xr.Dataset]):
    """Results by the name of their analysis; a notebook shows them as a table of variables and sizes.

    Examples:
        >>> "alone" in Results(alone=xr.Dataset())._repr_html_()
        True
    """

    def _repr_html_(self) -> str:
        rows = [(name, f"{_sizes(ds)}: {', '.join(map(str, ds.data_vars))}") for name, ds in self.items()]
        models = {str(ds.attrs.get("model")) for ds in self.values() if "model" in ds.attrs}
        return html_table(f"results of {', '.join(sorted(models)) or 'no model'}", rows)


def _sizes(ds: xr.Dataset) -> str:
    return " × ".join(f"{size} {dim}" for dim, size in ds.sizes.items()) or "no dimensions"


def provenance(analysis: str, model: Any, **parameters: Any) -> dict[str, Any]:
    """Returns the `attrs` of a result: analysis, model, parameters that are not None (as JSON), and library versions.

    Args:
        analysis: name of the function that computes the result.
        model: the analyzed model.
        parameters: those of the analysis, by name.
    """
    stated = {name: value for name, value in parameters.items() if value is not None}
    about = Provenance(
        analysis=analysis,
        model=model.name,
        family=model.family,
        fingerprint=model.fingerprint,
        parameters=json.dumps(stated, default=str, sort_keys=True),
        versions=_versions(),
        schema=SCHEMA,
    )
    return dict(about)


@cache
def _versions() -> str:
    return json.dumps({name: version(name) for name in LIBRARIES})


def variable(
    dims: Sequence[str], values: Any, long_name: str, units: str = "1", undefined: str | None = None
) -> xr.DataArray:
    """Returns a labeled variable of a result.

    Args:
        dims: names of the dimensions.
        values: an array of any dtype; NaN (-1 among whole numbers) marks an undefined value.
        long_name: the label of the axis in a figure.
        units: of the values; `1` for a plain number.
        undefined: why values can be undefined; recorded only if one is.
    """
    values = np.asarray(values)
    attrs = {"long_name": long_name, "units": units}
    missing = np.isnan(values) if values.dtype.kind == "f" else values < 0 if values.dtype.kind == "i" else False
    if undefined and np.any(missing):
        attrs["undefined"] = undefined
    return xr.DataArray(values, dims=list(dims), attrs=attrs)


def dataset(
    variables: Mapping[str, xr.DataArray], about: Mapping[str, Any], coords: Mapping[str, Any] | None = None
) -> xr.Dataset:
    """Returns a result of `variables`, each with `long_name` and `units` in its attrs ("" if it has no unit).

    Args:
        variables: by name; their coordinates become those of the result.
        about: the result's attrs, `Provenance` and what the analysis adds.
        coords: further coordinates, as `xr.Dataset` takes them; those of dimensions that no variable has are omitted.

    Raises:
        ValueError: `xr.Dataset` has an attribute of a variable's name, or a variable lacks `long_name` or `units`.
    """
    for name, values in variables.items():
        if hasattr(xr.Dataset, name):
            raise ValueError(f"A variable cannot be called {name!r}: xr.Dataset.{name} hides it; choose another name.")
        missing = [attr for attr in ("long_name", "units") if attr not in values.attrs]
        if missing:
            raise ValueError(f"The variable {name!r} lacks {' and '.join(missing)} in its attrs; add them.")
    absent = sorted(Provenance.__required_keys__ - about.keys())
    if absent:
        raise ValueError(f"A result lacks {', '.join(absent)} in its attrs; pass provenance(...).")
    result = xr.Dataset(dict(variables), attrs=dict(about))
    along = {name: value[0] if isinstance(value, tuple) else name for name, value in (coords or {}).items()}
    labeled = {name: value for name, value in (coords or {}).items() if along[name] in result.dims}
    return _with_labels_told(result.assign_coords(labeled))


def _with_labels_told(result: xr.Dataset) -> xr.Dataset:
    """Returns the result with a note on the coordinates of its experts that their labels are strings."""
    for name, whose in EXPERTS.items():
        if name in result.coords and result[name].dtype.kind in "OUT":
            told = {"long_name": f"label of {whose}, a string", "comment": SELECTED.format(name=name)}
            result[name].attrs.update(told)
    return result


@checked
def save(dataset: xr.Dataset, path: str | Path) -> Path:
    """Writes a result as netCDF; the file appears under its name only when it is complete.

    Returns:
        The path of the file.

    Raises:
        AlreadyThere: the path is a folder, a pipe or a device.
        MachineError: the disk is full or not writable.
    """
    path = as_path(path)
    content = _storable(dataset).to_netcdf(engine="h5netcdf")  # in memory: HDF5 does not survive a full disk
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.write(seal(content))
    return Path(path)


@checked
def load_result(path: str | Path) -> xr.Dataset:
    """Reads a result that `save` wrote, into memory.

    Raises:
        NothingToRead: the file does not exist.
        Damaged: the file is not a result of moe_probe, or was cut off, edited, or written in another format.
    """
    path = as_path(path)
    if not Path(path).is_file():
        raise NothingToRead(f"{brief(path)} is not a file; pass a result (.nc) that moe_probe saved.")
    try:
        content = io.BytesIO(unsealed(Path(path).read_bytes()))
        with h5py.File(content), xr.open_dataset(content, engine="h5netcdf") as opened:
            loaded = opened.load()
        analysis, schema, stored = (loaded.attrs.get(name) for name in ("analysis", "schema", DIGEST))
        whole = stored == _digest(loaded)
        plain = _plain(loaded) if whole else loaded
    except Exception as error:  # HDF5 and its readers raise whatever a damaged file leads them to
        raise Damaged(f"{brief(path)} is not a result file ({reason(error)}); compute the result again.") from error
    if analysis is None:
        raise Damaged(
            f"{brief(path)} is a netCDF file, but not a result of moe_probe: it has no attribute 'analysis'; pass a "
            "file that moe_probe saved."
        )
    if schema != SCHEMA:
        raise Damaged(
            f"{brief(path)} has results in format {schema or 1}, but this version reads format {SCHEMA}; compute the "
            "result again."
        )
    if not whole:
        raise Damaged(f"{brief(path)} was changed or cut off after it was saved; compute the result again.")
    return plain


def _storable(dataset: xr.Dataset) -> xr.Dataset:
    """A copy that netCDF stores without change, with a checksum of its content among its attrs."""
    stored = dataset.copy(deep=False)
    stored.attrs = {"schema": SCHEMA, **stored.attrs}
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "OU" and any(map(_unstorable, variable.values.flat)):
            stored[name] = _mapped(variable, _escape, {**variable.attrs, ESCAPED: "unicode"})
    stored.attrs[DIGEST] = _digest(stored)
    return stored


def _plain(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset that was saved, restored from the one that was read."""
    dataset.attrs.pop(DIGEST, None)
    for name, variable in list(dataset.variables.items()):
        if ESCAPED in variable.attrs:
            attrs = {key: value for key, value in variable.attrs.items() if key != ESCAPED}
            dataset[name] = _mapped(variable, _unescape, attrs)
    return dataset


def _mapped(variable: xr.Variable, function: Any, attrs: Mapping[str, Any]) -> xr.Variable:
    texts = [function(str(value)) for value in variable.values.flat]
    arrow_takes = not any("\ud800" <= c <= "\udfff" for text in texts for c in text)
    values = np.asarray(texts, dtype=object if arrow_takes else str)  # str alone would drop NULs at the end
    return xr.Variable(variable.dims, values.reshape(variable.shape), attrs)


def _unstorable(text: Any) -> bool:
    """Whether netCDF would truncate a text (NUL) or refuse it (lone surrogates)."""
    return isinstance(text, str) and ("\0" in text or any("\ud800" <= c <= "\udfff" for c in text))


def _escape(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def _unescape(text: str) -> str:
    return text.encode("ascii").decode("unicode_escape")


def _digest(dataset: xr.Dataset) -> str:
    """A checksum of all names, dimensions, values and attrs."""
    parts = [_of_attrs({key: value for key, value in dataset.attrs.items() if key != DIGEST})]
    for name in sorted(map(str, dataset.variables)):
        variable = dataset.variables[name]
        parts.append(f"{name} {variable.dims} {variable.shape} {_of_attrs(variable.attrs)} {_of_values(variable)}")
    return digest("\n".join(parts))


def _of_values(variable: xr.Variable) -> str:
    values = variable.values
    if values.dtype.kind in "OUST":
        return digest("\n".join(f"{len(str(value))} {value}" for value in values.flat))
    return digest(values.astype(values.dtype.newbyteorder("=")))


def _of_attrs(attrs: Mapping[Any, Any]) -> str:
    said = {str(key): np.atleast_1d(value).tolist() for key, value in attrs.items()}
    return json.dumps(said, sort_keys=True, default=str)
