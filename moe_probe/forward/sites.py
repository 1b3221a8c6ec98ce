"""Finds the MoE layers of a module by a protocol, and checks them.

The protocol is that of transformers 5: an experts module called with (hidden_states, top_k_index, top_k_weights), and
next to it a router whose outputs contain the raw router logits.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from moe_probe.errors import FamilyError, UnknownModel
from moe_probe.families import Layer
from moe_probe.families.decoder import decoder_path, layers_path
from moe_probe.families.live import part
from moe_probe.families.transformers_moe import ROUTERS, ModuleArchitecture

# blocks that stand outside the protocol, and why none of their experts' outputs can be weighted after the fact
OUTSIDE = {
    "Llama4TextMoe": "it multiplies the experts' inputs, not their outputs, by the router's scores",
    "JetMoeMoE": "its experts are not a module: rows are sorted by expert inside the block",
}
# experts that cannot be called with one choice per token: they get a second one, of weight 0, to the last expert
TWO_CHOICES = {"LongcatFlashExperts"}
# experts that are called with the first one, and weight 0, where the last one was chosen, which gives nothing
SKIPPED_AS_FIRST = {"ZayaExperts"}


@dataclass(frozen=True)
class Site:
    """One MoE layer of a live module: its description, block, router and experts.

    Attributes:
        shared: the shared experts in the block, whose output is part of the block's.
        shared_beside: shared experts outside the block in the decoder layer (Granite).
        beside: all modules of the decoder layer outside the block, such as the norm before it.
    """

    layer: Layer
    block: nn.Module
    router: nn.Module
    experts: nn.Module
    shared: nn.Module | None
    shared_beside: nn.Module | None = None
    beside: tuple[nn.Module, ...] = ()

    def all_outputs(self, rows: torch.Tensor) -> torch.Tensor:
        """Every expert's unweighted output on every row, by the module's own code: (n, w) to (E, n, w)."""
        outputs = rows.new_empty(self.layer.num_experts, *rows.shape)
        for expert, output in enumerate(outputs):
            output.copy_(self.output(rows, expert))
        return outputs

    def all_outputs_and_activations(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`all_outputs`, and act(gate projection) of the experts with weights, (E_ffn, n, ff).

        Raises:
            FamilyError: the experts module has no activation module to watch.
        """
        activation = getattr(self.experts, "act_fn", None)
        if not isinstance(activation, nn.Module):
            raise FamilyError(f"{type(self.experts).__name__} has no activation module, so its states cannot be seen.")
        seen: list[torch.Tensor] = []
        config = getattr(self.experts, "config", None)
        thread = threading.get_ident()

        def keep(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            if threading.get_ident() == thread:
                seen.append(output)

        handle = activation.register_forward_hook(keep)
        usual = getattr(config, "_experts_implementation", None)
        try:
            if config is not None and usual is not None:
                config._experts_implementation = "eager"  # other kernels may reorder rows
            outputs = self.all_outputs(rows)
        finally:
            handle.remove()
            if config is not None and usual is not None:
                config._experts_implementation = usual
        return outputs, torch.stack(seen)

    def selected_outputs(self, rows: torch.Tensor, top_k_index: torch.Tensor) -> torch.Tensor:
        """The chosen experts' unweighted outputs: (n, w) and (n, k) to (n, k, w)."""
        top_k = top_k_index.shape[1]
        return self.apply(rows.repeat_interleave(top_k, 0), top_k_index.reshape(-1, 1)).reshape(len(rows), top_k, -1)

    def output(self, rows: torch.Tensor, expert: int) -> torch.Tensor:
        """One expert's unweighted output on every row, (n, w): all rows go to it, with weight 1."""
        return self.apply(rows, torch.full((len(rows), 1), expert, dtype=torch.long, device=rows.device))

    def chosen_experts(self, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The experts that were chosen, (n, k), of what the experts module is called with."""
        if type(self.experts).__name__ in SKIPPED_AS_FIRST:
            return index.masked_fill((index == 0) & (weights == 0), self.layer.num_experts - 1)
        return index

    def callable_with(self, index: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choices and weights, (n, k) each, as the experts module can be called with."""
        name, last = type(self.experts).__name__, self.layer.num_experts - 1
        if name in TWO_CHOICES and index.shape[1] == 1:
            index = torch.cat([index, torch.full_like(index, last)], dim=1)
            weights = torch.cat([weights, torch.zeros_like(weights)], dim=1)
        if name in SKIPPED_AS_FIRST:
            weights, index = weights.masked_fill(index == last, 0), index.masked_fill(index == last, 0)
        return index, weights

    def apply(
        self, rows: torch.Tensor, index: torch.Tensor, parameters: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """One expert's unweighted output on each row: (m, w) and (m, 1) to (m, w).

        `parameters` stand in for those of the experts module of the same names.
        """
        index, weights = self.callable_with(index, torch.ones_like(index, dtype=rows.dtype))
        with substituted(self.experts, parameters or {}):
            return self.experts.forward(rows, index, weights).reshape(rows.shape)


@contextmanager
def substituted(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within, tensors stand in for the parameters of the same names of a module and of its parts."""
    originals = {name: module.get_parameter(name) for name in parameters}

    def register(values: Mapping[str, nn.Parameter]) -> None:
        for name, value in values.items():
            path, _, leaf = name.rpartition(".")
            module.get_submodule(path)._parameters[leaf] = value

    try:
        register({name: nn.Parameter(value, requires_grad=False) for name, value in parameters.items()})
        yield
    finally:
        register(originals)


def find_sites(module: PreTrainedModel, layers: Sequence[int] | None = None) -> dict[int, Site]:
    """The MoE layers of a module (on any device, meta too), by index.

    Raises:
        FamilyError: a block is outside the protocol.
    """
    architecture = ModuleArchitecture(module, {}, {})
    sites = {}
    for index, path in architecture.blocks.items():
        if layers is not None and index not in layers:
            continue
        block = module.get_submodule(path)
        name = type(block).__name__
        router = next((getattr(block, n) for n in ROUTERS if isinstance(getattr(block, n, None), nn.Module)), None)
        experts = getattr(block, "experts", None)
        if name in OUTSIDE or router is None or experts is None:
            reason = OUTSIDE.get(name, "it has no router beside its experts")
            raise FamilyError(f"{module.config.model_type}: the MoE block {name} cannot be watched: {reason}.")
        shared_path = architecture.shared_path(path)
        shared = None if shared_path is None else module.get_submodule(shared_path)
        inside = shared_path is not None and shared_path.startswith(path + ".")
        sites[index] = Site(
            layer=architecture.layer(index),
            block=block,
            router=router,
            experts=experts,
            shared=shared if inside else None,
            shared_beside=None if inside else shared,
            beside=tuple(child for child in part(module, path.rpartition(".")[0]).children() if child is not block),
        )
    return sites


def decoder_layers(module: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """The decoder (without the head) and its list of layers.

    Raises:
        UnknownModel: there is none.
    """
    layers = part(module, layers_path(module))
    if not isinstance(layers, nn.ModuleList):
        raise UnknownModel(f"{module.config.model_type}: the decoder layers are a {type(layers).__name__}, not a list.")
    return part(module, decoder_path(module)), layers


def expert_call(args: tuple, kwargs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows (n, w), top_k_index (n, k), top_k_weights (n, k)) of a call of an experts module.

    Argument names differ between families (gpt_oss: router_indices, routing_weights); the order does not.

    Raises:
        FamilyError: the call is another one.
    """
    values = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    if len(values) != 3 or values[1].is_floating_point() or values[1].shape != values[2].shape:
        shapes = [tuple(value.shape) for value in values]
        raise FamilyError(
            f"An experts module was called with {shapes}, not with (hidden states, top-k index, weights)."
        )
    rows, index, weights = values
    return rows.reshape(-1, rows.shape[-1]), index.reshape(-1, index.shape[-1]), weights.reshape(-1, weights.shape[-1])


def called_with(args: tuple, kwargs: dict[str, Any], **changed: torch.Tensor) -> tuple[tuple, dict[str, Any]]:
    """Arguments of an experts module with others in place of its `rows`, `index` or `weights`, in their dtypes."""
    names = [*range(len(args)), *kwargs]
    values = dict(zip(names, (*args, *kwargs.values()), strict=True))
    tensors = [name for name, value in values.items() if isinstance(value, torch.Tensor)]
    for name, role in zip(tensors, ("rows", "index", "weights"), strict=True):
        if role in changed:
            value, before = changed[role], values[name]
            values[name] = value.to(before) if before.ndim == 2 else value.to(before).reshape(*before.shape[:-1], -1)
    return tuple(values[at] for at in range(len(args))), {name: values[name] for name in kwargs}


def raw_logits(output: Any, experts: int, rows: int) -> torch.Tensor:
    """The raw router logits (rows, experts) in a router's output: its first float tensor with a column per expert.

    Raises:
        FamilyError: there is none.
    """
    for value in _tensors(output):
        if value.is_floating_point() and value.shape[-1] == experts and value.numel() == rows * experts:
            return value.reshape(rows, experts)
    shapes = [tuple(value.shape) for value in _tensors(output)]
    raise FamilyError(f"A router returned {shapes}; no tensor of them has a row per token and {experts} columns.")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
