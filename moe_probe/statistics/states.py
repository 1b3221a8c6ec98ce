"""States of analyses, declared as class attributes, each with the rule by which its values merge.

A state keeps one value per layer, and per key if there are keys (such as document labels). Batches, processes,
machines and resumed runs all add to it by the same rule, so no analysis writes merging code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np
import torch
import xarray as xr

from moe_probe.errors import Damaged, NotFitting
from moe_probe.routing import LayerBatch
from moe_probe.texts.corpus import Tokens

EXPERTS = ("expert", "other", "source")  # dimensions whose coordinates are expert labels
MOST_UNITS = 4096  # that a table keeps apart
ALL_LAYERS = -1  # the place of what belongs to no single layer

Value = TypeVar("Value")
Place = tuple[int, str]  # layer and key


class State(ABC, Generic[Value]):
    """A kind of state: it defines how to join two values, and how to write one as arrays.

    Args:
        dims: dimensions of a value, after `layer` (and after `token`, if it has a row per token).

    Examples:
        >>> class Seen:
        ...     rows = Total()
        ...     def __init__(self):
        ...         self.kept = {}
        >>> seen = Seen()
        >>> seen.rows.put(0, 3); seen.rows.put(0, 4)
        >>> int(seen.rows.array.sel(layer=0))
        7
    """

    def __init__(self, *dims: str):
        self.dims = dims

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Kept[Value]: ...

    def __get__(self, instance: Any, owner: type) -> Self | Kept[Value]:
        return self if instance is None else Kept(self, instance.kept.setdefault(self.name, {}))

    @abstractmethod
    def join(self, one: Value, other: Value) -> Value:
        """Joins two values into one."""

    @abstractmethod
    def arrays(self, value: Value) -> dict[str, np.ndarray]:
        """Returns the value as arrays without objects, by name."""

    @abstractmethod
    def value(self, arrays: dict[str, np.ndarray]) -> Value:
        """Returns the value that `arrays` wrote."""

    def seen(self, batch: LayerBatch, value: Any) -> Value:
        """Returns the value that a batch adds."""
        return self.of(value)

    def of(self, value: Any) -> Value:
        """Converts a tensor, array, number or set to a value of this kind."""
        raise TypeError(f"{type(self).__name__} takes batches alone.")

    def array(self, values: dict[int, Value]) -> xr.DataArray:
        """Stacks the values of all layers, (layer, ...).

        Raises:
            NotFitting: the layers' values have different shapes.
        """
        raise TypeError(f"{type(self).__name__} has no array of all layers.")


class Kept(Generic[Value]):
    """The values of one state of one analysis."""

    def __init__(self, state: State[Value], values: dict[Place, Value]):
        self.state, self.values = state, values

    def add(self, batch: LayerBatch, value: Any, key: str = "") -> None:
        """Adds a batch's contribution to the value of its layer, and of `key` if there are keys."""
        self._join((batch.layer.index, key), self.state.seen(batch, value))

    def put(self, layer: int, value: Any, key: str = "") -> None:
        """Joins a value to that of a layer."""
        self._join((layer, key), self.state.of(value))

    def merge(self, other: Self) -> None:
        """Joins the values of the same state of another analysis."""
        for place, value in other.values.items():
            self._join(place, value)

    def _join(self, place: Place, value: Value) -> None:
        self.values[place] = self.state.join(self.values[place], value) if place in self.values else value

    @property
    def layers(self) -> list[int]:
        """Layers that have a value, ascending."""
        return sorted({layer for layer, _ in self.values})

    @property
    def keys(self) -> list[str]:
        """Keys, in order."""
        return sorted({key for _, key in self.values})

    def __getitem__(self, place: int | Place) -> Value:
        return self.values[place if isinstance(place, tuple) else (place, "")]

    def __iter__(self) -> Iterator[Place]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __bool__(self) -> bool:
        return bool(self.values)

    @property
    def array(self) -> xr.DataArray:
        """The values of all layers, (layer, ...); the layers' numbers, and labels of experts, are coordinates."""
        return self.by_key("")

    def by_key(self, key: str) -> xr.DataArray:
        """The values of all layers for one key, (layer, ...)."""
        return self.state.array(
            {layer: self.values[layer, key] for layer in self.layers if (layer, key) in self.values}
        )

    def stacked(self, dim: str, keys: Sequence[str]) -> xr.DataArray:
        """The values of several keys, (layer, `dim`, ...)."""
        return xr.concat([self.by_key(key) for key in keys], xr.Variable(dim, list(keys))).transpose("layer", dim, ...)

    def arrays(self) -> dict[str, np.ndarray]:
        """All values as arrays, by `layer/key/name`."""
        arrays = {}
        for (layer, key), value in self.values.items():
            arrays |= {f"{layer}/{key}/{name}": array for name, array in self.state.arrays(value).items()}
        return arrays

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores the values that `arrays` wrote.

        Raises:
            Damaged: the arrays do not match this state.
        """
        parts: dict[Place, dict[str, np.ndarray]] = {}
        for path, array in arrays.items():
            layer, _, inside = path.partition("/")
            key, _, name = inside.rpartition("/")
            parts.setdefault((int(layer), key), {})[name] = array
        self.values.clear()
        try:
            self.values.update({place: self.state.value(value) for place, value in parts.items()})
        except (KeyError, ValueError, TypeError) as error:
            raise Damaged(
                f"The saved state of {self.state.name} was changed after it was saved ({error}); delete it."
            ) from error


class Elementwise(State[np.ndarray]):
    """A state whose values are arrays of one shape."""

    def of(self, value: Any) -> np.ndarray:
        return np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)

    def arrays(self, value: np.ndarray) -> dict[str, np.ndarray]:
        return {"value": value}

    def value(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        return arrays["value"]

    def array(self, values: dict[int, np.ndarray]) -> xr.DataArray:
        return stacked_layers(values, self.dims)


class Total(Elementwise):
    """A sum.

    Examples:
        >>> Total().join(np.asarray(1), np.asarray(2)).item()
        3
    """

    def join(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.add(one, other)


class Moments(Elementwise):
    """Number, mean and sum of squared differences from the mean, (3, ...), of values that are added as (n, ...).

    Joining two uses the difference of their means (Chan, Golub and LeVeque 1983, The American Statistician 37), which
    avoids subtracting large squares.

    Examples:
        >>> one, other = (Moments().of(np.array(values)) for values in ([1.0, 2.0], [6.0]))
        >>> Moments().join(one, other).tolist()  # the variance of 1, 2, 6 is 14 / 3
        [3.0, 3.0, 14.0]
    """

    def of(self, value: Any) -> np.ndarray:
        values = super().of(value).astype(float)
        mean = values.mean(0)
        return np.stack([np.full(mean.shape, float(len(values))), mean, ((values - mean) ** 2).sum(0)])

    def join(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        count, apart = one[0] + other[0], other[1] - one[1]
        share = other[0] / count
        return np.stack([count, one[1] + apart * share, one[2] + other[2] + apart**2 * one[0] * share])

    def array(self, values: dict[int, np.ndarray]) -> xr.DataArray:
        return stacked_layers(values, ("moment", *self.dims))


class Least(Elementwise):
    """A minimum, element by element."""

    def join(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.minimum(one, other)


class Most(Elementwise):
    """A maximum, element by element."""

    def join(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.maximum(one, other)


class Same(Elementwise):
    """A value that must be equal in all batches."""

    def join(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        if not np.array_equal(one, other):
            raise NotFitting(f"Batches disagree in {self.name}: {one} and {other}; they cannot be merged.")
        return one


class Names(State[frozenset[str]]):
    """A set of strings, such as names that occurred; it merges by union."""

    def of(self, value: Any) -> frozenset[str]:
        return frozenset([value] if isinstance(value, str) else value)

    def join(self, one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
        return one | other

    def arrays(self, value: frozenset[str]) -> dict[str, np.ndarray]:
        return {"names": np.asarray(sorted(value), dtype=str)}

    def value(self, arrays: dict[str, np.ndarray]) -> frozenset[str]:
        return frozenset(str(name) for name in arrays["names"])


class Files(State[tuple[str, ...]]):
    """Names of written files, in the order of writing."""

    def of(self, value: Any) -> tuple[str, ...]:
        return (value,) if isinstance(value, str) else tuple(value)

    def join(self, one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
        return one + other

    def arrays(self, value: tuple[str, ...]) -> dict[str, np.ndarray]:
        return {"names": np.asarray(value, dtype=str)}

    def value(self, arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
        return tuple(str(name) for name in arrays["names"])


class UnitSums:
    """Sums over units, such as documents.

    Attributes:
        keys: numbers of the units, ascending, int64; at a level above 0, each stands for 2^level neighboring units.
        values: the sums, (units, ...).
        level: how many times neighboring units were joined.
    """

    def __init__(self, keys: np.ndarray, values: np.ndarray, level: int = 0):
        self.keys, self.values, self.level = keys, values, level

    def at(self, level: int) -> UnitSums:
        """Returns the sums with neighboring units joined up to a level."""
        if level == self.level:
            return self
        keys, inverse = np.unique(self.keys >> (level - self.level), return_inverse=True)
        values = np.zeros((len(keys), *self.values.shape[1:]), self.values.dtype)
        np.add.at(values, inverse, self.values)
        return UnitSums(keys, values, level)


class PerUnit(State[UnitSums]):
    """A sum per unit, a document or a cluster of documents; intervals and chance levels resample units.

    If there are more than `most` units, neighbors in number are joined two by two until there are not. Units are
    numbered by content within labels (`numbered_units`), so joining depends neither on order nor on batches.

    Args:
        dims: dimensions of a sum.
        most: largest number of units in a table.
    """

    def __init__(self, *dims: str, most: int = MOST_UNITS):
        super().__init__(*dims)
        self.most = most

    def of(self, value: Any) -> UnitSums:
        unit, rows = value
        rows = rows.cpu() if isinstance(rows, torch.Tensor) else torch.as_tensor(rows)
        rows = rows.double() if rows.is_floating_point() else rows.long()
        keys, inverse = np.unique(np.asarray(unit, np.int64), return_inverse=True)
        total = torch.zeros(len(keys), *rows.shape[1:], dtype=rows.dtype)
        return self._held(UnitSums(keys, total.index_add_(0, torch.from_numpy(inverse), rows).numpy()))

    def _held(self, sums: UnitSums) -> UnitSums:
        while len(sums.keys) > self.most:
            sums = sums.at(sums.level + 1)
        return sums

    def join(self, one: UnitSums, other: UnitSums) -> UnitSums:
        level = max(one.level, other.level)
        one, other = one.at(level), other.at(level)
        keys, inverse = np.unique(np.concatenate([one.keys, other.keys]), return_inverse=True)
        values = np.zeros((len(keys), *one.values.shape[1:]), np.result_type(one.values, other.values))
        np.add.at(values, inverse, np.concatenate([one.values, other.values]))
        return self._held(UnitSums(keys, values, level))

    def arrays(self, value: UnitSums) -> dict[str, np.ndarray]:
        return {"keys": value.keys, "values": value.values, "level": np.asarray(value.level)}

    def value(self, arrays: dict[str, np.ndarray]) -> UnitSums:
        return UnitSums(arrays["keys"], arrays["values"], int(arrays["level"]))

    def array(self, values: dict[int, UnitSums]) -> xr.DataArray:
        return stacked_layers({layer: sums.values.sum(0) for layer, sums in values.items()}, self.dims)

    @staticmethod
    def tables(state: Kept[UnitSums]) -> dict[str, np.ndarray]:
        """Sums of all units of each key, (layers, units, ...), by key, all at one level."""
        level = max(sums.level for sums in state.values.values())
        tables = {}
        for key in state.keys:
            sums = [state[layer, key].at(level) for layer in state.layers if (layer, key) in state.values]
            every = np.unique(np.concatenate([one.keys for one in sums]))
            table = np.zeros((len(sums), len(every), *sums[0].values.shape[1:]), sums[0].values.dtype)
            for layer, one in zip(table, sums, strict=True):
                layer[np.searchsorted(every, one.keys)] = one.values
            tables[key] = table
        return tables


class Rows:
    """Values of tokens, in parts in the order in which they were added.

    Attributes:
        parts: pairs of tokens and their values (tokens, ...).
    """

    def __init__(self, parts: list[tuple[Tokens, np.ndarray]]):
        self.parts = parts

    def ordered(self) -> tuple[Tokens, np.ndarray]:
        """Returns all values in order of document and position, for any batches."""
        tokens = Tokens.joined([tokens for tokens, _ in self.parts])
        order = np.lexsort((tokens.position, tokens.document))
        return tokens[order], np.concatenate([values for _, values in self.parts])[order]


class TokenTable(State[Rows]):
    """A row per token, in the order of the corpus; use the smallest dtype that holds the values.

    If the rows of a batch are sub-tokens, a token's value has them as a first axis, `subtoken`.

    Args:
        dims: dimensions of a token's value.
        subtokens: whether a value has a first axis for sub-tokens even if a layer has none.
        dtype: dtype in which values are kept; float32 by default for floating-point values.
    """

    def __init__(self, *dims: str, subtokens: bool = False, dtype: type[np.generic] | None = None):
        super().__init__(*dims)
        self.subtokens, self.dtype = subtokens, dtype

    def of(self, value: Any) -> Rows:
        tokens, rows = value
        if isinstance(rows, torch.Tensor):
            rows = (rows.float() if rows.is_floating_point() else rows).cpu().numpy()
        return Rows([(tokens, np.array(rows, dtype=self.dtype))])

    def seen(self, batch: LayerBatch, value: Any) -> Rows:
        parts, rows = batch.layer.subtokens, self.of((batch.tokens, value)).parts[0][1]
        if len(rows) != len(batch.tokens) or self.subtokens:
            rows = rows.reshape(len(batch.tokens), parts, *rows.shape[1:])
        return Rows([(batch.tokens, rows)])

    def join(self, one: Rows, other: Rows) -> Rows:
        return Rows(one.parts + other.parts)

    def arrays(self, value: Rows) -> dict[str, np.ndarray]:
        tokens, values = value.ordered()
        return {"values": values} | {f"token:{name}": array for name, array in tokens.arrays().items()}

    def value(self, arrays: dict[str, np.ndarray]) -> Rows:
        prefix = "token:"
        tokens = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        return Rows([(Tokens(**tokens), arrays["values"])])

    def array(self, values: dict[int, Rows]) -> xr.DataArray:
        ordered = {layer: rows.ordered()[1] for layer, rows in values.items()}
        deeper = {len(self.dims) + 1: (), len(self.dims) + 2: ("subtoken",)}
        rank = next(iter(ordered.values())).ndim
        return stacked_layers(ordered, ("token", *deeper[rank], *self.dims))

    @staticmethod
    def tokens(state: Kept[Rows]) -> Tokens:
        """The tokens of a table, in order."""
        return next(iter(state.values.values())).ordered()[0]


def stacked_layers(values: dict[int, np.ndarray], dims: Sequence[str]) -> xr.DataArray:
    """Stacks the arrays of the layers, (layer, `dims`).

    Raises:
        NotFitting: their shapes differ.
    """
    layers = sorted(values)
    first = values[layers[0]].shape
    other = next((layer for layer in layers if values[layer].shape != first), None)
    if other is not None:
        raise NotFitting(
            f"Layers {layers[0]} and {other} differ: {first} and {values[other].shape} values of "
            f"({', '.join(dims)}); pass layers= of one shape."
        )
    labels = {d: [str(e) for e in range(n)] for d, n in zip(dims, first, strict=True) if d in EXPERTS}
    return xr.DataArray(np.stack([values[layer] for layer in layers]), {"layer": layers, **labels}, ("layer", *dims))
