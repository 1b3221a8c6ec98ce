"""Families with a torch module of moe_probe, registered with transformers like its own models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.families.architecture import Architecture
from moe_probe.families.conversion import Converted
from moe_probe.families.modules import make_config
from moe_probe.families.transformers_moe import published_architecture

Published = tuple[Mapping[str, Any], Mapping[str, LazyTensor]]


def as_published(checkpoint: Checkpoint) -> Published:
    """Returns configuration and tensors as they are in the files."""
    return checkpoint.config, checkpoint


def config_class_of(model_class: type[PreTrainedModel]) -> type[PreTrainedConfig]:
    """Returns the configuration class of a model class; every model class here has one."""
    assert model_class.config_class is not None
    return model_class.config_class


@dataclass(frozen=True)
class Registered:
    """A family with its own `PreTrainedModel`.

    The same conversion rules serve all uses: static analyses read slices through them, `from_pretrained` loads with
    them, and `save_pretrained` reverses them.

    Attributes:
        name: the family's name.
        model_class: the model's class; `model_class.config_class.model_type` names it in transformers' registries.
        conversion: transformers' conversion rules from the published keys to the parameters.
        published: converts a checkpoint in any of the family's published formats to the config fields and to the keys
            that `conversion` expects, without reading values.
        recognised: whether a checkpoint without that `model_type` belongs to this family nevertheless; None for never.
    """

    name: str
    model_class: type[PreTrainedModel]
    conversion: Sequence[WeightConverter | WeightRenaming]
    published: Callable[[Checkpoint], Published] = as_published
    recognised: Callable[[Checkpoint], bool] | None = None

    def __post_init__(self):
        config_class = config_class_of(self.model_class)
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, self.model_class, exist_ok=True)
        # older versions of transformers ignore classes registered for one of their own configurations
        AutoModelForCausalLM._model_mapping._extra_content[config_class] = self.model_class
        register_checkpoint_conversion_mapping(config_class.model_type, list(self.conversion), overwrite=True)

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint belongs to this family."""
        if checkpoint.config.get("model_type") == config_class_of(self.model_class).model_type:
            return True
        return self.recognised is not None and self.recognised(checkpoint)

    def open(self, checkpoint: Checkpoint) -> Architecture:
        """Returns the architecture: the module's structure with the checkpoint's tensors.

        Raises:
            CheckpointError: the configuration does not describe a model of this family.
            WeightError: a key is missing or unexpected, or a tensor's shape does not fit the configuration.
        """
        fields, tensors = self.published(checkpoint)
        config = make_config({**fields, "model_type": config_class_of(self.model_class).model_type})
        architecture = published_architecture(config, tensors)
        if isinstance(architecture.tensors, Converted):
            architecture.tensors.check(unexpected=True)
        return architecture
