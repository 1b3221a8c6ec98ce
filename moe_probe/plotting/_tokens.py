"""Helpers of figures of single tokens: the choice of tokens, and the display of their strings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from moe_probe.errors import OutOfRange
from moe_probe.shown import printable

SHOWN = 4  # tokens, in figures with a panel for each


def rows(ds: xr.Dataset) -> xr.Dataset:
    """The result with sub-tokens, if there are any, as tokens of their own: `text.0`, `text.1`, ..."""
    if "subtoken" not in ds.dims:
        return ds
    parts = ds.sizes["subtoken"]
    stacked = ds.stack(row=("token", "subtoken"), create_index=False).rename(row="token")
    names = [f"{text}.{part}" for text in ds.string.values for part in range(parts)]
    ordered = {
        name: stacked[name].transpose(*(dim for dim in values.dims if dim != "subtoken"))
        for name, values in ds.data_vars.items()
    }
    return stacked.assign(ordered).assign_coords(string=("token", names))


def choose(ds: xr.Dataset, tokens: Sequence[int] | None) -> list[int]:
    """Positions along `token`: those given, or the first few.

    Raises:
        OutOfRange: a position does not exist.
    """
    if tokens is None:
        return list(range(min(SHOWN, ds.sizes["token"])))
    wrong = [token for token in tokens if not 0 <= token < ds.sizes["token"]]
    if wrong or not len(tokens):
        raise OutOfRange(
            f"The result has the tokens 0 to {ds.sizes['token'] - 1}, not {wrong or 'none'}; pass some of them."
        )
    return list(tokens)


def written(text: str) -> str:
    """A token's string for display, with visible blanks, line ends and control characters."""
    return printable(text).replace(" ", "·") or "∅"


def panel_title(ds: xr.Dataset, token: int, experts: np.ndarray) -> str:
    """The title of a token's panel: its position, string and chosen experts."""
    chosen = ", ".join(str(expert) for expert in experts[:6]) + (", …" if len(experts) > 6 else "")
    return f"{token}: {written(str(ds.string.values[token]))}\nexperts {chosen}"
