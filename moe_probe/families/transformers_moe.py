"""All other models of transformers, with the structure derived from the torch module.

The module is built on the meta device (no memory, no weights), its MoE blocks are found by structure, and transformers'
own conversion rules map the published keys to its parameters. A live model is read the same way.

A router with more classes than experts either has experts without weights (LongCat's copies, Zaya's skip class), or
also scores the shared experts (Inkling); those rows are not gate embeddings. If the router is a small network instead
of one matrix (Zaya), `router_weight` is its last layer, (E, width of that layer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.errors import NoSuchName, UnknownModel
from moe_probe.families.architecture import SHARED, Architecture, Layer, require_explained
from moe_probe.families.conversion import Converted
from moe_probe.families.decoder import layers_path, require_known_blocks, text_config
from moe_probe.families.experts_layout import FfnLayout, FlatExperts, FusedExperts, experts_layout, ffn_layout
from moe_probe.families.live import LiveTensors, children, core, parameter, parameters, part, parts
from moe_probe.families.modules import make_config, meta_module

ROUTERS = ("gate", "router")
SHARED_BLOCKS = ("shared_experts", "shared_expert", "shared_mlp")
TOP_K = ("num_experts_per_tok", "top_k", "moe_topk", "moe_top_k", "num_experts_per_token", "top_k_experts")
NUM_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
# kind of the router's classes beyond the experts with weights, by the block's class name; None: not experts
EXTRA_CLASSES = {"LongcatFlashMoE": "copy", "ZayaSparseMoeBlock": "zero", "InklingMoE": None}


class TransformersMoE:
    """The family of all models that transformers has."""

    name = "transformers"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether transformers has a configuration class for the model type."""
        return checkpoint.config.get("model_type") in CONFIG_MAPPING

    def open(self, checkpoint: Checkpoint) -> ModuleArchitecture:
        """Returns the architecture of a published checkpoint.

        Raises:
            UnknownModel: transformers has no language model for the configuration.
        """
        return published_architecture(make_config(checkpoint.config), checkpoint)


FAMILY = TransformersMoE()


def published_architecture(config: PreTrainedConfig, tensors: Mapping[str, LazyTensor]) -> ModuleArchitecture:
    """Returns the architecture of the module that `config` describes, with the published tensors as its weights."""
    module = meta_module(config)
    return ModuleArchitecture(module, Converted(module, tensors), tensors)


def live_architecture(module: PreTrainedModel) -> ModuleArchitecture:
    """Returns the architecture of a live model, with its parameters as weights, read on access."""
    tensors = LiveTensors(module)
    return ModuleArchitecture(module, tensors, tensors)


def _first(objects: tuple[Any, ...], names: tuple[str, ...]) -> int | None:
    values = (getattr(source, name, None) for source in objects for name in names)
    return next((value for value in values if isinstance(value, int)), None)


class ModuleArchitecture(Architecture):
    """An architecture that is derived from the modules of a model."""

    def __init__(self, module: PreTrainedModel, tensors: Mapping[str, LazyTensor], published: Mapping[str, LazyTensor]):
        super().__init__(module.config, published)
        self.module, self.tensors = module, tensors
        self.text_config = text_config(module)
        self.hidden_size = self.text_config.hidden_size

    @property
    def skeleton(self) -> PreTrainedModel:
        return self.module

    def unused(self) -> Mapping[str, LazyTensor]:
        return self.tensors.unused() if isinstance(self.tensors, Converted) else {}

    def check(self) -> None:
        """Raises an error if the module is a mixture of experts that is not recognized, or whose files do not fit.

        Raises:
            UnknownModel: a MoE block is not recognized; the message names it.
            WeightError: the files lack a parameter of a MoE block, or hold it in another shape.
            CheckpointError: an unused tensor changes the meaning of a weight.
        """
        if not self.blocks:
            require_known_blocks(self.module)
        self.layer(min(self.blocks, default=0))
        if isinstance(self.tensors, Converted):
            self.tensors.check_kinds([path + "." for path in self.blocks.values()])
            require_explained(self.tensors.used(), self.tensors.unused())

    @cached_property
    def layers_path(self) -> str:
        """Path of the list of decoder layers."""
        return layers_path(self.module)

    @cached_property
    def num_layers(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - counted on first use
        """Length of the list of decoder layers (LongCat's `num_hidden_layers` counts its attention layers)."""
        return len(children(part(self.module, self.layers_path)))

    @cached_property
    def blocks(self) -> dict[int, str]:
        """Path of the MoE block of each layer that has one."""
        paths = ((index, self._first_path(index, experts_layout)) for index in range(self.num_layers))
        return {index: path for index, path in paths if path is not None}

    def dense_path(self, index: int) -> str | None:
        """Returns the path of the FFN of a dense layer; None if there is none."""
        return self._first_path(index, ffn_layout) if 0 <= index < self.num_layers else None

    def _first_path(self, index: int, layout: Callable[[nn.Module], object | None]) -> str | None:
        """Returns the path of the first module in a decoder layer for which `layout` is not None; None without one."""
        path = f"{self.layers_path}.{index}"
        return next((place for place, child in parts(part(self.module, path), path) if layout(child) is not None), None)

    def _dense(self, index: int) -> tuple[str, FfnLayout]:
        path = self.dense_path(index)
        layout = None if path is None else ffn_layout(part(self.module, path))
        if path is None or layout is None:
            raise NoSuchName(f"Layer {index} has no FFN of a layout that moe_probe reads; choose another layer.")
        return path, layout

    def shared_path(self, path: str) -> str | None:
        """Returns the path of the shared block that belongs to a MoE block; None if there is none."""
        parent = path.rpartition(".")[0]
        for place in (path, parent):
            for name, child in children(part(self.module, place)).items():
                if name in SHARED_BLOCKS and ffn_layout(core(child)) is not None:
                    return f"{place}.{name}"
        return None

    def _router_parameter(self, path: str, experts: int) -> str:
        """Returns the name of the router's weight: a matrix (E, d), or else the last one with at least E rows."""
        block = children(part(self.module, path))
        for name in ROUTERS:
            if name not in block:
                continue
            router = core(block[name])
            if hasattr(router, "gate_embedding"):
                return f"{path}.{name}.{router.gate_embedding}"
            matrices = {k: p.shape for k, p in parameters(router) if p.ndim == 2 and p.shape[0] >= experts}
            direct = [k for k, shape in matrices.items() if shape == (experts, self.hidden_size)]
            if matrices:
                return f"{path}.{name}.{(direct or list(matrices))[-1]}"
        raise UnknownModel(f"No router with one row per expert was found beside the experts of {path!r}.")

    def layer(self, index: int) -> Layer:
        return self._moe_layer(index) if index in self.blocks else self._dense_layer(index)

    def _dense_layer(self, index: int) -> Layer:
        path = self.dense_path(index)
        if path is None:
            return Layer(index, self.hidden_size, 0, projections=())
        _, layout = self._dense(index)
        return Layer(index, self.hidden_size, layout.neurons(part(self.module, path)), projections=layout.projections)

    def _moe_layer(self, index: int) -> Layer:
        path = self.blocks[index]
        block, layout = part(self.module, path), self._layout(path)
        experts, width, neurons = layout.size(block)
        kinds = self._kinds(path, experts)
        subtokens = getattr(block, "subtokens", 1)
        router = next((core(child) for name, child in children(block).items() if name in ROUTERS), None)
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

    def _layout(self, path: str) -> FusedExperts | FlatExperts:
        layout = experts_layout(part(self.module, path))
        if layout is None:
            raise UnknownModel(f"{path!r} is not a MoE block; pass the path of one.")
        return layout

    def _kinds(self, path: str, experts: int) -> tuple[str, ...]:
        """Returns the kind of each expert that a block's router can choose."""
        block = part(self.module, path)
        classes = parameter(self.module, self._router_parameter(path, experts)).shape[0]
        module = children(block).get("experts")
        kinds = getattr(core(module) if module is not None else None, "expert_kinds", ("ffn",) * experts)
        extra = EXTRA_CLASSES.get(type(block).__name__)
        return kinds + (extra,) * (classes - experts) if extra is not None else kinds

    def _router(self, layer: Layer) -> tuple[str, LazyTensor]:
        name = self._router_parameter(self.blocks[layer.index], layer.expert_kinds.count("ffn"))
        return name, self.tensors[name][: layer.num_experts]

    def _expert(self, layer: Layer, label: str, projection: str) -> tuple[str, LazyTensor]:
        if layer.is_moe and label != SHARED:
            path = self.blocks[layer.index]
            return path, self._layout(path).matrix(self.tensors, path + ".", int(label), projection)
        path, ffn = self._dense(layer.index) if not layer.is_moe else self._shared(layer.index)
        return path, ffn.matrix(self.tensors, path + ".", projection)

    def _shared(self, index: int) -> tuple[str, FfnLayout]:
        path = self.shared_path(self.blocks[index])
        layout = None if path is None else ffn_layout(part(self.module, path))
        if path is None or layout is None:
            raise NoSuchName(f"Layer {index} has no shared expert; omit it.")
        return path, layout
