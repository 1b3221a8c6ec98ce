"""Reads files of texts as rows: CSV, TSV, JSON, JSON lines, Parquet, and plain text with a row per line."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.errors import ParserWarning

from moe_probe.deferred import needed
from moe_probe.errors import NothingToRead, reason
from moe_probe.shown import brief

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def read_file(path: str | os.PathLike[str]) -> Any:
    """Returns the rows of a file: strings, values by column, or JSON values, without interpreting them.

    Raises:
        NothingToRead: the file does not exist, is empty, or is not what its suffix says.
    """
    place = Path(path).expanduser()
    try:
        if place.is_dir():
            raise NothingToRead(f"{brief(path)} is a folder, not a file of texts; pass one of the files in it.")
        if not place.is_file():
            raise NothingToRead(f"{brief(path)} is not a file of texts; to pass a text itself, write [text].")
        suffix, content = place.suffix.lower(), place.read_bytes()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise NothingToRead(f"{brief(path)} is not a file of texts; to pass a text itself, write [text].") from error
    packed = next((name for magic, name in COMPRESSED.items() if content.startswith(magic)), None)
    if packed is not None:
        raise NothingToRead(f"{brief(path)} is compressed ({packed}); unpack it first.")
    if not content.strip(b"\xef\xbb\xbf \t\r\n"):
        raise NothingToRead(f"{brief(path)} is empty; pass a file with at least one text.")
    try:
        return READERS.get(suffix, _lines)(content)
    except (ValueError, ParserWarning, RecursionError) as error:
        kind = suffix.lstrip(".") if suffix in READERS else "UTF-8 text"
        raise NothingToRead(
            f"{brief(path)} cannot be read as {kind} ({reason(error)}); correct it, or its suffix."
        ) from error


def _text(content: bytes) -> str:
    return content.decode("utf-8-sig")


def _lines(content: bytes) -> list[str]:
    """Splits into lines at line feeds only, not at other line ends of Unicode."""
    lines = [line.removesuffix("\r") for line in _text(content).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _json_lines(content: bytes) -> list[Any]:
    rows = []
    for number, line in enumerate(_lines(content), start=1):
        try:
            rows += [_json(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return rows


def _json_file(content: bytes) -> Any:
    """One value, which is a list of rows or has rows by label; else JSON lines under another suffix."""
    try:
        whole = _json(_text(content))
    except ValueError:
        return _json_lines(content)
    return whole if isinstance(whole, list) or not _is_row(whole) else [whole]


def _is_row(value: Any) -> bool:
    return not (isinstance(value, dict) and all(isinstance(part, list) for part in value.values()))


def _json(text: str) -> Any:
    return json.loads(text, parse_float=str, parse_constant=lambda name: None)  # 1.50 stays as it was written


def _table(separator: str) -> Callable[[bytes], list[dict[str, Any]]]:
    def read(content: bytes) -> list[dict[str, Any]]:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)  # more fields than columns: a comma that is not quoted
            frame = pd.read_csv(
                io.StringIO(_text(content)),
                sep=separator,
                dtype=str,
                keep_default_na=False,
                skip_blank_lines=False,
                index_col=False,
            )
        return frame.to_dict("records")

    return read


def _parquet(content: bytes) -> list[dict[str, Any]]:
    with needed("pyarrow", "trace", "Parquet files"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        return pq.ParquetFile(pa.BufferReader(content)).read().to_pylist()
    except pa.ArrowException as error:
        raise ValueError(*error.args) from error


READERS: dict[str, Callable[[bytes], Any]] = {
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
    ".parquet": _parquet,
}
