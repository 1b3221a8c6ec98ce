"""Variables of results: named, with units, and with the reason where a value is undefined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr


def variable(
    dims: Sequence[str], values: np.ndarray, long_name: str, units: str = "1", undefined: str | None = None
) -> xr.DataArray:
    """A labeled variable of a result.

    Args:
        dims: names of the dimensions.
        values: of any dtype; NaN (-1 in whole numbers) is an undefined value.
        long_name: what it is, as an axis of a figure says it.
        units: of the values; `1` for a plain number.
        undefined: why a value is undefined; kept where one is.
    """
    attrs = {"long_name": long_name, "units": units}
    missing = np.isnan(values) if values.dtype.kind == "f" else values < 0 if values.dtype.kind == "i" else False
    if undefined and np.any(missing):
        attrs["undefined"] = undefined
    return xr.DataArray(values, dims=list(dims), attrs=attrs)
