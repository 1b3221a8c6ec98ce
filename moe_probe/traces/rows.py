"""Rows of a trace: their columns, order and checksums, which do not depend on the program that wrote the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.deferred import Extra

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = Extra("pyarrow", "trace", "Routing traces")

FORMAT = 2  # of traces; another one is not read
CARD, DOCUMENTS, MANIFEST = "trace.json", "documents.parquet", ".trace-parts.jsonl"
KEYS = ("layer", "document", "position", "subtoken", "rank")  # which no two rows share
COLUMNS: Mapping[str, str] = {  # and what they hold
    "document": "int32",
    "position": "int32",
    "subtoken": "int16",
    "token_id": "int32",
    "label": "text",
    "layer": "int16",
    "rank": "int16",
    "expert": "int16",
    "kind": "text",
    "logit": "float",
    "score": "float",
    "weight": "float",
    "norm": "float",
    "router_logits": "floats",
    "scores": "floats",
    "selection": "floats",
}


@cache
def schema() -> pa.Schema:
    """The columns with their types."""
    kinds = {"text": pa.dictionary(pa.int32(), pa.string()), "floats": pa.list_(pa.float32())}
    return pa.schema([(name, kinds.get(kind) or pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])


def conform(rows: pa.Table, columns: Iterable[str] = tuple(COLUMNS)) -> pa.Table:
    """Returns the columns with this version's types, each in one piece; tools that rewrite files change types.

    Raises:
        ValueError: a column is missing, or holds other values.
    """
    arrays, fields = [], [schema().field(name) for name in columns]
    for field in fields:
        if rows.schema.get_field_index(field.name) < 0:
            raise ValueError(f"the column {field.name} is missing")
        array = rows[field.name].combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.nulls(0, field.type)
        arrays.append(array if array.type == field.type else array.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def digests(rows: pa.Table) -> dict[str, str]:
    """A checksum of each column's values in their order, 16 hexadecimal digits; row groups do not matter."""
    return {name: _digest(rows[name].combine_chunks()) for name in rows.column_names}


def _digest(column: Any) -> str:
    check = hashlib.blake2b(digest_size=8)
    for part in _parts(column):
        check.update(part)
    return check.hexdigest()


def _parts(column: Any) -> Iterable[bytes]:
    """The bytes of a column's values, and of the mask of missing ones."""
    if column.null_count:
        yield np.packbits(column.is_null().to_numpy(zero_copy_only=False)).tobytes()
        column = column.drop_null()
    if pa.types.is_list(column.type):
        yield np.diff(column.offsets.to_numpy()).tobytes()
        yield from _parts(column.flatten())
    elif pa.types.is_dictionary(column.type):
        yield "\0".join(column.cast(pa.string()).to_pylist()).encode()
    else:
        yield column.to_numpy(zero_copy_only=False).tobytes()


def part_names(files: Any) -> list[str]:
    """Names of the row files that a card lists, in any format; others are skipped."""
    listed = [entry.get("name") if isinstance(entry, Mapping) else entry for entry in files or ()]
    return [name for name in listed if isinstance(name, str) and is_part(name)]


def is_part(name: str) -> bool:
    """Whether a name is one that the writer gives to files of rows."""
    number = name.removeprefix("part-").removesuffix(".parquet")
    return name == f"part-{number}.parquet" and len(number) == 32 and set(number) <= set("0123456789abcdef")
