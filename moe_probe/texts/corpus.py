"""Texts to documents of token ids, and documents to batches."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from moe_probe.errors import InputError

if TYPE_CHECKING:
    from moe_probe.model import MoEModel

TEXT_COLUMNS = ("text", "content", "document", "sentence")
READERS = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
JSON_LINES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Document:
    """Token ids of one text, in order.

    Attributes:
        number: position in the corpus; results carry it as the coordinate `document`.
        ids: token ids, special tokens included.
        label: domain, task or other group; "" where none is given.
        text: what was tokenized; for token ids, their strings one after the other.
        spans: the characters of `text` that each token stands for, (tokens, 2): start and end; empty for special
            tokens.
    """

    number: int
    ids: tuple[int, ...]
    label: str = ""
    text: str = ""
    spans: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64), compare=False, repr=False)


@dataclass(frozen=True)
class Corpus:
    """Documents, and the strings of their tokens where a tokenizer is at hand.

    Attributes:
        documents: in order.
        strings: of each token id, with the blank that it begins with; the id itself without a tokenizer.
        special: ids that stand for no text, such as the beginning of a sequence.

    Examples:
        >>> from moe_probe import dynamic, load
        >>> corpus = dynamic.make_corpus(load("ckpt/tiny-mixtral"), ["Two texts,", "two documents."])
        >>> len(corpus.documents)
        2
    """

    documents: tuple[Document, ...]
    strings: dict[int, str]
    special: frozenset[int] = frozenset()

    def tokens(self) -> Tokens:
        """What is known of each token, document by document."""
        return Batch(self.documents).tokens()

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(len(document.ids) for document in self.documents)

    @property
    def fingerprint(self) -> str:
        """Identifies the tokens and labels in results."""
        content = [(document.number, document.ids, document.label) for document in self.documents]
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def beginning(self, tokens: int) -> Corpus:
        """The first document alone, no longer than so many tokens."""
        first = self.documents[0]
        return replace(self, documents=(replace(first, ids=first.ids[:tokens], spans=first.spans[:tokens]),))

    def split(self, parts: int) -> list[Corpus]:
        """At most `parts` corpora of about as many tokens each, which keep the documents' numbers."""
        heaps: list[list[Document]] = [[] for _ in range(min(parts, len(self.documents)))]
        sizes = [0] * len(heaps)
        for document in sorted(self.documents, key=lambda d: -len(d.ids)):
            least = sizes.index(min(sizes))
            heaps[least].append(document)
            sizes[least] += len(document.ids)
        return [replace(self, documents=tuple(sorted(heap, key=lambda d: d.number))) for heap in heaps]

    def batches(self, batch_tokens: int) -> Iterator[Batch]:
        """Batches of documents of like length, at most `batch_tokens` places each (at least one document)."""
        waiting: list[Document] = []
        for document in sorted(self.documents, key=lambda d: (len(d.ids), d.number)):
            if waiting and (len(waiting) + 1) * len(document.ids) > batch_tokens:
                yield Batch(tuple(waiting))
                waiting = []
            waiting.append(document)
        if waiting:
            yield Batch(tuple(waiting))


@dataclass(frozen=True)
class Batch:
    """Documents that go through the model together; shorter ones are padded on the right."""

    documents: tuple[Document, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Documents and places."""
        return len(self.documents), max(len(document.ids) for document in self.documents)

    def input_ids(self) -> torch.Tensor:
        """Token ids (documents, places), int64. Padding repeats a document's last token: every model has that id."""
        rows, places = self.shape
        padded = [document.ids + document.ids[-1:] * (places - len(document.ids)) for document in self.documents]
        return torch.tensor(padded).view(rows, places)

    def attention_mask(self) -> torch.Tensor:
        """1 for tokens, 0 for padding, (documents, places), int64."""
        lengths = torch.tensor([len(document.ids) for document in self.documents])
        return (torch.arange(self.shape[1]) < lengths[:, None]).long()

    def places(self) -> Tokens:
        """As `tokens`, with the padding, whose positions go on beyond the document."""
        rows, places = self.shape
        return Tokens(
            document=np.repeat([document.number for document in self.documents], places),
            position=np.tile(np.arange(places), rows),
            token_id=self.input_ids().flatten().numpy(),
            label=np.repeat(np.asarray([document.label for document in self.documents], dtype=object), places),
        )

    def tokens(self) -> Tokens:
        """What is known of each token, padding left out, in row-major order."""
        lengths = [len(document.ids) for document in self.documents]
        return Tokens(
            document=np.repeat([document.number for document in self.documents], lengths),
            position=np.concatenate([np.arange(length) for length in lengths]),
            token_id=np.concatenate([np.asarray(document.ids) for document in self.documents]),
            label=np.repeat(np.asarray([document.label for document in self.documents], dtype=object), lengths),
        )


@dataclass(frozen=True)
class Tokens:
    """Document number, position in it, id and document label of each token; arrays of one length."""

    document: np.ndarray
    position: np.ndarray
    token_id: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.document)

    def __getitem__(self, index: slice | np.ndarray) -> Tokens:
        return Tokens(self.document[index], self.position[index], self.token_id[index], self.label[index])

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """The tokens of all parts, one after the other."""
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    @classmethod
    def none(cls) -> Tokens:
        """No tokens."""
        return cls(*(np.zeros(0, np.int64) for _ in range(3)), np.zeros(0, object))

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields as arrays without objects."""
        return {**vars(self), "label": self.label.astype(str)}


def position_bin(position: np.ndarray) -> np.ndarray:
    """Number of the place that a position in a document falls in: 0, 1, 2-3, 4-7, 8-15, ..."""
    return np.frexp(position)[1]


def bin_start(place: np.ndarray) -> np.ndarray:
    """First position of each place."""
    return np.where(place > 0, 1 << np.maximum(place - 1, 0), 0)


Texts = str | Path | Corpus | Iterable[Any]


def make_corpus(
    model: MoEModel,
    texts: Texts,
    *,
    labels: Sequence[str] | str | None = None,
    column: str | None = None,
    max_length: int | None = None,
    split: str | None = None,
    add_special_tokens: bool | None = None,
) -> Corpus:
    """Documents of whatever texts come as.

    Args:
        model: gives the tokenizer, the size of the vocabulary and the longest sequence.
        texts: a list of strings or of lists of token ids; a file (`.txt`: a document per line; `.jsonl`, `.csv`,
            `.parquet`: a document per row); a `datasets` dataset or other iterable of rows; or a corpus.
        labels: a label per document, or the name of the column that holds it.
        column: the column of the text; `text`, `content`, `document` or `sentence` by default.
        max_length: tokens per document at most; the model's maximum by default.

    Raises:
        InputError: there is no text, no such column, no tokenizer, or a token id outside the vocabulary.
    """
    if isinstance(texts, Corpus):
        return texts
    rows = list(_rows(texts, column, labels if isinstance(labels, str) else None))
    if labels is not None and not isinstance(labels, str):
        if len(labels) != len(rows):
            raise InputError(f"There are {len(labels)} labels for {len(rows)} documents; give one for each.")
        rows = [(text, str(label)) for (text, _), label in zip(rows, labels, strict=True)]
    rows = [(text, label) for text, label in rows if len(text.strip() if isinstance(text, str) else text)]
    if not rows:
        raise InputError("The corpus is empty; give at least one text that is not blank.")
    encoded = _encode([text for text, _ in rows if isinstance(text, str)], model)
    pairs = [next(encoded) if isinstance(text, str) else ([int(i) for i in text], None) for text, _ in rows]
    _check_vocabulary([ids for ids, _ in pairs], model)
    shortened = _truncate([ids for ids, _ in pairs], model, max_length)
    distinct = {token for ids in shortened for token in ids}
    strings, special = token_strings(distinct, model, needed=any(isinstance(text, str) for text, _ in rows))
    documents = []
    for number, ((text, label), ids, (_, spans)) in enumerate(zip(rows, shortened, pairs, strict=True)):
        if ids and spans is not None:
            documents.append(Document(number, tuple(ids), label, text, spans[: len(ids)]))
        elif ids:
            documents.append(of_ids(number, ids, label, strings, special))
    return Corpus(tuple(documents), strings, special)


def of_ids(
    number: int, ids: Sequence[int], label: str, strings: Mapping[int, str], special: frozenset[int]
) -> Document:
    """A document whose text is put together of its tokens' strings."""
    parts = ["" if token in special else strings[token] for token in ids]
    ends = np.cumsum([len(part) for part in parts])
    spans = np.stack([ends - [len(part) for part in parts], ends], axis=1)
    return Document(number, tuple(ids), label, "".join(parts), spans)


def _encode(texts: list[str], model: MoEModel) -> Iterator[tuple[list[int], np.ndarray | None]]:
    """Token ids of each text, and their spans where the tokenizer can tell. Blanks at both ends are left out."""
    if not texts:
        return
    tokenizer = model.tokenizer
    encoded = tokenizer([text.strip() for text in texts], return_offsets_mapping=tokenizer.is_fast)
    offsets = encoded["offset_mapping"] if tokenizer.is_fast else [None] * len(texts)
    for text, ids, found in zip(texts, encoded["input_ids"], offsets, strict=True):
        blank = len(text) - len(text.lstrip())
        spans = None if found is None else np.asarray(found, np.int64).reshape(-1, 2)
        if spans is not None:
            spans = np.where(spans[:, :1] < spans[:, 1:], spans + blank, 0)
        yield ids, spans


def _rows(texts: Any, column: str | None, label_column: str | None) -> Iterator[tuple[Any, str]]:
    """(text or token ids, label) of each document."""
    if isinstance(texts, str | Path):
        texts = _read(texts)
    for row in texts:
        if isinstance(row, str):
            yield row, ""
        elif hasattr(row, "keys"):
            yield _field(row, column), "" if label_column is None else str(_named(row, label_column))
        elif isinstance(row, Iterable):
            yield list(row), ""
        else:
            raise InputError(f"A document is a {type(row).__name__}; give strings or lists of token ids.")


def _field(row: Any, column: str | None) -> str:
    if column is None:
        column = next((name for name in TEXT_COLUMNS if name in row), None)
        if column is None:
            raise InputError(f"The rows have the columns {', '.join(map(str, row.keys()))}; say which holds the text.")
    text = _named(row, column)
    return text if isinstance(text, str) else ""


def _named(row: Any, column: str) -> Any:
    if column not in row:
        raise InputError(f"The rows have no column {column!r}, but {', '.join(map(str, row.keys()))}.")
    return row[column]


def _read(path: str | Path) -> Iterable[Any]:
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path} is no file of texts; a text itself goes into a list: [text].")
    try:
        if path.suffix in READERS:
            return READERS[path.suffix](path).to_dict("records")
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()] if path.suffix in JSON_LINES else lines
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as {path.suffix.lstrip('.') or 'text'} ({error}).") from error


def _check_vocabulary(ids: Sequence[Sequence[int]], model: MoEModel) -> None:
    size = model.config.get_text_config(decoder=True).vocab_size
    for number, tokens in enumerate(ids):
        wrong = next((token for token in tokens if not 0 <= token < size), None)
        if wrong is not None:
            raise InputError(f"Document {number} has the token id {wrong}; {model.name} has the ids 0 to {size - 1}.")


def _truncate(ids: list[list[int]], model: MoEModel, max_length: int | None) -> list[list[int]]:
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if max_length is not None:
        return [tokens[:max_length] for tokens in ids]
    too_long = [tokens for tokens in ids if longest is not None and len(tokens) > longest]
    if too_long:
        lost = sum(len(tokens) - longest for tokens in too_long)
        warnings.warn(
            f"{len(too_long)} of {len(ids)} documents are longer than the {longest} tokens of {model.name}; "
            f"{lost:,} tokens are left out.",
            stacklevel=4,
        )
    return [tokens[:longest] for tokens in ids]


def token_strings(
    tokens: Iterable[int], model: MoEModel, needed: bool = False
) -> tuple[dict[int, str], frozenset[int]]:
    """Each token id's own string, and which ids are special; the ids themselves where there is no tokenizer.

    A string begins with the blank that the token stands for. Decoders drop it at the beginning of a text, so each token
    is decoded after another one.

    Raises:
        InputError: there is no tokenizer, but one is needed.
    """
    distinct = sorted(set(tokens))
    try:
        tokenizer = model.tokenizer
    except InputError:
        if needed:
            raise
        return {token: str(token) for token in distinct}, frozenset()
    special = frozenset(tokenizer.all_special_ids)

    def decoded(ids: list[int]) -> str:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    before = [token for token in tokenizer("a", add_special_tokens=False)["input_ids"] if token not in special][-1:]
    start = decoded(before)

    def string(token: int) -> str:
        after = decoded([*before, token])
        if token in special or not after.startswith(start):
            return decoded([token])
        return after.removeprefix(start)

    return {token: string(token) for token in distinct}, special.intersection(distinct)
