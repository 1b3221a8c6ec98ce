"""Reads routing traces as LayerBatches, without the model, and verifies them before an analysis uses them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from moe_probe.checked import file_digest
from moe_probe.deferred import Extra
from moe_probe.errors import Damaged, NoSuchName, NothingToRead, reason
from moe_probe.families import Layer
from moe_probe.routing import LayerBatch
from moe_probe.shown import brief
from moe_probe.signatures import checked
from moe_probe.texts.corpus import Corpus, Document, Tokens
from moe_probe.traces.rows import (
    CARD,
    COLUMNS,
    DOCUMENTS,
    FORMAT,
    KEYS,
    MANIFEST,
    conform,
    digests,
    is_part,
    schema,
)
from moe_probe.traces.writing import card_digest

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as pads
    import pyarrow.parquet as pq
else:
    modules = ("pyarrow", "pyarrow.dataset", "pyarrow.parquet")
    pa, pads, pq = (Extra(name, "trace", "Routing traces") for name in modules)

REMEDY = "record it again"
TOKEN_KEYS = ("document", "position", "token_id")


@dataclass(frozen=True)
class Part:
    """One file of rows: its name, numbers of rows in all and of each batch, and checksums of its columns."""

    name: str
    rows: int
    batches: Sequence[int]
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Trace:
    """Recorded routing, which replaces a model in analyses that need only routing.

    Attributes:
        folder: its folder.
        name, family, fingerprint: those of the model.
        moe_layers: the recorded MoE layers.
        corpus: the documents.
        files: paths of the Parquet files, in the order in which they were written; a row group is a batch of the pass.
        parts: the card's description of each file.
        score_kinds: the function that computed the scores, such as "softmax", by layer.
        model_layers: all MoE layers of the model; the recorded ones if the trace does not state them.
    """

    folder: Path
    name: str
    family: str
    fingerprint: str
    moe_layers: tuple[int, ...]
    corpus: Corpus
    files: tuple[str, ...]
    _layers: Mapping[int, Layer]
    parts: tuple[Part, ...] = ()
    score_kinds: Mapping[int, str] = field(default_factory=dict)
    model_layers: tuple[int, ...] = ()

    def layer(self, index: int) -> Layer:
        """The description of layer `index`."""
        return self._layers[index]

    @property
    def dataset(self) -> pads.Dataset:
        """The rows, for pyarrow, pandas, DuckDB or polars."""
        return pads.dataset(list(self.files), format="parquet")

    @property
    def num_rows(self) -> int:
        """Number of recorded choices."""
        return self.dataset.count_rows()

    def to_dataframe(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Returns the rows, sorted by layer, document, position, subtoken and rank, with the token's `string`.

        Args:
            columns: columns to read besides the five that rows are sorted by; all by default.
        """
        wrong = next((name for name in columns or () if name not in (*COLUMNS, "string")), None)
        if wrong is not None:
            raise NoSuchName.among("column", wrong, [*COLUMNS, "string"])
        read = [n for n in COLUMNS if columns is None or n in {*KEYS, "token_id", *columns}]
        tables = [self._rows(number, read) for number in range(len(self.files))]
        table = pa.concat_tables(tables, promote_options="permissive") if tables else schema().empty_table()
        frame = table.sort_by([(key, "ascending") for key in KEYS]).to_pandas()
        frame = frame.astype({name: str for name in ("label", "kind") if name in frame})
        frame["string"] = frame.token_id.map(dict(self.corpus.strings))
        return frame if columns is None else frame[[*KEYS, *(c for c in columns if c not in KEYS)]]

    def batches(self, start_file: int = 0) -> Iterator[LayerBatch]:
        """Yields the recorded batches in the order of the pass, with one file in memory at a time.

        Args:
            start_file: the first file to read, at which a pass resumes.

        Raises:
            Damaged: a file was cut off or changed. No batch of such a file is yielded.
        """
        for number in range(start_file, len(self.files)):
            yield from self.file_batches(number)

    def file_batches(self, number: int) -> list[LayerBatch]:
        """Yields the batches of one file as they were recorded, however a tool has split it into row groups.

        Raises:
            Damaged: the file was cut off or changed, or its rows are in another order.
        """
        rows, sizes = self._rows(number, tuple(COLUMNS)), self.parts[number].batches
        with damage(self.files[number]):
            starts = np.cumsum([0, *sizes]).tolist()
            if starts[-1] != rows.num_rows:
                raise ValueError("its batches are not those that were recorded")
            return [self._batch(rows.slice(start, size)) for start, size in zip(starts, sizes, strict=False)]

    def _rows(self, number: int, columns: Sequence[str]) -> pa.Table:
        """The verified rows of a file."""
        path = self.files[number]
        with damage(path):
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                rows = conform(file.read(columns=list(columns)), columns)
            expected = self.parts[number].digests
            wrong = [name for name, value in digests(rows).items() if expected.get(name) != value]
            if wrong:
                raise ValueError(f"{', '.join(wrong[:3])} are not what was recorded, or in another order")
        return rows

    def _batch(self, rows: pa.Table) -> LayerBatch:
        """A batch of the rows of one layer, checked."""
        index = rows["layer"][0].as_py()
        if index not in self._layers:
            raise ValueError(f"there is no layer {index}")
        layer = self._layers[index]
        if not _stands_in_order(rows, layer):
            raise ValueError(f"rows of layer {layer.index} lack some of the choices of a token")
        values = {name: rows[name].to_numpy() for name in (*TOKEN_KEYS, "expert", "kind")}
        self._check(values, layer)
        k, tokens = layer.top_k, slice(None, None, layer.top_k * layer.subtokens)
        scores = _per_row(rows["scores"], layer)
        selection = _per_row(rows["selection"], layer)
        fields: dict[str, Any] = {
            "router_logits": _per_row(rows["router_logits"], layer),
            "scores": scores,
            "top_k_index": torch.from_numpy(values["expert"].astype(np.int64)).view(-1, k),
            "top_k_weights": None if rows["weight"].null_count else _tensor(rows["weight"]).view(-1, k),
            "selection": scores if selection is None else selection,
            "score_kind": self.score_kinds.get(layer.index, ""),
        }
        document, position, token = (values[name][tokens].astype(np.int64) for name in TOKEN_KEYS)
        label = np.asarray(rows["label"].to_pylist()[tokens], dtype=object)
        at = np.searchsorted(self._documents[0], document)
        return LayerBatch(layer, Tokens(document, position, token, label, self._units[at]), **fields)

    def _check(self, values: Mapping[str, np.ndarray], layer: Layer) -> None:
        """Raises an error if rows refer to experts, documents or tokens that do not exist.

        Raises:
            ValueError: they do; the message says which.
        """
        expert = values["expert"]
        if not (expert.min() >= 0 and expert.max() < layer.num_experts):
            raise ValueError(f"layer {layer.index} has the experts 0 to {layer.num_experts - 1}, not {expert.max()}")
        if not np.array_equal(np.asarray(layer.expert_kinds)[expert], values["kind"]):
            raise ValueError(f"kinds of experts are not those of layer {layer.index}")
        numbers, starts, ids = self._documents
        at = np.searchsorted(numbers, values["document"]).clip(max=len(numbers) - 1)
        self._refuse_first(numbers[at] != values["document"], "there is no document {document}", values)
        outside = (values["position"] < 0) | (values["position"] >= np.diff(starts)[at])
        self._refuse_first(outside, "document {document} has no position {position}", values)
        other = ids[starts[at] + values["position"]] != values["token_id"]
        self._refuse_first(other, "document {document} has another token than {token_id} at {position}", values)

    @staticmethod
    def _refuse_first(wrong: np.ndarray, words: str, values: Mapping[str, np.ndarray]) -> None:
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(words.format(**{name: column[row] for name, column in values.items()}))

    @cached_property
    def _units(self) -> np.ndarray:
        """Units of the documents in ascending order of their numbers."""
        return np.asarray([d.unit for d in sorted(self.corpus.documents, key=lambda document: document.number)])

    @cached_property
    def _documents(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of the documents in ascending order, start and end of each one's ids, and all ids."""
        documents = sorted(self.corpus.documents, key=lambda document: document.number)
        starts = np.cumsum([0, *(len(document.ids) for document in documents)])
        ids = np.concatenate([np.asarray(document.ids, np.int64) for document in documents])
        return np.asarray([document.number for document in documents]), starts, ids


@contextmanager
def damage(path: str | Path) -> Iterator[None]:
    """A context that turns any error from reading a damaged file into one sentence."""
    try:
        yield
    except Damaged:
        raise
    except (OSError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise Damaged(f"{brief(path)} is damaged ({reason(error)}); {REMEDY}.") from error


def _stands_in_order(rows: pa.Table, layer: Layer) -> bool:
    """Whether rows are a batch of a layer in order: all ranks of all sub-tokens of one token after the other."""
    size = layer.top_k * layer.subtokens
    whole, remainder = divmod(rows.num_rows, size)
    if remainder:
        return False
    expected = {
        "layer": np.full(rows.num_rows, layer.index),
        "rank": np.tile(np.arange(layer.top_k), whole * layer.subtokens),
        "subtoken": np.tile(np.repeat(np.arange(layer.subtokens), layer.top_k), whole),
    }
    for name in ("document", "position"):
        expected[name] = np.repeat(rows[name].to_numpy()[::size], size)
    if not all(np.array_equal(rows[name].to_numpy(), values) for name, values in expected.items()):
        return False
    document, position = expected["document"][::size], expected["position"][::size]
    return bool(np.all((np.diff(document) != 0) | (np.diff(position) == 1)))


def _per_row(column: pa.ChunkedArray, layer: Layer) -> torch.Tensor | None:
    """All experts' values of each row, (n, E); None if they were not recorded."""
    if column.null_count == len(column):
        return None
    array = column.combine_chunks()
    lists = array.take(pa.array(np.arange(0, len(array), layer.top_k)))
    values = lists.flatten()
    if lists.null_count or len(values) != len(lists) * layer.num_experts:
        raise ValueError(f"rows of layer {layer.index} lack values of some of its {layer.num_experts} experts")
    return _tensor(values).view(-1, layer.num_experts)


def _tensor(column: pa.Array | pa.ChunkedArray) -> torch.Tensor:
    return torch.from_numpy(np.array(column.to_numpy(), copy=True))


@checked
def is_trace(folder: str | Path) -> bool:
    """Whether a folder holds a routing trace, finished or not."""
    return any((Path(folder) / name).is_file() for name in (CARD, MANIFEST))


@checked
def read_trace(folder: str | Path) -> Trace:
    """Opens a trace that `RoutingTrace` wrote; rows are read, and verified, on use.

    Args:
        folder: the folder of the trace.

    Returns:
        The trace, which analyses take in place of a model.

    Raises:
        NothingToRead: the folder holds no trace, or an unfinished one.
        Damaged: the trace was cut off or changed, or is of another format.

    Examples:
        >>> trace = read_trace("out/trace")  # doctest: +SKIP
        >>> trace.to_dataframe(["expert", "weight"]).head()  # doctest: +SKIP
    """
    folder = Path(folder)
    if not (folder / CARD).is_file():
        unfinished = (folder / MANIFEST).is_file()
        reason = "its run was not finished; run it again" if unfinished else f"it holds no {CARD}"
        raise NothingToRead(f"{brief(folder)} is not a routing trace: {reason}.")
    card = _card(folder)
    with damage(folder / CARD):
        trace = _trace(folder, card)
        rows = sum(_num_rows(path, part) for path, part in zip(trace.files, trace.parts, strict=True))
        if rows != card["rows"]:
            raise Damaged(
                f"{brief(folder)} is a damaged routing trace: it has {rows:,} of {card['rows']:,} rows; {REMEDY}."
            )
    return trace


def _card(folder: Path) -> dict[str, Any]:
    """The card of a trace, after checking its content and format."""
    path = folder / CARD
    with damage(path):
        card = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(card, dict):
            raise ValueError("no card")
    if card.get("format") != FORMAT:
        version = f"format {card['format']}" if "format" in card else "an older version"
        raise Damaged(
            f"{brief(folder)} was recorded in {version}, which this one (format {FORMAT}) cannot read; {REMEDY}."
        )
    with damage(path):
        if card.get("digest") != card_digest(card):
            raise ValueError("its content is not what was recorded")
    return card


def _trace(folder: Path, card: Mapping[str, Any]) -> Trace:
    if not all(is_part(entry["name"]) for entry in card["files"]):
        raise ValueError("it names files that are not its own")
    layers = {layer["index"]: Layer(**_tuples(layer)) for layer in card["layers"]}
    if not layers:
        raise ValueError("it has no layers")
    strings = {int(token): text for token, text in card["strings"].items()}
    return Trace(
        folder=folder,
        name=card["name"],
        family=card["family"],
        fingerprint=card["fingerprint"],
        moe_layers=tuple(layers),
        corpus=Corpus(_read_documents(folder, card["documents"]), strings, frozenset(card["special"])),
        files=tuple(str(folder / entry["name"]) for entry in card["files"]),
        _layers=layers,
        parts=tuple(Part(**entry) for entry in card["files"]),
        score_kinds={int(layer): kind for layer, kind in card["score_kinds"].items()},
        model_layers=_model_layers(card.get("model_layers", sorted(layers)), layers),
    )


def _model_layers(stated: Any, layers: Collection[int]) -> tuple[int, ...]:
    if not isinstance(stated, list) or not all(type(layer) is int for layer in stated) or not {*stated} >= {*layers}:
        raise ValueError("its model lacks recorded layers")
    return tuple(sorted(stated))


def _read_documents(folder: Path, expected: str) -> tuple[Document, ...]:
    path = folder / DOCUMENTS
    if not path.is_file():
        raise Damaged(f"{brief(folder)} is a damaged routing trace: {DOCUMENTS} is missing; {REMEDY}.")
    with damage(path):
        if file_digest(path) != expected:
            raise ValueError("its content is not what was recorded")
        return tuple(_document(row) for row in pq.ParquetFile(path).read().to_pylist())


def _num_rows(path: str, part: Part) -> int:
    """Number of rows of a file, from its footer."""
    if not Path(path).is_file():
        raise Damaged(f"{brief(Path(path).parent)} is a damaged routing trace: {part.name} is missing; {REMEDY}.")
    with damage(path):
        return pq.read_metadata(path).num_rows


def _document(row: dict[str, Any]) -> Document:
    spans = np.asarray(row["spans"], np.int64).reshape(-1, 2)
    return Document(row["number"], tuple(row["ids"]), row["label"], row["text"], spans, row.get("cluster") or "")


def _tuples(layer: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in layer.items()}
