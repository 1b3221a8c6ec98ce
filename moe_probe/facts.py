"""A description of a model in words and numbers: its layers, experts and parameters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from rich.filesize import decimal

if TYPE_CHECKING:
    from moe_probe.checkpoint import Checkpoint, LazyTensor
    from moe_probe.families import Layer
    from moe_probe.families.counting import Counts

BUFFERS = ("inv_freq", "masked_bias")  # endings of stored keys


class Handle(Protocol):
    """The interface of a model that this module needs."""

    name: str
    family: str
    num_layers: int
    hidden_size: int

    @property
    def checkpoint(self) -> Checkpoint | None: ...

    @cached_property
    def moe_layers(self) -> tuple[int, ...]: ...

    def layer(self, index: int) -> Layer: ...

    @cached_property
    def counts(self) -> Counts: ...

    @property
    def published(self) -> Mapping[str, LazyTensor]: ...

    @property
    def unused(self) -> Mapping[str, LazyTensor]: ...


def total_parameters(model: Handle) -> int:
    """Number of parameters of the language model that runs, without towers and layers that the module omits."""
    return model.counts.language


def parameter_counts(model: Handle) -> tuple[int, int]:
    """Numbers of parameters in the routed experts' matrices, and of all others (MH-MoE, arXiv 2404.15045, table 11)."""
    layers = map(model.layer, model.moe_layers)
    inside = sum(
        len(layer.weighted_experts) * len(layer.projections) * layer.intermediate_size * layer.expert_hidden_size
        for layer in layers
    )
    return inside, total_parameters(model) - inside


def facts(model: Handle) -> list[tuple[str, str]]:
    """Family, layers, experts, parameters and size on disk of a model, as pairs of a name and a text."""
    lines = [("family", model.family), ("layers", f"{model.num_layers}, hidden size {model.hidden_size}")]
    if model.moe_layers:
        lines += _of_experts(model)
    layers = [model.layer(index) for index in model.moe_layers]
    at_most = "at most " if any(len(layer.weighted_experts) < layer.num_experts for layer in layers) else ""
    total, active = total_parameters(model), active_parameters(model)
    lines.append(("parameters", f"{total:,} in all, {at_most}{active:,} active per token"))
    besides = _besides(model)
    if besides:
        lines.append(("also in the module" if model.checkpoint is None else "also on disk", besides))
    return lines + (_on_disk(model.checkpoint) if model.checkpoint is not None else [])


def numbers(model: Handle) -> dict[str, Any]:
    """The content of `facts` as strings, numbers and lists, for programs.

    Returns:
        Strings, whole numbers and lists: `name`, `family`, `layers`, `hidden_size`, `parameters`, `active_parameters`
        (an upper bound if experts without matrices can be chosen), `unused_parameters`, `bytes` (None for a live
        model), `stored_as`, and for every MoE layer its `layer`, `experts`, `kinds`, `shared_experts`,
        `intermediate_size`, `top_k` and `subtokens`.
    """
    checkpoint = model.checkpoint
    return {
        "name": model.name,
        "family": model.family,
        "layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "parameters": total_parameters(model),
        "active_parameters": active_parameters(model),
        "unused_parameters": sum(tensor.numel() for key, tensor in model.unused.items() if not key.endswith(BUFFERS)),
        "bytes": None if checkpoint is None else checkpoint.nbytes,
        "stored_as": None if checkpoint is None else stored_as(checkpoint),
        "moe_layers": [
            {
                "layer": layer.index,
                "experts": layer.num_experts,
                "kinds": list(layer.expert_kinds),
                "shared_experts": layer.num_shared,
                "intermediate_size": layer.intermediate_size,
                "top_k": layer.top_k,
                "subtokens": layer.subtokens,
            }
            for layer in map(model.layer, model.moe_layers)
        ],
    }


def active_parameters(model: Handle) -> int:
    """Number of parameters that a token uses if all of its chosen experts have matrices."""
    active = total_parameters(model)
    for layer in map(model.layer, model.moe_layers):
        expert = len(layer.projections) * layer.intermediate_size * layer.expert_hidden_size
        active -= expert * max(0, layer.expert_kinds.count("ffn") - layer.top_k)
    return active


def _of_experts(model: Handle) -> list[tuple[str, str]]:
    first = model.layer(model.moe_layers[0])
    kinds = ", ".join(f"{first.expert_kinds.count(k)} {k}" for k in dict.fromkeys(first.expert_kinds))
    shared = f" + {first.num_shared} shared" if first.num_shared else ""
    lines = [
        ("MoE layers", f"{len(model.moe_layers)}: {ranges(model.moe_layers)}"),
        ("experts", f"{kinds}{shared}; {first.intermediate_size} neurons each"),
        ("top-k", f"{first.top_k} per {'sub-token' if first.subtokens > 1 else 'token'}"),
    ]
    without = [kind for kind in dict.fromkeys(first.expert_kinds) if kind != "ffn"]
    if without:
        lines.append(("", f"{', '.join(without)} have no matrices: static analyses of experts skip them"))
    return lines


def _besides(model: Handle) -> str:
    """Parameters outside of the language model that runs, as the end of a sentence."""
    parts = [f"{number:,} in {name}" for name, number in sorted(model.counts.apart.items())]
    unused = sum(tensor.numel() for key, tensor in model.unused.items() if not key.endswith(BUFFERS))
    return ", ".join([*parts, f"{unused:,} that the module does not use"] if unused else parts)


def _on_disk(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    size = f"{decimal(checkpoint.nbytes)} in {len(checkpoint.files)} files"
    return [("stored as", stored_as(checkpoint)), ("on disk", size)]


def stored_as(tensors: Mapping[str, LazyTensor]) -> str:
    """The storage forms of tensors, with the bits per weight of packed ones."""
    bits: Counter[str] = Counter()
    values: Counter[str] = Counter()
    packed: set[str] = set()
    for key, tensor in tensors.items():
        if not key.endswith(BUFFERS):
            form, stored, is_packed = form_of(tensor)
            packed.update([form] if is_packed else [])
            bits[form] += stored
            values[form] += tensor.numel()
    words = (f"{form}, {bits[form] / values[form]:.3g} bits per weight" if form in packed else form for form in values)
    return ("; " if packed else ", ").join(sorted(words))


def form_of(tensor: LazyTensor) -> tuple[str, int, bool]:
    """The storage form of a tensor in words, its number of stored bits, and whether it is packed."""
    inner: Any = tensor
    while hasattr(inner, "base") or hasattr(getattr(inner, "source", None), "base"):
        inner = inner.base if hasattr(inner, "base") else inner.source.base
    source = getattr(inner, "source", None)
    form = getattr(source, "form", None)
    if source is None or form is None:
        return tensor.kind, 8 * tensor.nbytes, False
    stored = sum(part.nbytes for part in source.parts)
    return form, 8 * stored * tensor.numel() // math.prod(source.shape), True


def ranges(numbers: Sequence[int]) -> str:
    """Returns sorted numbers as ranges: `(1, 2, 3, 7)` becomes `1-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
