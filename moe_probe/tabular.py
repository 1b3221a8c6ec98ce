"""Results as tables for other programs: CSV, JSON and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
import xarray as xr

from moe_probe.errors import NoSuchName
from moe_probe.files import as_path, make_folder, whole_file
from moe_probe.shown import csv_cell, file_name
from moe_probe.signatures import checked

Format = Literal["csv", "json", "latex"]
SUFFIXES: Mapping[str, str] = {"csv": ".csv", "json": ".json", "latex": ".tex"}


@checked
def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """Returns a result as tables: one for all variables of the same dimensions, a row for each point of these.

    Args:
        ds: result of any analysis.

    Returns:
        DataFrames by their dimensions, joined by `-`, such as `layer-expert`; `all` for numbers without dimensions.
        Columns are the dimensions, further coordinates along them (such as an expert's kind), and the variables.

    Examples:
        >>> from moe_probe import dynamic
        >>> from moe_probe.tabular import tables
        >>> ds = dynamic.expert_load("ckpt/tiny-mixtral", ["A short text."], progress=False)
        >>> list(tables(ds)["layer-expert"].columns[:3])
        ['layer', 'expert', 'kind']
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, variable in ds.data_vars.items():
        groups.setdefault(tuple(map(str, variable.dims)), []).append(str(name))
    return {"-".join(dims) or "all": _table(ds[names], dims) for dims, names in groups.items()}


def _table(part: xr.Dataset, dims: tuple[str, ...]) -> pd.DataFrame:
    if not dims:
        return pd.DataFrame([{name: variable.item() for name, variable in part.data_vars.items()}])
    known = part.reset_coords([name for name in part.coords if name not in dims])
    frame = known.to_dataframe(dim_order=list(dims)).reset_index()
    besides = [name for name in frame.columns if name not in dims and name not in part.data_vars]
    return frame.reindex(columns=[*dims, *besides, *part.data_vars])


@checked
def write_tables(ds: xr.Dataset, stem: str | Path, format: Format = "csv") -> list[Path]:
    """Writes every table of a result to `<stem>.<dimensions>.<suffix>`.

    Args:
        ds: result of any analysis.
        stem: path without suffix.
        format: `csv`, `json` (a list of rows) or `latex` (booktabs, text escaped).

    Raises:
        NoSuchName: there is no such format.
        MachineError: the disk is full or not writable.
    """
    if format not in SUFFIXES:
        raise NoSuchName.among("format of tables", format, get_args(Format))
    stem = as_path(stem)
    make_folder(stem.parent)
    written = []
    for name, table in tables(ds).items():
        path = stem.with_name(f"{stem.name}.{file_name(name)}{SUFFIXES[format]}")
        with whole_file(path) as partial:
            partial.write_text(_written(table, format), encoding="utf-8")
        written.append(path)
    return written


def _written(table: pd.DataFrame, format: Format) -> str:
    if format == "csv":
        safe = table.map(lambda value: csv_cell(value) if isinstance(value, str) else value)
        text = safe.to_csv(index=False, lineterminator="\n")
    elif format == "json":
        text = table.to_json(orient="records", indent=1, double_precision=15)
    else:
        text = table.to_latex(index=False, escape=True, float_format="%.4g")
    return text or ""
