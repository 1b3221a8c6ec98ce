"""A model whose layers are read from the published files when they run, and freed afterwards."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import nn
from transformers import PreTrainedModel

from moe_probe.errors import MissingWeight, NotFitting
from moe_probe.families.conversion import Converted
from moe_probe.families.modules import EXACT_ON_CPU, Device, building, model_class, on_cpu
from moe_probe.families.places import SPREAD
from moe_probe.forward.sites import decoder_layers
from moe_probe.model import MoEModel


def one_device(device: Device) -> torch.device:
    """Returns the device of streamed layers.

    Raises:
        NotFitting: the model is spread over several devices.
    """
    if isinstance(device, dict) or device in SPREAD:
        raise NotFitting(f"Layerwise execution runs on one device, not {device!r}; pass device='cpu' or 'cuda'.")
    return torch.device(device or "cpu")


class StreamedModule:
    """The torch module of a model, empty but for its small parts, and its layers one at a time.

    Args:
        model: opened from files.
        head: whether the head is loaded too.

    Attributes:
        module: on the meta device, with its buffers; embeddings, norms and head are loaded.
        decoder, layers: the part of it that is run, and its decoder layers.
    """

    def __init__(self, model: MoEModel, head: bool = False):
        self.name = model.name
        self.device, self.dtype = one_device(model.device), model.dtype
        self.module = empty_module(model)
        self.decoder, self.layers = decoder_layers(self.module)
        self.tensors = Converted(self.module, model.published)
        self.tensors.check()
        names = {id(child): name for name, child in self.module.named_modules()}
        self.prefixes = [names[id(layer)] + "." for layer in self.layers]
        inside = names[id(self.decoder)] + "." if names[id(self.decoder)] and not head else ""
        outer = [n for n in self._names("") if n.startswith(inside) and not n.startswith(tuple(self.prefixes))]
        self._place(self._read(outer))
        self.module.tie_weights()
        if self.device.type != "cpu":
            nn.Module.to(self.module, self.device)
        self._require_written(self.module if head else self.decoder, besides=tuple(self.prefixes))

    def _require_written(self, part: nn.Module, besides: tuple[str, ...] = ()) -> None:
        """Raises `MissingWeight` if a parameter or buffer that a pass uses has no values."""
        inside = {id(tensor) for tensor in (*part.parameters(), *part.buffers())}
        tensors = (*self.module.named_parameters(), *self.module.named_buffers())
        for name, tensor in tensors:
            if tensor.is_meta and id(tensor) in inside and not name.startswith(besides or "?"):
                raise MissingWeight(
                    f"{self.name}: the files hold no {name}, which the model computes with; "
                    "download the checkpoint again, or correct its configuration."
                )

    def _names(self, prefix: str) -> list[str]:
        return [name for name in self.module.state_dict() if name.startswith(prefix) and name in self.tensors]

    def _read(self, names: list[str]) -> dict[str, torch.Tensor]:
        exact = [*(self.module._keep_in_fp32_modules or ()), *(self.module._keep_in_fp32_modules_strict or ())]
        read = {}
        for name in names:
            tensor = self.tensors[name]
            keep = any(re.search(rf"(^|\.){pattern}(\.|$)", name) for pattern in exact)
            dtype = tensor.dtype if not tensor.dtype.is_floating_point else torch.float32 if keep else self.dtype
            read[name] = tensor.copy_to(torch.empty(tensor.shape, dtype=dtype, device=self.device))
        return read

    def _place(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, value in tensors.items():
            set_module_tensor_to_device(self.module, name, self.device, value=value, dtype=value.dtype)

    def _drop(self, names: list[str]) -> None:
        for name in names:
            set_module_tensor_to_device(self.module, name, "meta")

    def each_layer(self, order: Sequence[int]) -> Iterator[int]:
        """Indices of layers, each while its layer is loaded; the next one is read meanwhile."""
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
            names = [self._names(self.prefixes[index]) for index in order]
            ahead = pool.submit(self._read, names[0])
            for place, index in enumerate(order):
                self._place(ahead.result())
                self._require_written(self.layers[index])
                if place + 1 < len(order):
                    ahead = pool.submit(self._read, names[place + 1])
                yield index
                self._drop(names[place])


def empty_module(model: MoEModel) -> PreTrainedModel:
    """The model's module with its parameters on the meta device; buffers that no file holds are computed."""
    model.require_module()
    config = copy.deepcopy(model.config)
    if on_cpu(model.device):
        config._attn_implementation = EXACT_ON_CPU["attn_implementation"]
        config._experts_implementation = EXACT_ON_CPU["experts_implementation"]
    with building(), init_empty_weights(include_buffers=False):
        module = model_class(config)._from_config(config, dtype=model.dtype)
    return module.eval()
