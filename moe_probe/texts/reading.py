"""Reads texts of any form (files, tables, lists, token ids, chats) as rows, without a tokenizer."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import index
from typing import Any

import numpy as np
import pandas as pd
import torch

from moe_probe.errors import InputError, NoSuchName, NotFitting, NothingToRead, OutOfRange, WrongType
from moe_probe.texts.corpus import Corpus
from moe_probe.texts.files import read_file

IDS, MASK = "input_ids", "attention_mask"
TEXT_COLUMNS = ("text", "content", "document", "sentence", "messages", IDS)
ACCEPTED = (
    "a list of strings or of lists of token ids, a file, a DataFrame, a datasets Dataset, what a tokenizer returned, "
    "chats, or {label: [texts]}"
)


@dataclass(frozen=True)
class Chat:
    """Messages of a conversation, each with `role` and `content`, which the tokenizer's template makes into a text."""

    messages: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Row:
    """One text before it is tokenized.

    Attributes:
        number: number of the row, counting blank rows.
        content: a text, token ids, or a conversation.
        label: domain, task or other group; "" for none.
        cluster: the cluster with which intervals resample it; "" for the row alone.
    """

    number: int
    content: str | tuple[int, ...] | Chat
    label: str = ""
    cluster: str = field(default="", repr=False)


Texts = str | os.PathLike[str] | Corpus | Iterable[Any] | Mapping[str, Any]


def read_rows(
    texts: Texts,
    *,
    column: str | None = None,
    labels: Sequence[str] | str | None = None,
    unit: Sequence[str] | str | None = None,
    split: str | None = None,
) -> list[Row]:
    """Reads texts as rows, once, so that several models can tokenize them.

    Args:
        texts: a list (or generator) of strings, of lists of token ids, of rows with named columns, or of chats; a file
            (`.txt`: a row per line; `.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet`); a DataFrame, a Series, a `datasets`
            dataset; an array of token ids, (documents, tokens) or (tokens,) for one document; what a tokenizer
            returned, whose padding is dropped; `{label: [texts]}`; or rows that were read already.
        column: the column of the text; by default `text`, `content`, `document`, `sentence`, `messages` or `input_ids`.
        labels: a label per row, blank ones included, or the name of the column that holds it.
        unit: a cluster per row, or the name of the column that holds it; intervals resample clusters as a whole.
        split: of a dataset that has several.

    Returns:
        Rows that are not blank, with their numbers among all rows.

    Raises:
        NothingToRead: the file does not exist, or has no text.
        WrongType: the texts, or a row, are of another type.
        NoSuchName: there is no such column or split.
        NotFitting: the labels do not fit the rows.

    Examples:
        >>> read_rows({"code": ["x = 1"], "prose": ["A text."]})[1]
        Row(number=1, content='A text.', label='prose')
    """
    if isinstance(texts, list) and texts and all(isinstance(row, Row) for row in texts):
        refuse_options("rows that were read already", column=column, labels=labels, unit=unit, split=split)
        return texts
    records, implied = _records(texts, column, labels, split)
    contents = [_content(record, number, column) for number, record in enumerate(records)]
    named = implied if implied is not None else _labels(records, labels)
    clusters = _labels(records, unit, "unit")
    rows = [
        Row(number, content, label, cluster)
        for number, (content, label, cluster) in enumerate(zip(contents, named, clusters, strict=True))
        if content is not None and not _is_blank(content)
    ]
    if not rows:
        raise NothingToRead("The corpus is empty; pass at least one text that is not blank.")
    _warn_of_blanks(len(records), {row.number for row in rows})
    return rows


def refuse_options(what: str, **options: object) -> None:
    """Raises an error if options would have no effect on `what`.

    Raises:
        NotFitting: one of them is not None.
    """
    stated = [name for name, value in options.items() if value is not None]
    if stated:
        raise NotFitting(f"The texts are {what}, so {stated[0]}= has no effect; omit it, or pass the texts.")


def _warn_of_blanks(total: int, numbers: set[int]) -> None:
    blank = total - len(numbers)
    if blank:
        examples = ", ".join(map(str, islice((n for n in range(total) if n not in numbers), 5)))
        warnings.warn(
            f"{blank} of {total} rows are blank and are skipped ({examples}{', ...' if blank > 5 else ''}); the other "
            "documents keep their row numbers.",
            stacklevel=4,
        )


def _is_blank(content: str | tuple[int, ...] | Chat) -> bool:
    return not (content.strip() if isinstance(content, str) else content)


def _records(texts: Any, column: str | None, labels: Any, split: str | None) -> tuple[list[Any], list[str] | None]:
    """The rows, and their labels if the container has them."""
    if _is_split(texts):
        texts, split = _one_split(texts, split), None
    if split is not None:
        raise NotFitting(f"The texts have no splits, so split={split!r} has no effect; omit it.")
    if isinstance(texts, str | os.PathLike):
        texts = read_file(os.fsdecode(texts))
    if isinstance(texts, Mapping):
        return _of_mapping(texts, column, labels)
    return _of_sequence(texts, column), None


def _is_split(texts: Any) -> bool:
    """Whether texts are a `DatasetDict`: datasets by the names of their splits."""
    return isinstance(texts, Mapping) and bool(texts) and all(hasattr(part, "column_names") for part in texts.values())


def _one_split(texts: Mapping[str, Any], split: str | None) -> Any:
    if split is None:
        raise NotFitting(
            f"The dataset has the splits {', '.join(texts)}; pass one of them, such as split={next(iter(texts))!r}."
        )
    if split not in texts:
        raise NoSuchName.among("split", split, texts)
    return texts[split]


def _of_sequence(texts: Any, column: str | None) -> list[Any]:
    """Rows of tables, arrays and other sequences."""
    if isinstance(texts, pd.DataFrame):
        return texts.to_dict("records")
    if callable(getattr(texts, "to_pylist", None)):  # of pyarrow
        return texts.to_pylist()
    if isinstance(texts, pd.Series):
        return texts.tolist()
    if isinstance(texts, np.ndarray | torch.Tensor):
        return _of_array(texts)
    unordered = isinstance(texts, bytes | bytearray | set | frozenset | io.IOBase)
    if unordered or (not isinstance(texts, Iterable) and not hasattr(texts, "__getitem__")):
        raise WrongType(f"The texts are {_kind(texts)}; pass {ACCEPTED}.")
    to_dicts = getattr(texts, "to_dicts", None)  # of polars
    if callable(to_dicts):
        texts = to_dicts()
    rows = list(texts)
    return [rows] if column is None and _is_chat(rows) else rows


def _of_array(texts: np.ndarray | torch.Tensor) -> list[Any]:
    if isinstance(texts, np.ndarray) and texts.ndim == 1 and texts.dtype.kind in "OUT":
        return texts.tolist()
    if texts.ndim not in (1, 2):
        raise WrongType(
            f"The texts are an array of shape {tuple(texts.shape)}; token ids are (documents, tokens), or (tokens,) "
            "for one document."
        )
    return [texts] if texts.ndim == 1 else list(texts)


def _of_mapping(texts: Any, column: str | None, labels: Any) -> tuple[list[Any], list[str] | None]:
    """Rows of a tokenizer's output, of columns by name, or of texts by label."""
    if IDS in texts and (column is None or column == IDS):
        return _encoded(texts), None
    lists = {str(key): _values_of(key, value) for key, value in texts.items()}
    lengths = {len(values) for values in lists.values()}
    if column is not None or isinstance(labels, str):
        if len(lengths) > 1:
            raise NotFitting(f"The columns {', '.join(lists)} have {sorted(lengths)} rows; pass columns of one length.")
        return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)], None
    ambiguous = next((name for name in TEXT_COLUMNS if name in lists), None)
    if ambiguous is not None and len(lists) > 1 and len(lengths) == 1:
        raise NotFitting(
            f"The texts have the keys {', '.join(lists)}, which may be columns or labels; pass column={ambiguous!r} if "
            "they are columns, or other labels."
        )
    refuse_options("given by label", labels=labels)
    return [row for rows in lists.values() for row in rows], [_label(key) for key, rows in lists.items() for _ in rows]


def _values_of(key: object, values: Any) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise WrongType(f"{key!r} has {_kind(values)}; pass a list of texts for each label: {{{key!r}: [text]}}.")
    return _of_sequence(values, column="")


def _encoded(texts: Mapping[str, Any]) -> list[Any]:
    """Rows of a tokenizer's output; a single row if its ids are of a single text."""
    ids, mask = texts[IDS], texts.get(MASK)
    single = getattr(ids, "ndim", 2) == 1 or (isinstance(ids, list | tuple) and len(ids) > 0 and not np.ndim(ids[0]))
    if single:
        return [{IDS: ids, MASK: mask}]
    masks = [None] * len(ids) if mask is None else list(mask)
    if len(masks) != len(ids):
        raise NotFitting(
            f"There are {len(ids)} rows of input_ids, but {len(masks)} of attention_mask; pass one for each."
        )
    return [{IDS: row, MASK: row_mask} for row, row_mask in zip(ids, masks, strict=True)]


def _is_chat(value: Any) -> bool:
    messages = isinstance(value, list | tuple) and len(value) > 0
    return messages and all(isinstance(part, Mapping) and {"role", "content"} <= part.keys() for part in value)


def _content(record: Any, number: int, column: str | None) -> str | tuple[int, ...] | Chat | None:
    """The text, token ids or conversation of a row; None if it has none."""
    if isinstance(record, pd.Series):
        record = record.to_dict()
    if isinstance(record, Mapping):
        return _field(record, number, column)
    if record is None or record is pd.NA or (isinstance(record, float) and np.isnan(record)):
        return None
    if isinstance(record, str):
        return str(record)
    if isinstance(record, list | tuple | np.ndarray | torch.Tensor):
        parts: Any = record
        return Chat(tuple(parts)) if _is_chat(parts) else token_ids(parts, number)
    raise WrongType(f"Row {number} is {_kind(record)}; pass strings or lists of token ids.")


def _field(record: Mapping[str, Any], number: int, column: str | None) -> str | tuple[int, ...] | Chat | None:
    if column is None:
        column = next((name for name in TEXT_COLUMNS if name in record), None)
        if column is None:
            raise NotFitting(
                f"The rows have the columns {', '.join(map(str, record))}; pass the one with the text as column=."
            )
    value = _named(record, column)
    if column == IDS and record.get(MASK) is not None:
        return _unpadded(value, record[MASK], number)
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
    if is_number and not (isinstance(value, float) and np.isnan(value)):
        return str(value)
    if isinstance(value, Mapping):
        raise WrongType(f"Row {number} has {_kind(value)} in its column {column!r}; pass a column of texts.")
    return _content(value, number, column)


def _named(record: Mapping[str, Any], column: str) -> Any:
    if column not in record:
        raise NoSuchName(f"The rows have no column {column!r}, but {', '.join(map(str, record))}; pass one of these.")
    return record[column]


def _unpadded(ids: Any, mask: Any, number: int) -> tuple[int, ...]:
    """Ids where the mask is not 0, whichever side the padding is on."""
    values, attended = token_ids(ids, number), np.asarray(mask).astype(bool)
    if attended.shape != (len(values),):
        raise NotFitting(
            f"Row {number} has {len(values)} ids, but a mask of shape {attended.shape}; pass one for each."
        )
    return tuple(value for value, keep in zip(values, attended, strict=True) if keep)


def token_ids(values: Any, number: int) -> tuple[int, ...]:
    """A row of token ids as integers.

    Raises:
        WrongType: one of them is not a whole number.
        OutOfRange: one of them is negative.
    """
    if isinstance(values, np.ndarray | torch.Tensor):
        if values.ndim != 1:
            raise WrongType(f"Row {number} is an array of shape {tuple(values.shape)}; token ids are (tokens,).")
        values = values.tolist()
    ids = [_index(value) for value in values]
    wrong = next((value for value, token in zip(values, ids, strict=True) if token is None), None)
    if any(token is None for token in ids):
        raise WrongType(f"Row {number} holds {_kind(wrong)} ({str(wrong)[:40]!r}); pass strings or lists of token ids.")
    whole = tuple(token for token in ids if token is not None)
    if whole and min(whole) < 0:
        raise OutOfRange(
            f"Row {number} has the token id {min(whole)}; ids start at 0; remove padding and ignored positions."
        )
    return whole


def _index(value: Any) -> int | None:
    """A whole number; None for any other value (True does not count as 1)."""
    if isinstance(value, bool | np.bool_) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool):
        return None
    try:
        return index(value)
    except TypeError:
        return None


def _labels(records: Sequence[Any], labels: Any, what: str = "label") -> list[str]:
    """A label, or the name of a unit, per row."""
    if labels is None:
        return [""] * len(records)
    if isinstance(labels, str):
        if not all(isinstance(record, Mapping) for record in records):
            raise NotFitting(
                f"The texts have no columns, so there is no column {labels!r}; pass a {what} for each text."
            )
        return [_label(_named(record, labels)) for record in records]
    if isinstance(labels, Mapping | set | frozenset | bytes) or not isinstance(labels, Iterable):
        raise WrongType(f"The {what}s are {_kind(labels)}; pass a list, one for each text, or the name of a column.")
    listed = list(labels)
    if len(listed) != len(records):
        raise NotFitting(f"There are {len(listed)} {what}s for {len(records)} documents; pass one for each.")
    return [_label(label) for label in listed]


def _label(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, Mapping | list | tuple | set | bytes):
        raise WrongType(f"A label is {_kind(value)}; pass strings or numbers.")
    label = str(value)
    if any("\ud800" <= character <= "\udfff" for character in label):
        raise InputError(f"The label {label!a} holds half a character (a lone surrogate); write it another way.")
    return label


def _kind(value: object) -> str:
    """`a list`, `an int`; `None`."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
