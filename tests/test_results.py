"""Results survive the disk to the letter, and say so when they did not."""

import multiprocessing
import os
import resource

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import moe_probe
from moe_probe.errors import AlreadyThere, Damaged, MachineError, NothingToRead
from moe_probe.results import SCHEMA, dataset, load_result, provenance, save

FORK = multiprocessing.get_context("fork")


class Model:
    name, family, fingerprint = "by hand", "none", "0"


def small(labels=("a", "b"), **attrs):
    share = xr.DataArray([[1.0, np.nan], [3.0, 4.0]], dims=("layer", "expert"))
    share = share.assign_coords(layer=[0, 5], expert=["0", "1"], label=("expert", list(labels)))
    share.attrs = {"long_name": "Share of choices", "units": ""}
    return dataset({"share": share}, {**provenance("expert_load", Model(), threshold=0.5), **attrs})


def test_a_result_says_where_it_comes_from():
    attrs = small().attrs
    assert attrs["schema"] == SCHEMA
    assert '"moe-probe"' in attrs["versions"]
    assert attrs["parameters"] == '{"threshold": 0.5}'


def test_variables_say_what_they_are_and_have_names_that_xarray_does_not_hide():
    share, attrs = small().share, small().attrs
    for name in ("count", "mean", "var", "load"):
        with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
            dataset({name: share}, attrs)
    with pytest.raises(ValueError, match="'share' lacks long_name"):
        dataset({"share": xr.DataArray([1.0], dims="layer", attrs={"units": ""})}, attrs)
    with pytest.raises(ValueError, match="lacks analysis, family"):
        dataset({}, {})


@pytest.mark.parametrize("labels", [("a\0b", "c"), ("\ud800", "\x1b[31m"), ("中文", "\u2028"), ("", "\\x41")])
def test_any_text_survives(labels, tmp_path):
    found = small(labels)
    xr.testing.assert_identical(load_result(save(found, tmp_path / "a.nc")), found)
    assert found.label.values.tolist() == list(labels)


def save_within(path, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with pytest.raises(MachineError, match=r"a\.nc cannot be written \(File too large\); raise the limit"):
        save(small(), path)


ATTRS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
    st.integers(-5, 5),
    st.floats(allow_nan=True),
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
    st.lists(st.sampled_from(["a", "bc"]), min_size=1, max_size=3),
)


@settings(max_examples=30)
@given(value=ATTRS)
def test_results_with_all_kinds_of_attrs_load(value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "attrs.nc"
    assert load_result(save(small(extra=value), path)).attrs.keys() == small(extra=value).attrs.keys()


def test_all_kinds_of_values_load(tmp_path):
    found = small()
    for dtype in (bool, np.int8, np.uint16, np.int64, np.float32, np.float64):
        found[f"as_{np.dtype(dtype)}"] = ("layer", np.asarray([1, 0], dtype))
    found["words"] = ("layer", np.asarray(["a", "longer"]))
    found["nothing"] = ("none", np.zeros(0))
    found["single"] = 3.5
    loaded = load_result(save(found, tmp_path / "a.nc"))
    xr.testing.assert_identical(loaded, found)
    xr.testing.assert_identical(load_result(save(loaded, tmp_path / "again.nc")), found)


def test_what_is_no_result_is_refused(tmp_path):
    with pytest.raises(NothingToRead, match=r"none\.nc is not a file; pass a result"):
        load_result(tmp_path / "none.nc")
    with pytest.raises(NothingToRead):
        load_result(tmp_path)
    xr.Dataset({"x": ("a", [1])}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(Damaged, match="not a result of moe_probe: it has no attribute 'analysis'"):
        load_result(tmp_path / "other.nc")
    older = small()
    older.attrs["schema"] = 1
    with pytest.raises(Damaged, match="results in format 1, but this version reads format 2; compute"):
        load_result(save(older, tmp_path / "older.nc"))
    del older.attrs["schema"]
    older.to_netcdf(tmp_path / "oldest.nc", engine="h5netcdf")
    with pytest.raises(Damaged, match="results in format 1"):
        load_result(tmp_path / "oldest.nc")


def test_a_result_that_was_edited_is_refused(tmp_path):
    save(small(), tmp_path / "a.nc")
    edited = xr.load_dataset(tmp_path / "a.nc", engine="h5netcdf")
    edited.share[0, 0] = 2.0
    edited.to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with pytest.raises(Damaged, match="was changed or cut off after it was saved; compute"):
        load_result(tmp_path / "b.nc")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of h5netcdf, when it is half made
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_result_is_refused_or_means_the_same(data, tmp_path_factory):
    path = save(small(), tmp_path_factory.getbasetemp() / "damaged.nc")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, len(content) // 2, 8, 0]))])
    try:
        loaded = load_result(path)
    except Damaged as error:
        assert len(str(error)) < 600  # noqa: PT017 - either this or the same values
    else:
        xr.testing.assert_identical(loaded, small())


def test_a_full_disk_is_said_and_leaves_the_old_result(tmp_path):
    path = save(small(), tmp_path / "a.nc")
    process = FORK.Process(target=save_within, args=(path, 1000))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    xr.testing.assert_identical(load_result(path), small())


def test_a_pipe_is_no_place_for_a_result(tmp_path):
    os.mkfifo(tmp_path / "pipe.nc")
    with pytest.raises(AlreadyThere, match="is a pipe"):
        save(small(), tmp_path / "pipe.nc")


def test_labels_of_experts_are_strings_and_say_so(tmp_path):
    ds = moe_probe.static.gate_similarity("ckpt/tiny-mixtral", layers=[0])
    for result in (ds, load_result(save(ds, tmp_path / "r.nc"))):
        assert float(result.cosine.sel(layer=0, expert="3", other="3")) == pytest.approx(1)
        with pytest.raises(KeyError):
            result.sel(expert=3)
        assert result.expert.attrs["long_name"] == "label of the expert, a string"
        assert "sel(expert='5')" in result.expert.attrs["comment"]
        assert "sel(other='5')" in result.other.attrs["comment"]
        assert "labels are strings" in repr(result.expert)
