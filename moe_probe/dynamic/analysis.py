"""The base class of dynamic analyses: fields are parameters, declared states hold what it keeps."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import xarray as xr

from moe_probe.results import dataset, provenance
from moe_probe.routing import LayerBatch, LogitBatch, Need, Source
from moe_probe.signatures import Checked
from moe_probe.statistics.states import Kept, Names, Rows, State, TokenTable
from moe_probe.texts.corpus import Corpus, Tokens

ENDS = {"_low": "lower end of the 95 % interval", "_high": "upper end of the 95 % interval", "_chance": "chance level"}
Legend = Mapping[str, tuple[str, str]]


@dataclass
class Analysis(Checked, ABC):
    """A statistic that adds up batches of tokens, and merges with another instance of itself.

    A subclass is a dataclass whose fields are its parameters. It declares its states as class attributes
    (`moe_probe.statistics.states`), adds to them in `update`, and computes its variables from them in `variables`. The
    base class merges, saves and resumes states, and records provenance. An analysis that needs the outputs of all
    experts receives as many tokens at a time as memory allows; any other receives whole documents.

    Attributes:
        name: name of the analysis in results and on the command line, and of its file.
        title: heading of its pages.
        needs: what the source must hold, for any parameters.
        unasked: whether the command line runs it if the user names no analysis.
        legend: long name and unit of each variable.
        special_tokens: whether tokens that stand for no text, such as the beginning of a sequence, are `included` or
            `omitted`; results record it.

    Examples:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> from moe_probe import dynamic
        >>> from moe_probe.routing import Need
        >>> from moe_probe.statistics.states import Total
        >>> @dataclass
        ... class RouterEntropy(dynamic.Analysis):
        ...     name = "router_entropy"
        ...     needs = frozenset({Need.SCORES})
        ...     entropy, rows = Total(), Total()
        ...     def update(self, batch):
        ...         self.entropy.add(batch, torch.special.entr(batch.scores).sum())
        ...         self.rows.add(batch, len(batch.scores))
        ...     def variables(self, source):
        ...         return {"entropy": self.entropy.array / self.rows.array}
        >>> dynamic.run("ckpt/tiny-mixtral", ["A text."], RouterEntropy())["router_entropy"].entropy.dims
        ('layer',)
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CHOICES})
    unasked: ClassVar[bool] = False
    legend: ClassVar[Legend] = {}
    special_tokens: ClassVar[str] = "included"
    kept: ClassVar[dict[str, dict]]  # of an instance: by state, layer and key

    score_kinds = Names()

    def __new__(cls, *arguments: object, **options: object) -> Self:
        instance = super().__new__(cls, *arguments, **options)
        vars(instance)["kept"] = {}
        return instance

    @classmethod
    def example(cls) -> Self:
        """Returns an instance with small parameters, for tests and documentation."""
        return cls()

    def needed(self) -> frozenset[Need]:
        """The needs that the source must meet, with these parameters."""
        return self.needs

    def check(self, source: Source) -> None:
        """Raises an error, before any work, if the analysis cannot run on the source.

        Raises:
            InputError: the source or its corpus does not fit.
        """

    def see(self, batch: LayerBatch) -> None:
        """Updates the states with a batch, and records the function by which its scores were computed."""
        if Need.SCORES in self.needed():
            self.score_kinds.add(batch, batch.score_kind)
        self.update(batch)

    @abstractmethod
    def update(self, batch: LayerBatch) -> None:
        """Updates the states with the routing of some tokens in one layer."""

    def update_logits(self, batch: LogitBatch) -> None:
        """Updates the states with the model's output for some tokens, if `needs` has `Need.LOGITS`."""
        raise NotImplementedError(f"{self.name} needs the model's output; define update_logits to receive it.")

    @abstractmethod
    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        """Returns the variables of the result by name, (layer, ...)."""

    def coords(self, source: Source) -> Mapping[str, Any]:
        """Returns further coordinates; those of tokens are added without it."""
        return {}

    def notes(self, source: Source) -> Mapping[str, Any]:
        """Returns attributes of the result besides its provenance."""
        return {}

    def folders(self) -> Sequence[str | Path]:
        """Returns the folders that the analysis writes to, which are locked during the run."""
        return ()

    def settle(self) -> None:
        """Moves pending values into the states; called before they are merged, saved or sent."""

    def result(self, source: Source) -> xr.Dataset:
        """Returns the Dataset, with provenance."""
        self.settle()
        arrays = {
            name: array.assign_attrs(described(self.legend, name)) for name, array in self.variables(source).items()
        }
        coords = dict(self.coords(source))
        if any("token" in array.dims for array in arrays.values()):
            coords |= token_coords(self.tokens(source), source.corpus)
        return dataset(arrays, self.attrs(source)).assign_coords(coords)

    def tokens(self, source: Source) -> Tokens:
        """The tokens along the result's `token` dimension, by document and position."""
        tables = (self.state_of(name) for name in self.declared() if isinstance(getattr(type(self), name), TokenTable))
        filled: Kept[Rows] | None = next((table for table in tables if table), None)
        return source.corpus.tokens() if filled is None else TokenTable.tokens(filled)

    @classmethod
    def declared(cls) -> list[str]:
        """Names of the declared states."""
        return [name for base in reversed(cls.__mro__) for name, each in vars(base).items() if isinstance(each, State)]

    def state_of(self, name: str) -> Kept:
        """The state of a given name."""
        return getattr(self, name)

    def fresh(self) -> Self:
        """Returns a new instance with the same parameters and empty states."""
        other = copy.copy(self)
        vars(other)["kept"] = {}
        return other

    def merge(self, other: Self) -> None:
        """Merges the states of another instance, which saw other tokens or other layers."""
        other.settle()
        for name in self.declared():
            self.state_of(name).merge(other.state_of(name))

    def state(self) -> dict[str, np.ndarray]:
        """Returns the states as arrays without objects, by `state/layer/key/name`."""
        self.settle()
        return {
            f"{name}/{path}": array for name in self.declared() for path, array in self.state_of(name).arrays().items()
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores the states that `state` returned.

        Raises:
            Damaged: the arrays do not match the declared states.
        """
        for name in self.declared():
            prefix = f"{name}/"
            arrays = {path.removeprefix(prefix): array for path, array in state.items() if path.startswith(prefix)}
            self.state_of(name).restore(arrays)

    def parameters(self) -> dict[str, Any]:
        """Returns the parameters for the result's `attrs`; arrays by their digest."""
        return {each.name: recorded(getattr(self, each.name)) for each in fields(self) if each.init}

    def attrs(self, source: Source) -> dict[str, Any]:
        """Returns provenance, a description of the texts, and the function that computed scores from router logits."""
        corpus = source.corpus
        texts = {"documents": len(corpus.documents), "tokens": corpus.num_tokens, "texts": corpus.fingerprint}
        clustered = any(document.cluster for document in corpus.documents)
        texts["resampled"] = "clusters of documents" if clustered else "documents"
        kinds = {layer: " and ".join(sorted(self.score_kinds[layer])) for layer in self.score_kinds.layers}
        scores = "; ".join(
            f"{kind} in layers {', '.join(str(layer) for layer in kinds if kinds[layer] == kind)}"
            if len(set(kinds.values())) > 1
            else kind
            for kind in dict.fromkeys(kinds.values())
        )
        told = {"score_function": scores} if scores else {}
        special = int(np.isin(corpus.tokens().token_id, sorted(corpus.special)).sum())
        texts["special_tokens"] = f"{self.special_tokens}: {special} of {corpus.num_tokens} tokens stand for no text"
        return {**provenance(self.name, source, **self.parameters()), **texts, **told, **self.notes(source)}


def recorded(value: Any) -> Any:
    """Returns a parameter as results record it."""
    if isinstance(value, np.ndarray):
        return f"array {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]}"
    if isinstance(value, Mapping):
        return {str(key): recorded(each) for key, each in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str):
        return [recorded(each) for each in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return value


def described(legend: Legend, name: str) -> dict[str, str]:
    """Returns `long_name` and `units` of a variable; interval ends and chance levels derive from those of theirs."""
    if name in legend:
        long_name, units = legend[name]
        return {"long_name": long_name, "units": units}
    for ending, what in ENDS.items():
        if name.endswith(ending):
            whole = described(legend, name.removesuffix(ending))
            return {**whole, "long_name": f"{whole['long_name']}, {what}"}
    return {"long_name": name.replace("_", " "), "units": "1"}


def expert_labels(experts: int) -> list[str]:
    """Labels of a layer's routed experts, of all kinds."""
    return [str(expert) for expert in range(experts)]


def token_coords(tokens: Tokens, corpus: Corpus) -> dict[str, tuple[str, Any]]:
    """Coordinates along `token`: document, position, token_id, string, and label if documents have labels."""
    coords: dict[str, tuple[str, Any]] = {
        "document": ("token", tokens.document),
        "position": ("token", tokens.position),
        "token_id": ("token", tokens.token_id),
        "string": ("token", [corpus.strings[int(token)] for token in tokens.token_id]),
    }
    if any(tokens.label):
        coords["label"] = ("token", [str(label) for label in tokens.label])
    return coords


def labeled(variables: Mapping[str, tuple[Sequence[str], Any]], coords: Mapping[str, Any]) -> dict[str, xr.DataArray]:
    """Returns DataArrays of (dims, values), each with the coordinates along its dimensions."""
    along = {name: value[0] if isinstance(value, tuple) else name for name, value in coords.items()}
    return {
        name: xr.DataArray(values, {c: coords[c] for c, dim in along.items() if dim in dims}, tuple(dims))
        for name, (dims, values) in variables.items()
    }
