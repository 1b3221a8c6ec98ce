"""Which tokens an intervention acts on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from moe_probe.errors import NoSuchName, NotFitting, OutOfRange, WrongType
from moe_probe.options import construct
from moe_probe.signatures import Checked, check_number, value_shown
from moe_probe.texts.corpus import Corpus, Tokens


@dataclass(frozen=True, repr=False)
class Where(Checked):
    """Tokens, by all conditions that are given.

    Args:
        label: of their document, one or several; `prompt` and `generated` while a model writes.
        position: in their document, from 0, one or several.
        token_id: one or several.
        mask: for some documents, by number, whether each of their tokens counts; other documents' tokens do not.

    Examples:
        >>> Where(label="code", position=[0, 1])
        Where(label=('code',), position=(0, 1))
    """

    label: str | Sequence[str] | None = None
    position: int | Sequence[int] | None = None
    token_id: int | Sequence[int] | None = None
    mask: Mapping[int, Sequence[bool]] | Sequence[tuple[int, Sequence[bool]]] | None = None

    def __post_init__(self) -> None:
        for name in ("label", "position", "token_id"):
            value = getattr(self, name)
            if value is not None:
                several = (value,) if isinstance(value, str) or not isinstance(value, Sequence) else tuple(value)
                if not several:
                    raise OutOfRange(f"where= has an empty {name}; name the tokens that the intervention acts on.")
                object.__setattr__(self, name, several)
        for name in ("position", "token_id"):
            for each in getattr(self, name) or ():
                check_number(name, each, 0)
        if self.mask is not None:
            masks = self.mask.items() if isinstance(self.mask, Mapping) else self.mask
            object.__setattr__(self, "mask", tuple((int(n), tuple(map(bool, each))) for n, each in masks))
        if all(getattr(self, each.name) is None for each in fields(self)):
            raise NotFitting("where= has no condition; give label, position, token_id or mask, or omit it.")

    @classmethod
    def of(cls, given: Where | Mapping[str, Any] | None) -> Where | None:
        """What was given as `where=`: conditions by name, or None for all tokens."""
        if given is None or isinstance(given, Where):
            return given
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise WrongType(f"where is {value_shown(given)}; pass intervene.Where(...) or a mapping of its arguments.")
        return construct("where", cls, given)

    def __repr__(self) -> str:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return f"Where({', '.join(f'{name}={value!r}' for name, value in values.items() if value is not None)})"

    def matches(self, tokens: Tokens) -> np.ndarray:
        """Whether each token is one of them, (tokens,) bool.

        Raises:
            NotFitting: nobody says which tokens run.
        """
        if not len(tokens):
            raise NotFitting("where= needs to know which tokens run, which this call does not tell; omit where=.")
        matching = np.ones(len(tokens), dtype=bool)
        for name in ("label", "position", "token_id"):
            wanted = getattr(self, name)
            if wanted is not None:
                matching &= np.isin(getattr(tokens, name).astype(str if name == "label" else np.int64), wanted)
        return matching if self.mask is None else matching & self._masked(tokens)

    def _masked(self, tokens: Tokens) -> np.ndarray:
        matching = np.zeros(len(tokens), dtype=bool)
        masks: Any = self.mask
        for number, mask in masks:
            inside = (tokens.document == number) & (tokens.position < len(mask))
            matching[inside] = np.asarray(mask)[tokens.position[inside]]
        return matching

    def check(self, corpus: Corpus) -> None:
        """Refuse labels and documents that the texts do not have.

        Raises:
            NoSuchName, OutOfRange: naming the first one.
        """
        labels = {document.label for document in corpus.documents}
        for label in self.label or ():
            if label not in labels:
                raise NoSuchName.among("label of the texts", label, sorted(labels - {""}))
        lengths = {document.number: len(document.ids) for document in corpus.documents}
        masks: Any = self.mask or ()
        for number, mask in masks:
            if number not in lengths:
                raise OutOfRange(f"where= masks document {number}; the texts have {len(lengths)} documents, from 0.")
            if len(mask) != lengths[number]:
                raise NotFitting(
                    f"where= masks {len(mask)} tokens of document {number}, which has {lengths[number]}; give one "
                    "value for each."
                )
