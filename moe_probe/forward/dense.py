"""The dense baseline of a MoE: outputs of its FFNs on the same token ids."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.utils import set_module_tensor_to_device
from torch import nn
from transformers import PreTrainedModel

from moe_probe.errors import InputError
from moe_probe.families.conversion import Converted
from moe_probe.families.transformers_moe import ModuleArchitecture
from moe_probe.forward.steps import OWNER
from moe_probe.forward.streaming import empty_module
from moe_probe.model import MoEModel


class DenseFFN:
    """Remembers the last call of any of a dense model's FFNs in its owner's forward passes.

    Attributes:
        output: (rows, d).
        activation: act(gate projection), (rows, ff); None where the FFN has no activation module.
    """

    output: torch.Tensor

    def __init__(self, owner: object):
        self.owner = owner
        self.activation: torch.Tensor | None = None

    @contextmanager
    def watching(self, module: PreTrainedModel, layers: Sequence[int]) -> Iterator[None]:
        """A context in which the FFNs of these layers are watched.

        Raises:
            InputError: the model has no dense FFN in one of them.
        """
        architecture = ModuleArchitecture(module, {}, {})
        handles = []
        try:
            for index in layers:
                ffn = module.get_submodule(_path(architecture, index))
                handles.append(ffn.register_forward_hook(self._on_ffn))
                activation = getattr(ffn, "act_fn", None)
                if isinstance(activation, torch.nn.Module):
                    handles.append(activation.register_forward_hook(self._on_activation))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_ffn(self, module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
        if OWNER.get() is self.owner:
            self.output = output.reshape(-1, output.shape[-1])

    def _on_activation(self, module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
        if OWNER.get() is self.owner:
            self.activation = output.reshape(-1, output.shape[-1])


def _path(architecture: ModuleArchitecture, layer: int) -> str:
    path = architecture.dense_path(layer)
    if path is None:
        raise InputError(f"The baseline has no dense FFN in layer {layer}; pass a model with as many layers.")
    return path


def dense_ffn(model: MoEModel, layer: int) -> nn.Module:
    """Returns a copy of the FFN of a dense layer with its weights, without reading others if the model is not loaded.

    Raises:
        InputError: the layer has no dense FFN.
    """
    if model.checkpoint is None or "module" in vars(model):  # whose weights may have been changed
        return copy.deepcopy(model.module.get_submodule(_path(ModuleArchitecture(model.module, {}, {}), layer)))
    module = empty_module(model)
    path = _path(ModuleArchitecture(module, {}, {}), layer)
    tensors, ffn = Converted(module, model.published), module.get_submodule(path)
    for name, parameter in list(ffn.named_parameters()):
        value = tensors[f"{path}.{name}"].copy_to(torch.empty(parameter.shape, dtype=model.dtype))
        set_module_tensor_to_device(ffn, name, "cpu", value=value)
    return ffn
