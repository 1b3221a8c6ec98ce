"""Results as tables for other programs: every number is in them, and nothing in them runs."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from moe_probe import dynamic
from moe_probe.cli import main
from moe_probe.errors import NoSuchName
from moe_probe.tabular import tables, write_tables

TEXTS = [[4, 9, 5, 9, 7, 11], [8, 9, 4, 12, 6]]


@pytest.fixture(scope="module")
def ds(mixtral):
    return dynamic.expert_load(mixtral, TEXTS, labels=["a", "b"], progress=False)


def test_every_value_stands_in_one_table(ds):
    seen = {}
    for name, table in tables(ds).items():
        dims = [] if name == "all" else name.split("-")
        for column in table.columns:
            if column in ds.data_vars:
                seen[column] = table
                shape = [ds.sizes[dim] for dim in dims]
                np.testing.assert_array_equal(table[column].to_numpy().reshape(shape), ds[column].values)
    assert set(seen) == set(ds.data_vars)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_what_is_written_is_read_back(ds, form, tmp_path):
    paths = write_tables(ds, tmp_path / "load", form)
    path = tmp_path / f"load.layer-expert.{form}"
    assert path in paths
    text = path.read_text(encoding="utf-8")
    back = pd.read_csv(io.StringIO(text), dtype={"expert": str}) if form == "csv" else pd.DataFrame(json.loads(text))
    np.testing.assert_allclose(back["share"], ds.share.values.ravel(), rtol=1e-12)
    assert list(back["expert"][:3]) == ["0", "1", "2"]


def test_latex_escapes_what_others_wrote(tmp_path):
    ds = xr.Dataset({"share": (("label",), [0.5])}, {"label": [r"\input{x} & 50 %"]}, {"analysis": "x"})
    text = write_tables(ds, tmp_path / "t", "latex")[0].read_text(encoding="utf-8")
    assert r"\input" not in text
    assert r"\& 50 \%" in text


def test_no_cell_is_a_formula(tmp_path):
    ds = xr.Dataset({"share": (("label",), [0.5])}, {"label": ["=1+1"]}, {"analysis": "x"})
    assert "'=1+1" in write_tables(ds, tmp_path / "t")[0].read_text(encoding="utf-8")


def test_an_unknown_format_is_refused(ds, tmp_path):
    with pytest.raises(NoSuchName, match="csv, json, latex"):
        write_tables(ds, tmp_path / "t", "xlsx")


def test_info_is_json_for_programs(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["moe-probe", "info", "ckpt/tiny-deepseek-moe", "--json"])
    with pytest.raises(SystemExit):
        main()
    read = json.loads(capsys.readouterr().out)
    assert read["moe_layers"][0]["shared_experts"] == 2
    assert read["active_parameters"] < read["parameters"]
