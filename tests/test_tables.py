"""Short tables on the terminal: the numbers, and labels that cannot steer it."""

import io

import numpy as np
import xarray as xr

from moe_probe.cli.tables import summary
from moe_probe.shown import PlainConsole


def test_a_short_table_shows_labels_as_they_are():
    tasks = ["a[red]", "b\x1b[2J"]
    values = xr.DataArray(np.array([[1.5, np.nan]]), dims=("layer", "task"))
    attrs = {"analysis": "task_load", "model": "m"}
    variables = {"ffn_per_token": values, "share": (("layer", "task", "expert"), np.ones((1, 2, 1)))}
    dataset = xr.Dataset(variables, {"layer": [3], "task": tasks, "expert": ["0"]}, attrs)
    console = PlainConsole(file=io.StringIO(), width=100)
    console.print(summary(dataset))
    written = console.file.getvalue()
    for text in ("FFN experts per token", "a[red]", r"b\x1b[2J", "1.500", "nan"):
        assert text in written
    assert summary(dataset.assign_attrs(analysis="record")) is None
