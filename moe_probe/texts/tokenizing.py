"""Converts rows of text to documents of token ids, with a model's own tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import psutil
import torch
from rich.filesize import decimal

from moe_probe.errors import InputError, MachineError, NotFitting, NothingToRead, OutOfRange, WrongType, reason
from moe_probe.families.modules import on_cpu
from moe_probe.model import MoEModel
from moe_probe.signatures import check_number, checked
from moe_probe.texts.corpus import Corpus, Document, of_ids
from moe_probe.texts.reading import Chat, Row, Texts, read_rows, refuse_options

ATTENTION_COPIES = 2  # of the scores that eager attention holds at once, in float32: before and after the softmax
UNUSABLE = str.maketrans(dict.fromkeys([0, *range(0xD800, 0xE000)], "\ufffd"))  # NUL and halves of characters


@checked
def make_corpus(
    model: MoEModel,
    texts: Texts,
    *,
    labels: Sequence[str] | str | None = None,
    unit: Sequence[str] | str | None = None,
    column: str | None = None,
    split: str | None = None,
    max_length: int | None = None,
    add_special_tokens: bool | None = None,
    strip: bool | None = None,
) -> Corpus:
    """Converts texts of any form to documents of token ids.

    Args:
        model: a model with its tokenizer, vocabulary and longest sequence.
        texts: a list of strings, of lists of token ids or of chats; a file (`.txt`: a document per line; `.jsonl`,
            `.json`, `.csv`, `.tsv`, `.parquet`: a document per row); a DataFrame or a `datasets` dataset; what a
            tokenizer returned; `{label: [texts]}`; rows of `reading.read_rows`; or a corpus, which stays as it is.
        labels: a label per row, or the name of the column that holds it.
        unit: a cluster per row, or the name of the column that holds it; intervals resample clusters as a whole.
        column: the column of the text; `text`, `content`, `document` or `sentence` by default.
        split: of a dataset that has several.
        max_length: most tokens per document; the model's maximum by default.
        add_special_tokens: whether the tokenizer adds its special tokens, such as the beginning of a sequence; by
            default unless the text already begins with them. A chat has those of its template.
        strip: whether to remove blanks at both ends of a text; by default yes, except for texts that begin with their
            special tokens, and if `add_special_tokens` is given.

    Returns:
        A corpus with a document for each row that is not blank; documents keep the numbers of their rows.

    Raises:
        NothingToRead: there is no text, or no tokenizer.
        WrongType: the texts are of another type.
        OutOfRange: a token id is outside the vocabulary, or `max_length` is below 1.
    """
    if isinstance(texts, Corpus):
        stated = {"labels": labels, "unit": unit, "column": column, "split": split, "max_length": max_length}
        refuse_options("a corpus already", **stated, add_special_tokens=add_special_tokens, strip=strip)
        _check_vocabulary({document.number: document.ids for document in texts.documents}, model)
        return texts
    if max_length is not None:
        check_number("max_length", max_length, 1)
    rows = read_rows(texts, column=column, labels=labels, unit=unit, split=split)
    written = [row for row in rows if not isinstance(row.content, tuple)]
    encoded = _Encoder(model, add_special_tokens, strip).encode(written) if written else {}
    ids = {row.number: row.content for row in rows if isinstance(row.content, tuple)}
    ids |= {number: text.ids for number, text in encoded.items()}
    ids = {row.number: ids[row.number] for row in rows}
    _check_vocabulary(ids, model)
    ids = _truncated(ids, model, max_length)
    return _corpus(rows, ids, encoded, token_strings(set().union(*ids.values()), model, needed=bool(written)))


@dataclass(frozen=True)
class _Encoded:
    """A text, its token ids, and the characters of each token if the tokenizer gives them."""

    text: str
    ids: tuple[int, ...]
    spans: np.ndarray | None


def _corpus(
    rows: Sequence[Row],
    ids: dict[int, tuple[int, ...]],
    encoded: dict[int, _Encoded],
    strings_and_special: tuple[dict[int, str], frozenset[int]],
) -> Corpus:
    strings, special = strings_and_special
    documents = []
    for row in rows:
        tokens, text = ids[row.number], encoded.get(row.number)
        if text is None or text.spans is None:
            documents.append(of_ids(row.number, tokens, row.label, strings, special))
        else:
            documents.append(Document(row.number, tokens, row.label, text.text, text.spans[: len(tokens)]))
    clustered = (replace(document, cluster=row.cluster) for document, row in zip(documents, rows, strict=True))
    return Corpus(tuple(clustered), strings, special)


class _Encoder:
    """Converts texts and chats to token ids with one tokenizer; takes arguments of `make_corpus`."""

    def __init__(self, model: MoEModel, add_special_tokens: bool | None, strip: bool | None):
        self.model, self.tokenizer = model, model.tokenizer
        self.add_special_tokens, self.strip = add_special_tokens, strip

    def encode(self, rows: Sequence[Row]) -> dict[int, _Encoded]:
        """Returns the encoded rows by row number.

        Raises:
            NothingToRead: the tokenizer cannot read a text, or returns no tokens for it.
        """
        texts = {row.number: self._text(row) for row in rows}
        self._warn_of_unusable(texts)
        texts = {number: text.translate(UNUSABLE) for number, text in texts.items()}
        plain = {row.number for row in rows if isinstance(row.content, Chat) or not self._adds(texts[row.number])}
        unstripped = {
            row.number for row in rows if isinstance(row.content, Chat) or not self._strips(texts[row.number])
        }
        encoded = {}
        for add in (True, False):
            group = [number for number in texts if (number not in plain) == add]
            prepared = [texts[number] if number in unstripped else texts[number].strip() for number in group]
            for number, ids, spans in zip(group, *self._tokenized(prepared, add), strict=True):
                blank = 0 if number in unstripped else len(texts[number]) - len(texts[number].lstrip())
                encoded[number] = _Encoded(texts[number], tuple(ids), _shifted(spans, blank))
        empty = next((number for number, text in encoded.items() if not text.ids), None)
        if empty is not None:
            raise NothingToRead(f"The tokenizer of {self.model.name} returns no tokens for row {empty}; omit this row.")
        return encoded

    def _text(self, row: Row) -> str:
        if isinstance(row.content, str):
            return row.content
        if not isinstance(row.content, Chat):
            raise WrongType(f"Row {row.number} holds token ids, which need no tokenizer.")
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise NotFitting(
                f"Row {row.number} is a chat, but the tokenizer of {self.model.name} has no chat template; pass a text."
            )
        try:
            messages = [dict(message) for message in row.content.messages]
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:  # templates are programs, which raise what they like
            raise NotFitting(
                f"The chat template of {self.model.name} refuses row {row.number} ({reason(error)}); correct its "
                "messages."
            ) from error

    def _tokenized(self, texts: list[str], add: bool) -> tuple[list[list[int]], list[Any]]:
        if not texts:
            return [], []
        fast = bool(self.tokenizer.is_fast)
        try:
            encoded = self.tokenizer(texts, add_special_tokens=add, return_offsets_mapping=fast, verbose=False)
        except Exception as error:  # tokenizers of other packages raise what they like
            raise NothingToRead(
                f"The tokenizer of {self.model.name} cannot read the texts ({reason(error)}); correct them."
            ) from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust: no memory or no threads left
                raise
            raise MachineError(f"The tokenizer failed ({reason(error)}); free some memory, and run again.") from error
        return encoded["input_ids"], encoded["offset_mapping"] if fast else [None] * len(texts)

    def _warn_of_unusable(self, texts: dict[int, str]) -> None:
        wrong = [number for number, text in texts.items() if text.translate(UNUSABLE) != text]
        if wrong:
            warnings.warn(
                f"{len(wrong)} of {len(texts)} texts hold NUL or half characters (the first is row {wrong[0]}); they "
                "are replaced by \ufffd.",
                stacklevel=4,
            )

    @cached_property
    def _added(self) -> tuple[str, str]:
        """The texts that the tokenizer adds before and after a text."""
        full = self.tokenizer("a")["input_ids"]
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        for start in range(len(full) - len(plain) + 1):
            if plain and full[start : start + len(plain)] == plain:
                before, after = full[:start], full[start + len(plain) :]
                return self._written(before), self._written(after)
        return "", ""

    def _written(self, ids: list[int]) -> str:
        return "".join(str(token) for token in self.tokenizer.convert_ids_to_tokens(ids))

    def _has_special_tokens(self, text: str) -> bool:
        before, after = self._added
        return text.startswith(before) if before else bool(after) and text.endswith(after)

    def _adds(self, text: str) -> bool:
        return not self._has_special_tokens(text) if self.add_special_tokens is None else self.add_special_tokens

    def _strips(self, text: str) -> bool:
        if self.strip is not None:
            return self.strip
        return self.add_special_tokens is None and not self._has_special_tokens(text)


def _shifted(spans: Any, blank: int) -> np.ndarray | None:
    """Characters of tokens in a text after `blank` leading blanks; those of special tokens stay empty."""
    if spans is None:
        return None
    places = np.asarray(spans, np.int64).reshape(-1, 2)
    return np.where(places[:, :1] < places[:, 1:], places + blank, 0)


def _check_vocabulary(ids: dict[int, tuple[int, ...]], model: MoEModel) -> None:
    size = model.config.get_text_config(decoder=True).vocab_size
    for number, tokens in ids.items():
        if tokens and not 0 <= min(tokens) <= max(tokens) < size:
            wrong = next(token for token in tokens if not 0 <= token < size)
            raise OutOfRange(
                f"Document {number} has the token id {wrong}; {model.name} has the ids 0 to {size - 1}; use its "
                "tokenizer."
            )


def window(model: MoEModel) -> int | None:
    """The longest sequence in tokens that a model was made for; None if its configuration does not say."""
    stated = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated > 0 else None


def _truncated(ids: dict[int, tuple[int, ...]], model: MoEModel, max_length: int | None) -> dict[int, tuple[int, ...]]:
    longest = window(model)
    cut = {number: tokens[: longest if max_length is None else max_length] for number, tokens in ids.items()}
    beyond = [number for number in cut if longest is not None and len(ids[number]) > longest]
    if max_length is None and beyond:
        lost = sum(len(ids[number]) - len(cut[number]) for number in beyond)
        warnings.warn(
            f"{len(beyond)} of {len(ids)} documents are longer than the {longest} tokens of {model.name}; "
            f"{lost:,} tokens are left out.",
            stacklevel=4,
        )
    elif longest is not None and beyond and max_length is not None and max_length > longest:
        warnings.warn(
            f"{len(beyond)} of {len(ids)} documents are longer than the {longest} tokens that {model.name} was made "
            f"for; max_length={max_length} keeps more of them, so their last tokens are routed outside its window.",
            stacklevel=4,
        )
    return cut


def check_fits(corpus: Corpus, model: MoEModel, batch_tokens: int = 4096) -> None:
    """Raises an error, before the pass, if the attention of a document does not fit into free memory.

    Eager attention holds a score per head for every pair of tokens. Other attention needs no check.

    Raises:
        NotFitting: the longest documents need more memory than is free.
    """
    heads = _heads(model)
    if heads is None or not _is_eager(model):
        return
    batch = max(corpus.batches(batch_tokens), key=lambda batch: batch.shape[0] * batch.shape[1] ** 2)
    rows, places = batch.shape
    pair = ATTENTION_COPIES * torch.float32.itemsize * heads
    needed, free = rows * pair * places**2, _free_memory(model)
    if needed > free:
        remedy = f"max_length={max(1, int((free / pair) ** 0.5)):,}" if rows == 1 else "a smaller batch_tokens="
        raise NotFitting(
            f"Document {batch.documents[-1].number} has {places:,} tokens, whose attention needs "
            f"{decimal(needed)} ({rows} at a time); {decimal(free)} are free; pass {remedy}."
        )


def _heads(model: MoEModel) -> int | None:
    """The largest number of attention heads of a layer; None if the configuration does not say."""
    fields = model.config.get_text_config(decoder=True).to_dict()
    heads = [fields.get("num_attention_heads"), *(fields.get("num_attention_heads_per_layer") or ())]
    return max((count for count in heads if isinstance(count, int)), default=None)


def _is_eager(model: MoEModel) -> bool:
    loaded = vars(model).get("module")
    if loaded is not None:
        return getattr(loaded.config, "_attn_implementation", None) == "eager"
    return on_cpu(model.device)  # where moe_probe loads models with eager attention, which is exact


def _free_memory(model: MoEModel) -> int:
    if on_cpu(model.device) or not torch.cuda.is_available():
        return psutil.virtual_memory().available
    return torch.cuda.mem_get_info(torch.device(str(model.device)))[0]


def token_strings(
    tokens: Iterable[int], model: MoEModel, needed: bool = False
) -> tuple[dict[int, str], frozenset[int]]:
    """Returns the string of each token id, and the special ids; without a tokenizer, the ids as strings.

    Strings keep their leading blanks. Decoders drop these at the beginning of a text, so each token is decoded after
    another one.

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
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    before = [token for token in tokenizer("a", add_special_tokens=False)["input_ids"] if token not in special][-1:]
    start = decoded(before)

    def string(token: int) -> str:
        after = decoded([*before, token])
        if token in special or not after.startswith(start):
            return decoded([token])
        return after.removeprefix(start)

    return {token: string(token) for token in distinct}, special.intersection(distinct)
