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

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_probe.checkpoint import Checkpoint, InMemory, LazyTensor, Stored
from moe_probe.errors import FamilyError
from moe_probe.families.architecture import SHARED, Architecture, Layer
from moe_probe.families.conversion import Converted
from moe_probe.families.experts_layout import FfnLayout, experts_layout, ffn_layout
from moe_probe.families.modules import make_config, meta_module

ROUTERS = ("gate", "router")
SHARED_BLOCKS = ("shared_experts", "shared_expert", "shared_mlp")
TOP_K = ("num_experts_per_tok", "top_k", "moe_topk", "moe_top_k", "num_experts_per_token", "top_k_experts")
NUM_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
# what router classes beyond the experts with weights are, by the block's class name
EXTRA_CLASSES = {"LongcatFlashMoE": "copy", "ZayaSparseMoeBlock": "zero", "InklingMoE": None}


class TransformersMoE:
    """The family of all models that transformers knows."""

    name = "transformers"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether transformers has a configuration class for the model type."""
        return checkpoint.config.get("model_type") in CONFIG_MAPPING

    def open(self, checkpoint: Checkpoint) -> ModuleArchitecture:
        """The architecture of a published checkpoint."""
        return published_architecture(make_config(checkpoint.config), checkpoint)


FAMILY = TransformersMoE()


def published_architecture(config: PreTrainedConfig, tensors: Mapping[str, LazyTensor]) -> ModuleArchitecture:
    """The architecture of the module that `config` describes; weights are the published tensors, converted."""
    module = meta_module(config)
    return ModuleArchitecture(module, Converted(module, tensors), tensors)


def live_architecture(module: PreTrainedModel) -> ModuleArchitecture:
    """The architecture of a live model; weights are its parameters."""
    parameters = {key: Stored(InMemory(value)) for key, value in module.state_dict().items()}
    return ModuleArchitecture(module, parameters, parameters)


def _first(objects: tuple[Any, ...], names: tuple[str, ...]) -> int | None:
    values = (getattr(source, name, None) for source in objects for name in names)
    return next((value for value in values if isinstance(value, int)), None)


class ModuleArchitecture(Architecture):
    """A model's structure, read off its modules."""

    def __init__(self, module: PreTrainedModel, tensors: Mapping[str, LazyTensor], published: Mapping[str, LazyTensor]):
        super().__init__(module.config, published)
        self.module, self.tensors = module, tensors
        self.text_config = module.config.get_text_config(decoder=True)
        self.hidden_size = self.text_config.hidden_size

    @cached_property
    def num_layers(self) -> int:
        """Length of the list of decoder layers (LongCat's `num_hidden_layers` counts its attention layers)."""
        for path in self.blocks.values():
            return len(self.module.get_submodule(re.split(r"\.\d+(?:\.|$)", path)[0]))
        return self.text_config.num_hidden_layers

    @cached_property
    def blocks(self) -> dict[int, str]:
        """Path of the MoE block of each layer that has one."""
        blocks: dict[int, str] = {}
        for path, module in self.module.named_modules():
            number = re.search(r"\.(\d+)(?:\.|$)", path)
            if number and int(number[1]) not in blocks and experts_layout(module) is not None:
                blocks[int(number[1])] = path
        return blocks

    def dense_path(self, index: int) -> str | None:
        """Path of the FFN of a dense layer."""
        for path, module in self.module.named_modules():
            number = re.search(r"\.(\d+)\.", path)
            if number and int(number[1]) == index and ffn_layout(module) is not None:
                return path
        return None

    def _dense(self, index: int) -> tuple[str, FfnLayout] | None:
        path = self.dense_path(index)
        return None if path is None else (path, ffn_layout(self.module.get_submodule(path)))

    def shared_path(self, path: str) -> str | None:
        """Path of the shared block that belongs to a MoE block."""
        parent = path.rpartition(".")[0]
        for place in (path, parent):
            for name, child in self.module.get_submodule(place).named_children():
                if name in SHARED_BLOCKS and ffn_layout(child) is not None:
                    return f"{place}.{name}"
        return None

    def _router_parameter(self, path: str, experts: int) -> str:
        """The router's last matrix with at least one row per expert."""
        block = self.module.get_submodule(path)
        for name in ROUTERS:
            router = getattr(block, name, None)
            if hasattr(router, "gate_embedding"):
                return f"{path}.{name}.{router.gate_embedding}"
            if isinstance(router, nn.Module):
                matrices = [k for k, p in router.named_parameters() if p.ndim == 2 and p.shape[0] >= experts]
                direct = [k for k in matrices if router.get_parameter(k).shape == (experts, self.hidden_size)]
                if matrices:
                    return f"{path}.{name}.{(direct or matrices)[-1]}"
        raise FamilyError(f"No router with one row per expert was found beside the experts of {path!r}.")

    def layer(self, index: int) -> Layer:
        if index not in self.blocks:
            dense = self._dense(index)
            neurons = 0
            if dense is not None:
                names = dict(self.module.get_submodule(dense[0]).named_parameters())
                down = next(p for name, p in names.items() if name.split(".")[0] == dense[1].down)
                neurons = down.shape[1]
            return Layer(index, self.hidden_size, neurons, projections=dense[1].projections if dense else ())
        path = self.blocks[index]
        block = self.module.get_submodule(path)
        layout = experts_layout(block)
        experts, width, neurons = layout.size(block)
        classes = self.module.get_parameter(self._router_parameter(path, experts)).shape[0]
        kinds = getattr(getattr(block, "experts", None), "expert_kinds", ("ffn",) * experts)
        subtokens = getattr(block, "subtokens", 1)
        extra = EXTRA_CLASSES.get(type(block).__name__)
        if classes > experts and extra is not None:
            kinds += (extra,) * (classes - experts)
        router = next((getattr(block, name) for name in ROUTERS if hasattr(block, name)), None)
        shared = self.shared_path(path)
        return Layer(
            index=index,
            hidden_size=width * subtokens,
            intermediate_size=neurons,
            num_experts=len(kinds),
            top_k=_first((router, block, self.text_config), TOP_K) or 1,
            expert_kinds=kinds,
            num_shared=0 if shared is None else _first((self.text_config,), NUM_SHARED) or 1,
            subtokens=subtokens,
            projections=layout.projections,
        )

    def _router(self, layer: Layer) -> tuple[str, LazyTensor]:
        path = self.blocks[layer.index]
        name = self._router_parameter(path, layer.expert_kinds.count("ffn"))
        return name, self.tensors[name][: layer.num_experts]

    def _expert(self, layer: Layer, label: str, projection: str) -> tuple[str, LazyTensor]:
        if not layer.is_moe:
            path, ffn = self._dense(layer.index)
        elif label == SHARED:
            path = self.shared_path(self.blocks[layer.index])
            ffn = ffn_layout(self.module.get_submodule(path))
        else:
            path = self.blocks[layer.index]
            layout = experts_layout(self.module.get_submodule(path))
            return path, layout.matrix(self.tensors, path + ".", int(label), projection)
        return path, ffn.matrix(self.tensors, path + ".", projection)
