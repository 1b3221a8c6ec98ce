"""Routing traces: Parquet files with a row per choice, and what is needed to analyse them without the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch

from moe_probe.errors import InputError
from moe_probe.families import Layer
from moe_probe.files import whole_file
from moe_probe.routing import LayerBatch, Source
from moe_probe.texts.corpus import Corpus, Document, Tokens

CARD, DOCUMENTS = "trace.json", "documents.parquet"
FILE_ROWS = 1 << 17  # choices per file
LOGITS = pa.list_(pa.float32())
TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("document", pa.int32()),
        ("position", pa.int32()),
        ("subtoken", pa.int16()),
        ("token_id", pa.int32()),
        ("label", TEXT),
        ("layer", pa.int16()),
        ("rank", pa.int16()),
        ("expert", pa.int16()),
        ("kind", TEXT),
        ("logit", pa.float32()),
        ("score", pa.float32()),
        ("weight", pa.float32()),
        ("norm", pa.float32()),
        ("router_logits", LOGITS),
        ("scores", LOGITS),
    ]
)


def to_table(batch: LayerBatch, norms: bool = False) -> pa.Table:
    """A batch's choices, a row each, rank 0 first."""
    n, k = batch.top_k_index.shape
    parts = batch.layer.subtokens
    order = batch.ranked_by.argsort(dim=1, descending=True, stable=True)
    expert = batch.top_k_index.gather(1, order)

    def flat(values: torch.Tensor) -> np.ndarray:
        return values.float().flatten().cpu().numpy()

    def per_row(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, k)

    def on_first(values: torch.Tensor) -> pa.Array:
        """A list of all experts' values on rank 0, null on the others."""
        ends = np.repeat(np.arange(1, n + 1) * values.shape[1], k)
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        empty = np.arange(n * k) % k != 0
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat(values)), mask=pa.array(empty))

    tokens = batch.tokens
    norm = None if not norms else batch.selected_outputs.float().norm(dim=-1).gather(1, order)
    kinds = np.asarray(batch.layer.expert_kinds)[expert.cpu().numpy()].flatten()
    columns = {
        "document": np.repeat(tokens.document, parts * k),
        "position": np.repeat(tokens.position, parts * k),
        "subtoken": per_row(np.tile(np.arange(parts), len(tokens))),
        "token_id": np.repeat(tokens.token_id, parts * k),
        "label": pa.array(np.repeat(tokens.label.astype(str), parts * k)).dictionary_encode(),
        "layer": np.full(n * k, batch.layer.index),
        "rank": np.tile(np.arange(k), n),
        "expert": expert.flatten().cpu().numpy(),
        "kind": pa.array(kinds).dictionary_encode(),
        "logit": flat(batch.router_logits.gather(1, expert)),
        "score": flat(batch.scores.gather(1, expert)),
        "weight": flat(batch.top_k_weights.gather(1, order)),
        "norm": pa.nulls(n * k, pa.float32()) if norm is None else flat(norm),
        "router_logits": on_first(batch.router_logits),
        "scores": on_first(batch.scores),
    }
    return pa.table({field.name: _column(columns[field.name], field) for field in SCHEMA}, schema=SCHEMA)


def _column(values: Any, field: pa.Field) -> pa.Array:
    return values.cast(field.type) if isinstance(values, pa.Array) else pa.array(values, field.type)


def write_file(batches: Sequence[pa.Table], path: Path) -> None:
    """Write one Parquet file, a row group per batch; it appears under its name only when it is complete."""
    with whole_file(path) as partial, pq.ParquetWriter(partial, batches[0].schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(batch, row_group_size=batch.num_rows)


def finish(folder: Path, files: Sequence[str], rows: int, source: Source) -> None:
    """Write what makes the folder a trace: its documents and the card. Files of interrupted runs are deleted."""
    for stray in folder.glob("part-*.parquet"):
        if stray.name not in files:
            stray.unlink()
    documents = [
        {"number": d.number, "label": d.label, "text": d.text, "ids": d.ids, "spans": d.spans.flatten()}
        for d in source.corpus.documents
    ]
    write_file([pa.Table.from_pylist(documents)], folder / DOCUMENTS)
    card = {
        "name": source.name,
        "family": source.family,
        "fingerprint": source.fingerprint,
        "layers": [asdict(layer) for layer in source.layers.values()],
        "strings": {str(token): text for token, text in source.corpus.strings.items()},
        "special": sorted(source.corpus.special),
        "files": list(files),
        "rows": rows,
    }
    with whole_file(folder / CARD) as partial:
        partial.write_text(json.dumps(card), encoding="utf-8")


@dataclass(frozen=True)
class Trace:
    """A recorded routing, and what its results say of the model: takes the place of a model in analyses.

    Attributes:
        folder: where it is.
        name, family, fingerprint: of the model.
        moe_layers: that were recorded.
        corpus: the documents.
        files: paths of the Parquet files, in the order in which they were written; a row group is a batch of the pass.
    """

    folder: Path
    name: str
    family: str
    fingerprint: str
    moe_layers: tuple[int, ...]
    corpus: Corpus
    files: tuple[str, ...]
    _layers: dict[int, Layer]

    def layer(self, index: int) -> Layer:
        """What layer `index` is made of."""
        return self._layers[index]

    @property
    def dataset(self) -> pads.Dataset:
        """The rows, for pyarrow, pandas, DuckDB or polars."""
        return pads.dataset(list(self.files), format="parquet")

    @property
    def num_rows(self) -> int:
        """Choices recorded."""
        return self.dataset.count_rows()

    def to_dataframe(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows by layer, document, position, subtoken and rank, with the token's `string`.

        Args:
            columns: those to read, beside the five that rows are sorted by; all by default.
        """
        keys = ["layer", "document", "position", "subtoken", "rank"]
        read = None if columns is None else list(dict.fromkeys([*keys, "token_id", *set(columns) - {"string"}]))
        table = self.dataset.to_table(columns=read)
        frame = table.sort_by([(key, "ascending") for key in keys]).to_pandas()
        frame = frame.astype({name: str for name in ("label", "kind") if name in frame})
        frame["string"] = frame.token_id.map(self.corpus.strings)
        return frame if columns is None else frame[[*keys, *(c for c in columns if c not in keys)]]

    def batches(self) -> Iterator[LayerBatch]:
        """The recorded batches, as they were and in the order in which the pass gave them."""
        for path in self.files:
            yield from self.file_batches(path)

    def file_batches(self, path: str) -> Iterator[LayerBatch]:
        """The batches of one file."""
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group)
            yield self._batch(rows, self._layers[rows["layer"][0].as_py()])

    def _batch(self, rows: pa.Table, layer: Layer) -> LayerBatch:
        k = layer.top_k
        first = rows.filter(pc.equal(rows["rank"], 0))
        tokens = first.filter(pc.equal(first["subtoken"], 0))
        in_order = np.array_equal(rows["rank"].to_numpy(), np.tile(np.arange(k), first.num_rows))
        if not in_order or first.num_rows != layer.subtokens * tokens.num_rows:
            raise InputError(f"{self.folder}: rows of layer {layer.index} are out of order; the trace is damaged.")

        def of(name: str) -> torch.Tensor:
            return torch.from_numpy(rows[name].to_numpy().copy()).view(-1, k)

        def of_all(name: str) -> torch.Tensor:
            values = first[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            return torch.from_numpy(values.copy()).view(-1, layer.num_experts)

        return LayerBatch(
            layer=layer,
            tokens=Tokens(
                *(tokens[name].to_numpy().astype(np.int64) for name in ("document", "position", "token_id")),
                np.asarray(tokens["label"].to_pylist(), dtype=object),
            ),
            router_logits=of_all("router_logits"),
            scores=of_all("scores"),
            selection=of_all("scores"),
            top_k_index=of("expert").long(),
            top_k_weights=of("weight"),
        )


def is_trace(folder: str | Path) -> bool:
    """Whether a folder holds a routing trace, finished or not."""
    return (Path(folder) / CARD).is_file() or any(Path(folder).glob("part-*.parquet"))


def read_trace(folder: str | Path) -> Trace:
    """Open a trace that `RoutingTrace` has written; rows are read when asked for.

    Raises:
        InputError: the folder holds no trace, or one that was not finished, or lacks files.

    Examples:
        >>> trace = read_trace("out/trace")  # doctest: +SKIP
        >>> trace.to_dataframe(["expert", "weight"]).head()  # doctest: +SKIP
    """
    folder = Path(folder)
    if not (folder / CARD).is_file():
        unfinished = any(folder.glob("part-*.parquet"))
        reason = "its run did not come to its end; run it again" if unfinished else f"it holds no {CARD}"
        raise InputError(f"{folder} is no routing trace: {reason}.")
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        documents = tuple(_document(row) for row in pq.read_table(folder / DOCUMENTS).to_pylist())
        layers = [Layer(**_tuples(layer)) for layer in card["layers"]]
        files = tuple(str(folder / Path(name).name) for name in card["files"])
        strings = {int(token): text for token, text in card["strings"].items()}
        corpus = Corpus(documents, strings, frozenset(card["special"]))
        facts = {name: card[name] for name in ("name", "family", "fingerprint")}
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(f"{folder} is a damaged routing trace ({error}).") from error
    missing = next((name for name in files if not Path(name).is_file()), None)
    if missing is not None:
        raise InputError(f"{folder} is a damaged routing trace: {Path(missing).name} is missing.")
    trace = Trace(
        folder=folder,
        **facts,
        moe_layers=tuple(layer.index for layer in layers),
        corpus=corpus,
        files=files,
        _layers={layer.index: layer for layer in layers},
    )
    if trace.num_rows != card["rows"]:
        raise InputError(f"{folder} is a damaged routing trace: it has {trace.num_rows:,} of {card['rows']:,} rows.")
    return trace


def _document(row: dict[str, Any]) -> Document:
    spans = np.asarray(row["spans"], np.int64).reshape(-1, 2)
    return Document(row["number"], tuple(row["ids"]), row["label"], row["text"], spans)


def _tuples(layer: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in layer.items()}
