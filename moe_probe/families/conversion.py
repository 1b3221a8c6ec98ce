"""Conversion of published tensors to module parameters by transformers' own rules, without reading values.

transformers renames, stacks and concatenates published tensors into the parameters of its modules (`fused experts`).
`Converted` applies the same rules to lazy tensors: each parameter is a lazy combination of published tensors, and a
slice of it (such as the up projection of one expert) reads only the bytes of that slice.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from functools import cached_property
from typing import Any, cast

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from moe_probe.checkpoint import LazyTensor
from moe_probe.errors import MissingWeight, WeightError, WrongShape, reason

# buffers of MiniMax's attention, which modules compute from their configuration and no published file holds
COMPUTED = re.compile(r"\.(slope_rate|(query|key|diagonal)_decay)$")

NUMBER = re.compile(r"\d+")


class Converted(Mapping[str, LazyTensor]):
    """The parameters of a module by name, as lazy tensors made from published tensors.

    Args:
        module: a `PreTrainedModel`, such as one on the meta device; only names, shapes and configuration are used.
        tensors: published key to lazy tensor.
    """

    def __init__(self, module: PreTrainedModel, tensors: Mapping[str, LazyTensor]):
        self.module, self.tensors = module, tensors
        mapping = get_model_conversion_mapping(module)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._converters = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        state = module.state_dict()
        self._shapes = {name: tensor.shape for name, tensor in state.items()}
        self._floating = {name for name, tensor in state.items() if tensor.is_floating_point()}
        self._sources: dict[str, list[tuple[str | None, str]]] = defaultdict(list)
        self._first: dict[str, str] = {}
        self._published = tensors
        prefix = module.base_model_prefix
        for key in sorted(tensors, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, prefix, self._shapes)
            if name not in self._shapes and key in self._shapes:
                name, pattern = key, None
            self._sources[name].append((pattern, key))
            targets = [name]
            if pattern is not None:
                first, *others = self._converters[pattern].target_patterns
                targets += [name.replace(first, other) for other in others]
            self._first.update((target, name) for target in targets if target in self._shapes)
        self.tensors = {**tensors, **self._turned()}

    def _turned(self) -> dict[str, LazyTensor]:
        """Returns the transposes of square stacks that are stored transposed, by published key.

        transformers transposes a stack whose shape differs from the expected one, which cannot tell for a square
        stack. The other stack of the same experts decides: only one of the two can be square.

        Raises:
            WrongShape: the experts have no other stack that is not square.
        """
        turned: dict[str, LazyTensor] = {}
        for name, operation in self._by_shape.items():
            key = self._sources[name][0][1]
            rows, columns = (self._published[key].shape[dim] for dim in (operation.dim0, operation.dim1))
            if rows == columns and self._is_turned(name):
                turned[key] = self._published[key].transpose(operation.dim0, operation.dim1)
        return turned

    @cached_property
    def _by_shape(self) -> dict[str, Transpose]:
        """Parameters that transformers transposes depending on their shape, with the operation."""
        transposes = {}
        for name, sources in self._sources.items():
            converter = self._converters.get(sources[0][0] or "")
            for operation in () if converter is None or name not in self._shapes else converter.operations:
                if isinstance(operation, Transpose) and operation.check_dims:
                    transposes[name] = operation
        return transposes

    def _is_turned(self, name: str) -> bool:
        place = name.rpartition(".")[0] + "."
        for other in self._by_shape:
            stored, wanted = self._published[self._sources[other][0][1]].shape, self._shapes[other]
            if other != name and other.startswith(place) and stored[-1] != stored[-2]:
                return stored != wanted
        raise WrongShape(
            f"{name!r} is square, and no other tensor of its experts says whether it is stored (in, out) or (out, in)."
        )

    def __getitem__(self, name: str) -> LazyTensor:
        if name not in self._first:
            raise MissingWeight(
                f"The checkpoint has no tensor for the parameter {name!r} of {type(self.module).__name__}; the "
                "download is incomplete or its configuration belongs to another model."
            )
        first = self._first[name]
        sources = self._sources[first]
        tensor = self.tensors[sources[0][1]] if sources[0][0] is None else self._made(name, first, sources)
        if tensor.shape != self._shapes[name]:
            raise WrongShape(
                f"{name!r}, read from {sources[0][1]!r}, has shape {tuple(tensor.shape)}, but the configuration calls "
                f"for {tuple(self._shapes[name])}."
            )
        if name in self._floating and not tensor.dtype.is_floating_point:
            raise WeightError(
                f"{name!r}, read from {sources[0][1]!r}, is stored as {tensor.dtype}, expected floating-point numbers; "
                "use the unquantized release."
            )
        return tensor

    def _made(self, name: str, first: str, sources: list[tuple[str | None, str]]) -> LazyTensor:
        """Returns the parameter that transformers' conversion makes from several tensors."""
        self._require_all_experts(first, sources)
        converter = deepcopy(self._converters[cast(str, sources[0][0])])
        for pattern, key in sources:
            converter.add_tensor(first, key, cast(str, pattern), cast(Any, self.tensors[key]))
        try:
            made = converter.convert(first, model=self.module, config=self.module.config)[name]
        except (ValueError, KeyError, IndexError, RuntimeError) as error:
            keys = [key for _, key in sources]
            raise WrongShape(
                f"{name!r} cannot be made of {keys[0]!r} and {len(keys) - 1} more tensors ({reason(error)}); "
                "one of them is missing or has another shape than its neighbors."
            ) from error
        return cast(LazyTensor, made[0] if isinstance(made, list) else made)

    def _require_all_experts(self, name: str, sources: list[tuple[str | None, str]]) -> None:
        """Raises an error if the numbers of stacked tensors have a gap, because only their order decides."""
        numbers: dict[str, list[int]] = defaultdict(list)
        for pattern, key in sources:
            if pattern is None:
                continue
            numbered = re.search(re.escape(pattern).replace(r"\*", r"(\d+)"), key)
            if "*" in pattern and numbered:  # a pattern for renamed keys may not match the published key
                numbers[pattern].append(int(numbered[1]))
        for pattern, present in numbers.items():
            missing = set(range(present[0], present[0] + len(present))).difference(present)
            if missing:
                raise MissingWeight(
                    f"{name!r} is stacked of {pattern.replace('*', 'N')!r}, but number {min(missing)} is missing among "
                    f"{present[0]} to {present[-1]}; the download is incomplete."
                )

    def check_kinds(self, prefixes: Collection[str]) -> None:
        """Compares the parameters whose names start with one of `prefixes` with the files, one parameter of each kind.

        Parameters whose tensors agree in names (except numbers), shapes and dtypes are of one kind.

        Raises:
            WeightError: a parameter is missing, has a wrong shape or is not floating-point; the message names it.
        """
        seen: set[tuple] = set()
        for name in self._shapes:
            if not name.startswith(tuple(prefixes)):
                continue
            sources = self._sources.get(self._first.get(name, ""), [])
            parts = Counter((pattern, self.tensors[key].shape, self.tensors[key].dtype) for pattern, key in sources)
            kind = (NUMBER.sub("N", name), self._shapes[name], frozenset(parts.items()))
            if kind not in seen:
                seen.add(kind)
                self[name]

    def check(self, unexpected: bool = False) -> None:
        """Compares keys and shapes with those of the module, without reading values.

        Args:
            unexpected: also raise an error for a key that belongs to no parameter of the module.

        Raises:
            WeightError: a parameter is missing or has a wrong shape, or a key is unexpected; the message names it.
        """
        optional = set(self.module.all_tied_weights_keys)
        ignored = self.module._keys_to_ignore_on_load_missing or ()
        for name in self._shapes:
            if name not in self._first and COMPUTED.search(name):
                continue
            if name in self._first or not (name in optional or any(re.search(pattern, name) for pattern in ignored)):
                self[name]
        if unexpected:
            ignored = self.module._keys_to_ignore_on_load_unexpected or ()
            for name, sources in self._sources.items():
                key = sources[0][1]
                if name not in self._shapes and not any(re.search(pattern, key) for pattern in ignored):
                    raise WeightError(
                        f"The checkpoint's tensor {key!r} belongs to no parameter of {type(self.module).__name__}; its "
                        "configuration is that of another model."
                    )

    def used(self) -> dict[str, LazyTensor]:
        """Returns the published tensors that go into parameters."""
        unused = self.unused()
        return {key: tensor for key, tensor in self.tensors.items() if key not in unused}

    def unused(self) -> dict[str, LazyTensor]:
        """Returns the published tensors that go into no parameter: multi-token prediction layers, stored buffers."""
        names = self._sources.keys() - self._shapes.keys() - self._first.keys()
        return {key: self.tensors[key] for name in names for _, key in self._sources[name]}

    def __contains__(self, name: object) -> bool:
        return name in self._first

    def __iter__(self) -> Iterator[str]:
        return iter(self._first)

    def __len__(self) -> int:
        return len(self._first)
