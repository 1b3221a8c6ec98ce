"""The weights of a live module as it computes with them: without wrappers, adapters merged, offloaded weights fetched.

Names are those of the module without wrappers: `mlp.gate.weight`, even if PEFT has wrapped `mlp.gate`. Values are read
on access, so that later changes of a parameter have an effect.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from moe_probe.checkpoint.identity import digest, hash_of_values
from moe_probe.checkpoint.lazy import Index, LazyTensor, Stored
from moe_probe.errors import MissingWeight, NotFitting, WrongType, reason

COMPUTED = {torch.float16, torch.bfloat16, torch.float32, torch.float64}  # other dtypes hold packed codes
SAMPLED = 64  # values of a tensor that its signature contains
PLAIN = {torch.Tensor, nn.Parameter, nn.Buffer}


def unwrapped_model(model: nn.Module) -> PreTrainedModel:
    """Returns the transformers model inside wrappers of torch.compile, DataParallel and PEFT.

    Raises:
        WrongType: there is no transformers model inside.
        NotFitting: an adapter changes the prompt, so the model without it computes something else.
    """
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif hasattr(inner, "peft_config") and hasattr(inner, "get_base_model"):
            _require_no_prompt(inner)
            inner = inner.get_base_model()
        else:
            raise WrongType(
                f"{type(inner).__name__} is not a transformers model; pass a PreTrainedModel, or one in torch.compile, "
                "DataParallel or PEFT."
            )
    return inner


def _require_no_prompt(model: Any) -> None:
    for name, config in model.peft_config.items():
        if getattr(config, "is_prompt_learning", False):
            raise NotFitting(
                f"The adapter {name!r} ({config.peft_type}) changes the prompt, not the weights, and is not followed; "
                "pass the model without it: model.get_base_model()."
            )


def core(module: nn.Module) -> nn.Module:
    """Returns the innermost module inside wrappers; the module itself if it is not wrapped."""
    inner: nn.Module | None = module
    while inner is not None:
        module = inner
        inside = (getattr(module, "_orig_mod", None), module._modules.get("base_layer"), _saved(module))
        inner = next((child for child in inside if isinstance(child, nn.Module)), None)
    return module


def _saved(module: nn.Module) -> nn.Module | None:
    original = module._modules.get("original_module")
    return None if original is None else _trained_copy(module) or original


def _trained_copy(module: Any) -> nn.Module | None:
    """Returns the active copy in PEFT's `modules_to_save`, which replaces the original module; None without one."""
    copies, active = getattr(module, "modules_to_save", None), getattr(module, "active_adapters", None)
    if not copies or not active or module.disable_adapters or active[0] not in copies:
        return None
    return copies[active[0]]


def children(module: nn.Module) -> dict[str, nn.Module]:
    """Returns the children of a module without its wrappers, by name; children may still be wrapped."""
    return {name: child for name, child in core(module).named_children() if name != "parametrizations"}


def parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yields path and module, without wrappers, of a module and of everything inside it."""
    yield prefix, core(module)
    for name, child in children(module).items():
        yield from parts(child, f"{prefix}.{name}" if prefix else name)


def part(module: nn.Module, path: str) -> nn.Module:
    """Returns the module at a path, without wrappers."""
    for name in path.split(".") if path else ():
        module = children(module)[name]
    return core(module)


def parameters(module: nn.Module, prefix: str = "", buffers: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields names and tensors of a module without wrappers; a parametrization's result counts as a parameter."""
    for path, owner in parts(module, prefix):
        place = path + "." if path else ""
        for name, value in owner._parameters.items():
            if value is not None:
                yield place + name, value
        for name in getattr(owner, "parametrizations", ()):
            yield place + name, getattr(owner, name)
        for name, value in owner._buffers.items() if buffers else ():
            if value is not None and name not in owner._non_persistent_buffers_set:
                yield place + name, value


def parameter(module: nn.Module, name: str) -> torch.Tensor:
    """Returns a stored parameter by name, without merging adapters or fetching offloaded values."""
    path, _, attribute = name.rpartition(".")
    return getattr(part(module, path), attribute)


class LiveTensors(Mapping[str, LazyTensor]):
    """The parameters and persistent buffers of a live module by name, as lazy tensors."""

    def __init__(self, module: nn.Module):
        self.module = module
        self._hashes: dict[str, tuple[tuple, list[int]]] = {}

    def __getitem__(self, name: str) -> LazyTensor:
        if name not in self:
            raise MissingWeight(f"{type(self.module).__name__} has no parameter {name!r}.")
        return Stored(LiveSource(self.module, name))

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(parameter(self.module, str(name)), torch.Tensor)
        except (KeyError, AttributeError):
            return False

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in parameters(self.module, buffers=True))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def identity(self) -> str:
        """Returns a hash of all values and of the adapters' state; only changed tensors are hashed again."""
        facts: list[Any] = [_adapter_state(self.module)]
        for name, value in self.module.state_dict(keep_vars=True).items():
            if isinstance(value, torch.Tensor):
                facts.append((name, list(value.shape), str(value.dtype), self._hash(name, value)))
        return digest(facts)

    def _hash(self, name: str, value: torch.Tensor) -> list[int]:
        stored = offloaded(self.module, name) if value.is_meta else value
        if stored is None or stored.is_meta:
            return []
        now = signature(stored)
        if self._hashes.get(name, (None, []))[0] != now:
            self._hashes[name] = now, hash_of_values(stored)
        return self._hashes[name][1]


def signature(value: torch.Tensor) -> tuple:
    """Returns facts that reveal most changes of a tensor: id, torch's version counter, dtype, shape, some values."""
    version = 0 if value.is_inference() else value._version
    flat = value.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // SAMPLED)].cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return id(value), version, value.dtype, tuple(value.shape), sample


def _adapter_state(module: nn.Module) -> list[list[str]]:
    names = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
    wrappers = ((name, child) for name, child in module.named_modules() if "base_layer" in child._modules)
    return [[name, *(repr(getattr(child, field, None)) for field in names)] for name, child in wrappers]


class LiveSource:
    """One parameter of a live module, as the module computes with it."""

    def __init__(self, module: nn.Module, name: str):
        self.module, self.name = module, name
        value = parameter(module, name)
        self._require_values(value)
        self.shape, self.dtype = value.shape, value.dtype

    def read(self, index: Index) -> torch.Tensor:
        return self._effective()[index]

    def _effective(self) -> torch.Tensor:
        value = parameter(self.module, self.name)
        self._require_values(value)
        wrapper, inner = outermost_wrapper(self.module, self.name)
        if value.is_meta:
            fetched = offloaded(self.module, self.name)
            if fetched is None or wrapper is not None:
                raise NotFitting(
                    f"{self.name} of this {type(self.module).__name__} is on the meta device, without values; load the "
                    "model with its weights, or pass the folder of its checkpoint."
                )
            return fetched
        return (value if wrapper is None else merged(wrapper, inner)).detach()

    def _require_values(self, value: torch.Tensor) -> None:
        path = self.name.rpartition(".")[0]
        if type(value) not in PLAIN or value.dtype not in COMPUTED:
            kind = type(value).__name__ if type(value) not in PLAIN else str(value.dtype).removeprefix("torch.")
            raise NotFitting(
                f"{self.name} is packed ({kind} in a {type(part(self.module, path)).__name__}), so its values cannot "
                "be read; load the model unquantized, or call its dequantize() first."
            )


def outermost_wrapper(module: nn.Module, name: str) -> tuple[nn.Module | None, str]:
    """Returns the outermost adapter layer around a parameter (None without one), and the parameter's name inside it."""
    steps = name.split(".")
    for number, step in enumerate(steps[:-1]):
        module = children(module)[step]
        if isinstance(module._modules.get("base_layer"), nn.Module):
            return module, ".".join(steps[number + 1 :])
    return None, name


def merged(wrapper: nn.Module, name: str) -> torch.Tensor:
    """Returns a parameter with its adapters merged into it, by the adapters' own code and on a copy.

    Raises:
        NotFitting: the adapter cannot be merged.
    """
    if getattr(wrapper, "disable_adapters", False):
        return parameter(wrapper, name)
    twin: Any = copy.deepcopy(wrapper)
    layer = twin
    try:
        while isinstance(layer._modules.get("base_layer"), nn.Module):
            layer.merge()
            layer = layer._modules["base_layer"]
    except Exception as error:  # whatever an adapter's code raises
        raise NotFitting(
            f"The adapter {type(wrapper).__name__} on {name} cannot be merged ({reason(error)}); merge it yourself, or "
            "pass the model without it."
        ) from error
    return parameter(twin, name)


def offloaded(module: nn.Module, name: str) -> torch.Tensor | None:
    """Returns the values that accelerate keeps for a parameter on the CPU or on disk; None if it keeps none."""
    path = name.rpartition(".")[0]
    places = [""] + [path[:end] for end in range(1, len(path) + 1) if end == len(path) or path[end] == "."]
    for place in reversed(places):
        owner = module.get_submodule(place)
        relative = name[len(place) + 1 :] if place else name
        for hook in _hooks(getattr(owner, "_hf_hook", None)):
            with suppress(KeyError):
                return (getattr(hook, "weights_map", None) or {})[relative]
    return None


def _hooks(hook: Any) -> Iterator[Any]:
    if hook is not None:
        yield hook
        yield from getattr(hook, "hooks", ())
