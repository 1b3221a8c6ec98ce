"""Documents of token ids, and batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch

NO_UNIT = -1


@dataclass(frozen=True)
class Document:
    """Token ids of one text, in order.

    Attributes:
        number: number of its row in the texts, counting blank rows; the coordinate `document` of results.
        ids: token ids, including special tokens.
        label: domain, task or other group; "" for none.
        text: the tokenized text; for token ids, their strings one after the other.
        spans: start and end of each token's characters in `text`, (tokens, 2); empty for special tokens.
        cluster: the cluster with which it is resampled, such as its source; "" for the document alone.
        unit: number of its resampling unit; a corpus assigns it by content, independent of the order.
    """

    number: int
    ids: tuple[int, ...]
    label: str = ""
    text: str = ""
    spans: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64), compare=False, repr=False)
    cluster: str = field(default="", repr=False)
    unit: int = field(default=NO_UNIT, compare=False, repr=False)


@dataclass(frozen=True)
class Corpus:
    """Documents, and the strings of their tokens if there is a tokenizer.

    Attributes:
        documents: the documents, in order.
        strings: string of each token id, with its leading blank; the id itself without a tokenizer.
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

    def __post_init__(self) -> None:
        if any(document.unit == NO_UNIT for document in self.documents):
            object.__setattr__(self, "documents", numbered_units(self.documents))

    def tokens(self) -> Tokens:
        """The tokens of all documents, with their documents, positions and ids."""
        return Batch(self.documents).tokens()

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all documents."""
        return sum(len(document.ids) for document in self.documents)

    @property
    def fingerprint(self) -> str:
        """A hash of the tokens and labels, for results."""
        content = [(document.number, document.ids, document.label) for document in self.documents]
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    @property
    def digests(self) -> list[int]:
        """A digest of each document's token ids, equal for equal ids, whatever position and label."""
        contents = (repr(document.ids).encode() for document in self.documents)
        return [int.from_bytes(hashlib.sha256(each).digest()[:8], "big", signed=True) for each in contents]

    def beginning(self, tokens: int) -> Corpus:
        """A corpus of the first document, cut to at most `tokens` tokens."""
        first = self.documents[0]
        return replace(self, documents=(replace(first, ids=first.ids[:tokens], spans=first.spans[:tokens]),))

    def split(self, parts: int) -> list[Corpus]:
        """Splits into at most `parts` corpora with similar numbers of tokens, which keep the documents' numbers."""
        heaps: list[list[Document]] = [[] for _ in range(min(parts, len(self.documents)))]
        sizes = [0] * len(heaps)
        for document in sorted(self.documents, key=lambda d: -len(d.ids)):
            least = sizes.index(min(sizes))
            heaps[least].append(document)
            sizes[least] += len(document.ids)
        return [replace(self, documents=tuple(sorted(heap, key=lambda d: d.number))) for heap in heaps]

    def batches(self, batch_tokens: int) -> Iterator[Batch]:
        """Yields batches of documents of similar length, with at most `batch_tokens` places or one document each."""
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
        """All tokens including padding, whose positions continue beyond the document."""
        rows, places = self.shape
        return Tokens(
            document=np.repeat([document.number for document in self.documents], places),
            position=np.tile(np.arange(places), rows),
            token_id=self.input_ids().flatten().numpy(),
            label=np.repeat(np.asarray([document.label for document in self.documents], dtype=object), places),
            unit=np.repeat([document.unit for document in self.documents], places),
        )

    def tokens(self) -> Tokens:
        """All tokens without padding, in row-major order."""
        lengths = [len(document.ids) for document in self.documents]
        return Tokens(
            document=np.repeat([document.number for document in self.documents], lengths),
            position=np.concatenate([np.arange(length) for length in lengths]),
            token_id=np.concatenate([np.asarray(document.ids) for document in self.documents]),
            label=np.repeat(np.asarray([document.label for document in self.documents], dtype=object), lengths),
            unit=np.repeat([document.unit for document in self.documents], lengths),
        )


@dataclass(frozen=True)
class Tokens:
    """Document number, position in it, id, document label and unit of each token; arrays of one length.

    The unit is what intervals resample as a whole: by default the document.
    """

    document: np.ndarray
    position: np.ndarray
    token_id: np.ndarray
    label: np.ndarray
    unit: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if len(self.unit) != len(self.document):
            object.__setattr__(self, "unit", self.document)

    def __len__(self) -> int:
        return len(self.document)

    def __getitem__(self, index: slice | np.ndarray) -> Tokens:
        return Tokens(**{each.name: getattr(self, each.name)[index] for each in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """The tokens of all parts, one after the other."""
        return cls(**{each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)})

    @classmethod
    def none(cls) -> Tokens:
        """No tokens."""
        none = np.zeros(0, np.int64)
        return cls(none, none, none, np.zeros(0, object))

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields as arrays without objects."""
        return {**vars(self), "label": self.label.astype(str)}


def numbered_units(documents: Sequence[Document]) -> tuple[Document, ...]:
    """Returns the documents with numbers of units, which are consecutive within a label and ordered by content.

    If there are too many documents to keep each one, neighbors are resampled together; the order by content makes this
    independent of the order of lines and batches.
    """
    places: dict[tuple[str, int], tuple[str, bytes, int]] = {}
    keys = [(document.cluster, -1 if document.cluster else at) for at, document in enumerate(documents)]
    for key, document in zip(keys, documents, strict=True):
        content = document.cluster or repr(document.ids)
        place = document.label, hashlib.blake2b(content.encode(), digest_size=8).digest(), key[1]
        places[key] = min(place, places.get(key, place))
    units = {key: unit for unit, key in enumerate(sorted(places, key=lambda key: places[key]))}
    return tuple(replace(document, unit=units[key]) for document, key in zip(documents, keys, strict=True))


def position_bin(position: np.ndarray) -> np.ndarray:
    """Number of the place that a position in a document falls in: 0, 1, 2-3, 4-7, 8-15, ..."""
    return np.frexp(position)[1]


def bin_start(place: np.ndarray) -> np.ndarray:
    """First position of each place."""
    return np.where(place > 0, 1 << np.maximum(place - 1, 0), 0)


def of_ids(
    number: int, ids: Sequence[int], label: str, strings: Mapping[int, str], special: frozenset[int]
) -> Document:
    """Returns a document whose text is the concatenation of its tokens' strings."""
    parts = ["" if token in special else strings[token] for token in ids]
    ends = np.cumsum([len(part) for part in parts])
    spans = np.stack([ends - [len(part) for part in parts], ends], axis=1)
    return Document(number, tuple(ids), label, "".join(parts), spans)
