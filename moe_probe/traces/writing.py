"""Writes routing traces during a pass: files of rows, and at the end the card that makes the folder a trace.

A pass converts each batch to a table (`to_table`), writes groups of tables to files with unique names (`new_part`,
`write_file`) and ends with `finish`. Meanwhile, `files.owned_folder` locks the folder against other writers.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moe_probe.checked import digest, file_digest
from moe_probe.deferred import Extra
from moe_probe.errors import AlreadyThere
from moe_probe.files import cannot_write, whole_file
from moe_probe.routing import LayerBatch, Source
from moe_probe.shown import brief
from moe_probe.texts.corpus import Corpus
from moe_probe.traces.rows import CARD, DOCUMENTS, FORMAT, MANIFEST, conform, digests, part_names, schema

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
else:
    pa, pq = (Extra(name, "trace", "Routing traces") for name in ("pyarrow", "pyarrow.parquet"))

FILE_ROWS = 1 << 17  # choices per file
SCORE_KIND = b"moe_probe.score_kind"
VERSION = {b"moe_probe.trace": str(FORMAT).encode()}


def to_table(batch: LayerBatch, norms: bool = False) -> pa.Table:
    """Returns a batch's choices, one per row, in descending order of selection score; missing values are null.

    Args:
        batch: a batch of one layer.
        norms: whether to keep the norms of the chosen experts' outputs, which the batch must then hold.
    """
    n, k = batch.top_k_index.shape
    parts, tokens = batch.layer.subtokens, batch.tokens
    order = _order(batch)
    expert = batch.top_k_index.gather(1, order)
    kinds = np.asarray(batch.layer.expert_kinds)[expert.cpu().numpy()].flatten()
    norm = batch.selected_outputs.float().norm(dim=-1) if norms else None
    held = batch.tensors()
    columns = {
        "document": np.repeat(tokens.document, parts * k),
        "position": np.repeat(tokens.position, parts * k),
        "subtoken": np.repeat(np.tile(np.arange(parts), len(tokens)), k),
        "token_id": np.repeat(tokens.token_id, parts * k),
        "label": pa.array(np.repeat(tokens.label.astype(str), parts * k)).dictionary_encode(),
        "layer": np.full(n * k, batch.layer.index),
        "rank": np.tile(np.arange(k), n),
        "expert": expert.flatten().cpu().numpy(),
        "kind": pa.array(kinds).dictionary_encode(),
        "logit": _at(held.get("router_logits"), expert),
        "score": _at(held.get("scores"), expert),
        "weight": _at(held.get("top_k_weights"), order),
        "norm": _at(norm, order),
        "router_logits": _on_first(held.get("router_logits"), n, k),
        "scores": _on_first(held.get("scores"), n, k),
        "selection": _on_first(_selection(batch), n, k),
    }
    about = {SCORE_KIND: batch.score_kind.encode()}
    arrays = [_column(columns[field.name], field, n * k) for field in schema()]
    return pa.Table.from_arrays(arrays, schema=schema().with_metadata(about))


def _order(batch: LayerBatch) -> torch.Tensor:
    """The choices of each row, (n, k), in the order of selection scores, or of other values if those are unknown."""
    if batch.holds("selection") or not batch.holds("scores"):
        known = batch.holds("selection") or batch.holds("top_k_weights")
        ranked = batch.ranked_by if known else torch.zeros(batch.top_k_index.shape, dtype=torch.float32)
    else:
        ranked = batch.scores.gather(1, batch.top_k_index)
    return ranked.argsort(dim=1, descending=True, stable=True)


def _selection(batch: LayerBatch) -> torch.Tensor | None:
    """The selection scores, if they differ from the scores."""
    held = batch.tensors()
    selection, scores = held.get("selection"), held.get("scores")
    same = selection is not None and scores is not None and torch.equal(selection, scores)
    return None if same else selection


def _at(values: torch.Tensor | None, index: torch.Tensor) -> np.ndarray | None:
    return None if values is None else values.float().gather(1, index).flatten().cpu().numpy()


def _on_first(values: torch.Tensor | None, rows: int, k: int) -> pa.Array | None:
    """A list of all experts' values on rank 0, null on the other ranks."""
    if values is None:
        return None
    ends = np.repeat(np.arange(1, rows + 1) * values.shape[1], k)
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    empty = pa.array(np.arange(rows * k) % k != 0)
    return pa.ListArray.from_arrays(offsets, pa.array(values.float().flatten().cpu().numpy()), mask=empty)


def _column(values: Any, field: pa.Field, rows: int) -> pa.Array:
    if values is None:
        return pa.nulls(rows, field.type)
    return values.cast(field.type) if isinstance(values, pa.Array) else pa.array(values, field.type)


def new_part() -> str:
    """A unique name for a file of rows."""
    return f"part-{uuid.uuid4().hex}.parquet"


def write_file(tables: Sequence[pa.Table], path: Path) -> None:
    """Writes one Parquet file, a row group per table; it appears under its name only when it is complete.

    Before that, the folder's manifest records that the file belongs to this trace.

    Raises:
        MachineError: the disk is full or not writable.
    """
    rows = conform(pa.concat_tables([table.replace_schema_metadata(None) for table in tables]))
    kinds = {str(table["layer"][0]): _kind(table) for table in tables if table.num_rows}
    sizes = [table.num_rows for table in tables if table.num_rows]
    entry = {"name": path.name, "rows": rows.num_rows, "batches": sizes, "digests": digests(rows), "score_kinds": kinds}
    stated = schema().with_metadata(VERSION)
    with whole_file(path) as partial:
        _claim(path.parent, [entry])
        with pq.ParquetWriter(partial, stated, compression="zstd", write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table.cast(stated), row_group_size=max(1, table.num_rows))


def _kind(table: pa.Table) -> str:
    return (table.schema.metadata or {}).get(SCORE_KIND, b"").decode()


def _claim(folder: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    path = folder / MANIFEST
    lines = "".join(f"\n{json.dumps(entry)}\n" for entry in entries)  # after what a killed run left half written
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(lines)
    except OSError as error:
        raise cannot_write(path, error) from error


def claimed(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest's description of each file of rows that unfinished passes wrote, by name."""
    entries = {}
    with suppress(FileNotFoundError):
        for line in (folder / MANIFEST).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError, AttributeError):
                entry = json.loads(line)
                entries |= {name: entry for name in part_names([entry])}
    return entries


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """The card's description of each file of rows of a finished trace, by name; empty without a card."""
    with suppress(OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        kinds = {"score_kinds": card.get("score_kinds", {})}
        listed = [entry if isinstance(entry, Mapping) else {"name": entry} for entry in card["files"]]
        return {name: {**entry, **kinds} for entry in listed for name in part_names([entry])}
    return {}


def finish(folder: Path, files: Sequence[str], rows: int, source: Source) -> None:
    """Writes the documents and the card, which make the folder a trace.

    Files of rows that earlier passes left here, finished or not, are deleted. Other files in the folder stay.

    Raises:
        AlreadyThere: another run has removed files of this one.
    """
    old = recorded(folder)
    entries = old | claimed(folder)  # a pass that goes on after its end finishes once more
    gone = next((name for name in files if "digests" not in entries.get(name, {})), None)
    gone = gone or next((name for name in files if not (folder / name).is_file()), None)
    if gone is not None:
        raise AlreadyThere(f"Another run removed {gone} from {brief(folder)}; record again, into another folder.")
    _write_documents(source.corpus, folder / DOCUMENTS)
    card = _card(source, [entries[name] for name in files])
    card |= {"documents": file_digest(folder / DOCUMENTS), "rows": rows}
    _claim(folder, [entry for name, entry in old.items() if name not in files])
    with whole_file(folder / CARD) as partial:
        partial.write_text(json.dumps(card | {"digest": card_digest(card)}), encoding="utf-8")
    for stray in entries.keys() - set(files):
        (folder / stray).unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)


def _card(source: Source, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds: dict[str, str] = {}
    for entry in entries:
        kinds |= entry["score_kinds"]
    return {
        "format": FORMAT,
        "name": source.name,
        "family": source.family,
        "fingerprint": source.fingerprint,
        "layers": [asdict(layer) for layer in source.layers.values()],
        "model_layers": list(source.moe_layers),
        "score_kinds": kinds,
        "strings": {str(token): text for token, text in source.corpus.strings.items()},
        "special": sorted(source.corpus.special),
        "files": [{key: entry[key] for key in ("name", "rows", "batches", "digests")} for entry in entries],
    }


def card_digest(card: Mapping[str, Any]) -> str:
    """A checksum of a card's content without the checksum."""
    return digest(json.dumps({key: value for key, value in card.items() if key != "digest"}, sort_keys=True))


def _write_documents(corpus: Corpus, path: Path) -> None:
    rows = [
        {
            "number": d.number,
            "label": d.label,
            "cluster": d.cluster,
            "text": d.text,
            "ids": d.ids,
            "spans": d.spans.flatten(),
        }
        for d in corpus.documents
    ]
    with whole_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=document_schema()), partial, compression="zstd")


DOCUMENT_COLUMNS: Mapping[str, str] = {
    "number": "int64",
    "label": "string",
    "cluster": "string",
    "text": "string",
    "ids": "numbers",
    "spans": "numbers",
}


@cache
def document_schema() -> pa.Schema:
    """The columns of the documents with their types."""
    kinds = {"numbers": pa.list_(pa.int64())}
    return pa.schema([(name, kinds.get(kind) or pa.type_for_alias(kind)) for name, kind in DOCUMENT_COLUMNS.items()])
