"""A configuration's torch module: its structure without weights, or loaded from published tensors."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_probe.checkpoint import LazyTensor
from moe_probe.errors import CheckpointError, FamilyError
from moe_probe.families.conversion import Converted

# measured: fused attention on a CPU errs ten times as much as eager, grouped experts take 1.7 times as long
EXACT_ON_CPU = {"attn_implementation": "eager", "experts_implementation": "eager"}


def make_config(fields: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration object of a published `config.json`; remote code that it names is not followed.

    Quantization is left out: the checkpoint dequantizes what it reads.

    Raises:
        CheckpointError: the fields do not describe a model of their `model_type`.
    """
    kept = {key: value for key, value in fields.items() if key not in ("auto_map", "quantization_config")}
    try:
        return CONFIG_MAPPING[fields["model_type"]].from_dict(kept)
    except (TypeError, ValueError, AttributeError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"config.json does not describe a {fields['model_type']} model ({reason}).") from error


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that the configuration names, or transformers' language model for it.

    Raises:
        FamilyError: there is none.
    """
    for name in config.architectures or []:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise FamilyError(f"transformers {transformers.__version__} has no language model for {config.model_type!r}.")
    return AutoModelForCausalLM._model_mapping[type(config)]


def meta_module(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device: names and shapes only."""
    with torch.device("meta"):
        return model_class(config)._from_config(config)


def load_module(
    config: PreTrainedConfig,
    tensors: Mapping[str, LazyTensor],
    device: str | torch.device | dict | None = None,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """The model with its weights, in evaluation mode; tensors are read one at a time.

    Args:
        config: of the model.
        tensors: published key to tensor; every parameter must be among what they convert to.
        device: as transformers' `device_map`; the CPU by default.
        dtype: by default float32 on the CPU, elsewhere the configuration's or the one that most stored values have.

    Raises:
        WeightError: a parameter is missing or has another shape than the configuration calls for.
    """
    config = copy.deepcopy(config)
    Converted(meta_module(config), tensors).check()
    module = model_class(config).from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=dtype or default_dtype(config, tensors, device),
        device_map=device,
        **(EXACT_ON_CPU if on_cpu(device) else {}),
    )
    return module.eval()


def on_cpu(device: str | torch.device | dict | None) -> bool:
    """Whether a `device_map` means the CPU alone."""
    return device is None or str(device).startswith("cpu")


def default_dtype(
    config: PreTrainedConfig, tensors: Mapping[str, LazyTensor], device: str | torch.device | dict | None
) -> torch.dtype:
    """float32 on the CPU, where it is both exact and faster; elsewhere the dtype that most stored values have."""
    if on_cpu(device):
        return torch.float32
    if config.dtype is not None:
        return config.dtype
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        counts[tensor.dtype] += tensor.shape.numel()
    return counts.most_common(1)[0][0]


def with_config(module: PreTrainedModel, changes: Mapping[str, Any]) -> PreTrainedModel:
    """Another module with the same parameters and buffers, and some fields of its configuration changed."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    other = copy.deepcopy(module, shared)
    other.config.update(changes)
    return other
