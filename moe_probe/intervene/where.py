"""Selection of the tokens that an intervention acts on."""

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
    """Selects the tokens that meet all given conditions.

    Args:
        label: label of their document, one or several; during generation, `prompt` or `generated`.
        position: position in their document, from 0, one or several.
        token_id: token id, one or several.
        mask: by document number, a boolean for each of the document's tokens; tokens of other documents are not
            selected.

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
                    raise OutOfRange(f"where= has an empty {name}; pass the tokens that the intervention acts on.")
                object.__setattr__(self, name, several)
        for name in ("position", "token_id"):
            for each in getattr(self, name) or ():
                check_number(name, each, 0)
        if self.mask is not None:
            masks = self.mask.items() if isinstance(self.mask, Mapping) else self.mask
            object.__setattr__(self, "mask", tuple((int(n), tuple(map(bool, each))) for n, each in masks))
        if all(getattr(self, each.name) is None for each in fields(self)):
            raise NotFitting("where= has no condition; pass label, position, token_id or mask, or omit it.")

    @classmethod
    def of(cls, given: Where | Mapping[str, Any] | None) -> Where | None:
        """Converts a value of `where=`: a `Where`, conditions by name, or None for all tokens."""
        if given is None or isinstance(given, Where):
            return given
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise WrongType(f"where is {value_shown(given)}; pass intervene.Where(...) or a mapping of its arguments.")
        return construct("where", cls, given)

    def __repr__(self) -> str:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return f"Where({', '.join(f'{name}={value!r}' for name, value in values.items() if value is not None)})"

    def matches(self, tokens: Tokens) -> np.ndarray:
        """Whether each token meets the conditions, (tokens,) bool.

        Raises:
            NotFitting: the call does not say which tokens run.
        """
        if not len(tokens):
            raise NotFitting("where= needs to know which tokens run, but this call does not say; omit where=.")
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
        """Raises an error if the texts lack a label or document of the conditions.

        Raises:
            NoSuchName: the texts have no such label.
            OutOfRange: the texts have no such document, or another number of tokens.
        """
        labels = {document.label for document in corpus.documents}
        for label in self.label or ():
            if label not in labels:
                raise NoSuchName.among("label of the texts", label, sorted(labels - {""}))
        lengths = {document.number: len(document.ids) for document in corpus.documents}
        masks: Any = self.mask or ()
        for number, mask in masks:
            if number not in lengths:
                raise OutOfRange(
                    f"where= masks document {number}, but the texts have 0 to {len(lengths) - 1}; mask some of these."
                )
            if len(mask) != lengths[number]:
                raise NotFitting(
                    f"where= masks {len(mask)} tokens of document {number}, which has {lengths[number]}; pass one "
                    "value for each."
                )
