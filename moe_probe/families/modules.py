"""Builds the torch module of a configuration: without weights on the meta device, or from published tensors."""

from __future__ import annotations

import copy
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from moe_probe.checkpoint import LazyTensor
from moe_probe.errors import DamagedFile, MissingWeight, UnknownModel, reason
from moe_probe.families.conversion import COMPUTED, Converted
from moe_probe.families.live import offloaded
from moe_probe.families.repair import repaired

# fields of config.json that describe how files are stored or which code should run, not the model
NOT_DESCRIBING = {
    "auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
}  # fmt: skip
# exceptions that transformers' configuration classes raise for damaged fields
UNDESCRIBED = (
    TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError, RecursionError, MemoryError,
    StrictDataclassError,
)  # fmt: skip
Device = str | int | torch.device | dict[str, Any] | None  # what transformers' `device_map` accepts
# measured on a CPU: fused attention has ten times the error of eager, grouped experts take 1.7 times as long
EXACT_ON_CPU: dict[str, Any] = {"attn_implementation": "eager", "experts_implementation": "eager"}
BUILDING = threading.RLock()


def make_config(fields: Mapping[str, Any]) -> PreTrainedConfig:
    """Returns the configuration object of a published `config.json`; remote code that it names does not run.

    Quantization is omitted, because the checkpoint dequantizes on reading; choices of kernels are omitted too.

    Raises:
        DamagedFile: the fields do not describe a model of their `model_type`.
    """
    describing = {key: value for key, value in fields.items() if key not in NOT_DESCRIBING}
    model_type = fields["model_type"]
    try:
        config = repaired(CONFIG_MAPPING[model_type].from_dict, describing)
        config.get_text_config(decoder=True)
    except UNDESCRIBED as error:
        raise DamagedFile(f"config.json does not describe a {model_type} model ({reason(error)}).") from error
    if config.dtype is not None and not (isinstance(config.dtype, torch.dtype) and config.dtype.is_floating_point):
        raise DamagedFile(
            f"config.json has dtype={fields.get('dtype', fields.get('torch_dtype'))!r}, expected a floating-point type "
            "such as 'bfloat16'."
        )
    return config


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Returns the model class that the configuration names, or else transformers' language model for it.

    Raises:
        UnknownModel: transformers has no language model for it, or the named class is of another model type.
        DamagedFile: `architectures` is not a list of strings.
    """
    names = config.architectures or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DamagedFile(f"config.json has architectures={names!r}, expected a list of class names.")
    for name in names:
        if name.isidentifier() and hasattr(transformers, name):
            return _of_type(config, name, getattr(transformers, name))
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UnknownModel(
            f"transformers {transformers.__version__} has no language model for {config.model_type!r}; pass a model "
            "that generates text."
        )
    return cast(type[PreTrainedModel], AutoModelForCausalLM._model_mapping[type(config)])


def _of_type(config: PreTrainedConfig, name: str, named: object) -> type[PreTrainedModel]:
    if (
        isinstance(named, type)
        and issubclass(named, PreTrainedModel)
        and isinstance(config, named.config_class or PreTrainedConfig)
    ):
        return named
    raise UnknownModel(
        f"config.json names the class {name!r}, which is not a {config.model_type} model of transformers; use the "
        "published file."
    )


def meta_module(config: PreTrainedConfig) -> PreTrainedModel:
    """Returns the model of a configuration on the meta device: names and shapes, no values.

    Raises:
        DamagedFile: no model can be built from the configuration.
    """
    chosen = model_class(config)
    try:
        with building(), torch.device("meta"):
            return chosen._from_config(copy.deepcopy(config), dtype=torch.get_default_dtype())
    except (*UNDESCRIBED, RuntimeError, ImportError, NotImplementedError) as error:
        raise DamagedFile(
            f"No {config.model_type} model can be built from the configuration ({reason(error)}); use the published "
            "config.json."
        ) from error


def load_module(
    config: PreTrainedConfig,
    tensors: Mapping[str, LazyTensor],
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """Loads the model with its weights, in evaluation mode; reads one tensor at a time.

    Args:
        config: configuration of the model.
        tensors: published key to tensor; together they must convert to every parameter.
        device: what transformers' `device_map` accepts; the CPU by default.
        dtype: by default float32 on the CPU; elsewhere that of the configuration, or the one of most stored values.

    Raises:
        WeightError: a parameter is missing or has another shape than the configuration calls for.
    """
    config = copy.deepcopy(config)
    converted = Converted(meta_module(config), tensors)
    converted.check()
    chosen: Any = model_class(config)  # with output_loading_info it returns a pair, unlike its annotation
    with building():
        module, info = chosen.from_pretrained(
            None,
            config=config,
            state_dict=converted.used(),
            dtype=dtype or default_dtype(config, tensors, device),
            device_map=device,
            output_loading_info=True,
            **(EXACT_ON_CPU if on_cpu(device) else {}),
        )
    require_values(module, info["missing_keys"])
    return module.eval()


@contextmanager
def building() -> Iterator[None]:
    """Lets one thread at a time build a transformers module, because building changes torch's default dtype.

    Hides transformers' progress bars and reports of keys; `require_values` raises an error for missing values.
    """
    with BUILDING:
        bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(level)
            if bars:
                transformers_logging.enable_progress_bar()


def require_values(module: PreTrainedModel, missing: Collection[str] = ()) -> None:
    """Raises an error if the module would compute with uninitialized memory.

    Raises:
        MissingWeight: a parameter or buffer is on the meta device without offloaded values, or was initialized because
            no file holds it; the message names it.
    """
    unread = sorted(name for name in set(missing) - module.all_tied_weights_keys.keys() if not COMPUTED.search(name))
    ignored = module._keys_to_ignore_on_load_missing or ()
    unread = [name for name in unread if not any(re.search(pattern, name) for pattern in ignored)]
    tensors = (*module.named_parameters(), *module.named_buffers())
    empty = [name for name, value in tensors if value.is_meta and offloaded(module, name) is None]
    if unread or empty:
        raise MissingWeight(
            f"{(unread + empty)[0]!r} of {type(module).__name__} has no values in the checkpoint; the download is "
            "incomplete or its configuration belongs to another model."
        )


def on_cpu(device: Device) -> bool:
    """Whether a `device_map` uses the CPU only."""
    places = device.values() if isinstance(device, dict) else [device]
    return all(place is None or str(place).startswith("cpu") for place in places)


def default_dtype(config: PreTrainedConfig, tensors: Mapping[str, LazyTensor], device: Device) -> torch.dtype:
    """Returns float32 on the CPU, where it is both exact and faster; elsewhere `stored_dtype`."""
    return torch.float32 if on_cpu(device) else stored_dtype(config, tensors)


def stored_dtype(config: PreTrainedConfig, tensors: Mapping[str, LazyTensor]) -> torch.dtype:
    """Returns the dtype that the configuration states, else the dtype of most stored values."""
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        counts[tensor.dtype] += tensor.shape.numel()
    return counts.most_common(1)[0][0]


def with_config(module: PreTrainedModel, changes: Mapping[str, Any]) -> PreTrainedModel:
    """Returns a copy of a module that shares parameters and buffers, with some config fields changed."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    other = copy.deepcopy(module, shared)
    other.config.update(dict(changes))
    return other
