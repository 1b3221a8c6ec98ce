"""Every other MoE of transformers, derived from the model itself.

The model is built on the meta device (no memory, no weights), its MoE blocks are found by structure, and the published
keys are traced to its parameters by transformers' own conversion declarations. A live model is read the same way.

A router with more classes than experts has experts without weights (LongCat's copies, Zaya's skip class), or scores of
its shared experts (Inkling), which are no gate embeddings. Where the router is a small network instead of one matrix
(Zaya), `router_weight` is its last layer, (E, width of that layer).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_probe.checkpoint import InMemory, LazyTensor, Stored
from moe_probe.errors import CheckpointError, FamilyError
from moe_probe.families.architecture import SHARED, Architecture, Layer
from moe_probe.families.conversion import Converted
from moe_probe.families.experts_layout import FfnLayout, experts_layout, ffn_layout

ROUTERS = ("gate", "router")
SHARED_BLOCKS = ("shared_experts", "shared_expert", "shared_mlp")
TOP_K = ("num_experts_per_tok", "top_k", "moe_topk", "moe_top_k", "num_experts_per_token", "top_k_experts")
NUM_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
# what router classes beyond the experts with weights are, by the block's class name
EXTRA_CLASSES = {"LongcatFlashMoE": "copy", "ZayaSparseMoeBlock": "zero", "InklingMoE": None}


def make_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration object of a published `config.json`; remote code that it names is not followed."""
    fields = {key: value for key, value in config.items() if key != "auto_map"}
    try:
        return CONFIG_MAPPING[config["model_type"]].from_dict(fields)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"config.json does not describe a {config['model_type']} model ({error}).") from error


def meta_module(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device: names and shapes only."""
    for name in config.architectures or []:
        model_class = getattr(transformers, name, None)
        if model_class is not None:
            break
    else:
        model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if model_class is None:
        raise FamilyError(f"transformers {transformers.__version__} has no language model for {config.model_type!r}.")
    with torch.device("meta"):
        return model_class._from_config(config)


class TransformersMoE:
    """The family of all models that transformers knows."""

    name = "transformers"

    @property
    def model_types(self) -> tuple[str, ...]:
        return tuple(CONFIG_MAPPING.keys())

    def open(self, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> Architecture:
        """The architecture of a published checkpoint."""
        module = meta_module(make_config(config))
        return ModuleArchitecture(module, Converted(module, tensors))


FAMILY = TransformersMoE()


def live_architecture(module: PreTrainedModel) -> Architecture:
    """The architecture of a live model; weights are its parameters."""
    return ModuleArchitecture(module, {k: Stored(InMemory(v)) for k, v in module.state_dict().items()})


def _first(objects: tuple[Any, ...], names: tuple[str, ...]) -> int | None:
    values = (getattr(source, name, None) for source in objects for name in names)
    return next((value for value in values if isinstance(value, int)), None)


class ModuleArchitecture(Architecture):
    """A model's structure, read off its modules."""

    def __init__(self, module: PreTrainedModel, tensors: Mapping[str, LazyTensor]):
        self.module, self.tensors = module, tensors
        self.config = module.config.get_text_config(decoder=True)
        self.hidden_size = self.config.hidden_size

    @cached_property
    def num_layers(self) -> int:
        """Length of the list of decoder layers (LongCat's `num_hidden_layers` counts its attention layers)."""
        for path in self._blocks.values():
            return len(self.module.get_submodule(re.split(r"\.\d+(?:\.|$)", path)[0]))
        return self.config.num_hidden_layers

    @cached_property
    def _blocks(self) -> dict[int, str]:
        """Path of the MoE block of each layer that has one."""
        blocks: dict[int, str] = {}
        for path, module in self.module.named_modules():
            number = re.search(r"\.(\d+)(?:\.|$)", path)
            if number and int(number[1]) not in blocks and experts_layout(module) is not None:
                blocks[int(number[1])] = path
        return blocks

    def _dense(self, index: int) -> tuple[str, FfnLayout] | None:
        """Path and layout of the FFN of a dense layer."""
        for path, module in self.module.named_modules():
            number = re.search(r"\.(\d+)\.", path)
            if number and int(number[1]) == index and (layout := ffn_layout(module)) is not None:
                return path, layout
        return None

    def _shared(self, path: str) -> tuple[str, FfnLayout] | None:
        """Path and layout of the shared block that belongs to a MoE block."""
        parent = path.rpartition(".")[0]
        for place in (path, parent):
            for name, child in self.module.get_submodule(place).named_children():
                if name in SHARED_BLOCKS and (layout := ffn_layout(child)) is not None:
                    return f"{place}.{name}", layout
        return None

    def _router_parameter(self, path: str, experts: int) -> str:
        """The router's last matrix with at least one row per expert."""
        block = self.module.get_submodule(path)
        for name in ROUTERS:
            router = getattr(block, name, None)
            if isinstance(router, nn.Module):
                matrices = [k for k, p in router.named_parameters() if p.ndim == 2 and p.shape[0] >= experts]
                direct = [k for k in matrices if router.get_parameter(k).shape == (experts, self.hidden_size)]
                if matrices:
                    return f"{path}.{name}.{(direct or matrices)[-1]}"
        raise FamilyError(f"No router with one row per expert was found beside the experts of {path!r}.")

    def layer(self, index: int) -> Layer:
        if index not in self._blocks:
            dense = self._dense(index)
            neurons = 0
            if dense is not None:
                names = dict(self.module.get_submodule(dense[0]).named_parameters())
                down = next(p for name, p in names.items() if name.split(".")[0] == dense[1].down)
                neurons = down.shape[1]
            return Layer(index, self.hidden_size, neurons, projections=dense[1].projections if dense else ())
        path = self._blocks[index]
        block = self.module.get_submodule(path)
        layout = experts_layout(block)
        experts, width, neurons = layout.size(block)
        classes = self.module.get_parameter(self._router_parameter(path, experts)).shape[0]
        kinds = ("ffn",) * experts
        extra = EXTRA_CLASSES.get(type(block).__name__)
        if classes > experts and extra is not None:
            kinds += (extra,) * (classes - experts)
        router = next((getattr(block, name) for name in ROUTERS if hasattr(block, name)), None)
        shared = self._shared(path)
        return Layer(
            index=index,
            hidden_size=width,
            intermediate_size=neurons,
            num_experts=len(kinds),
            top_k=_first((router, block, self.config), TOP_K) or 1,
            expert_kinds=kinds,
            num_shared=0 if shared is None else _first((self.config,), NUM_SHARED) or 1,
            projections=layout.projections,
        )

    def _router(self, layer: Layer) -> tuple[str, LazyTensor]:
        path = self._blocks[layer.index]
        name = self._router_parameter(path, layer.expert_kinds.count("ffn"))
        return name, self.tensors[name][: layer.num_experts]

    def _expert(self, layer: Layer, label: str, projection: str) -> tuple[str, LazyTensor]:
        if not layer.is_moe:
            path, ffn = self._dense(layer.index)
        elif label == SHARED:
            path, ffn = self._shared(self._blocks[layer.index])
        else:
            path = self._blocks[layer.index]
            layout = experts_layout(self.module.get_submodule(path))
            return path, layout.matrix(self.tensors, path + ".", int(label), projection)
        return path, ffn.matrix(self.tensors, path + ".", projection)
