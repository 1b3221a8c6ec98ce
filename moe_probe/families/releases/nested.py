"""Language models inside multimodal models: extracts the part of the model that has the experts.

This applies if transformers has no class for the whole model, or a class with other keys. Towers and projectors keep
their keys, are listed separately and do not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_probe.checkpoint import Checkpoint
from moe_probe.families.known_types import is_known
from moe_probe.families.releases import Spelled

FIELDS = ("text_config", "language_config", "llm_config")
PREFIXES = ("language_model.", "language.", "model.language_model.", "llm.")  # before the language model's keys
ALWAYS = {"kimi_k25", "kimi_vl", "deepseek_vl_v2"}
INHERITED = ("torch_dtype", "dtype", "quantization_config", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Nested:
    """The release of a language model inside another model's configuration."""

    preference: int = 50
    title: str = "language models of " + ", ".join(sorted(ALWAYS)) + " and others that also read pictures"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the configuration contains a language model, and transformers has no fitting class for the whole."""
        config = checkpoint.config
        if _inner(config) is None:
            return False
        types = [config.get("model_type"), *(part.get("model_type") for part in config.values() if _is_model(part))]
        return config.get("model_type") in ALWAYS or not all(map(is_known, types))

    def respelled(self, checkpoint: Checkpoint) -> Spelled:
        """Returns the language model's configuration, and the tensors with its keys."""
        config = checkpoint.config
        inner = dict(_inner(config) or {})
        if inner.get("use_mla") is False and inner.get("model_type") == "deepseek_v2":
            inner["model_type"] = "deepseek"  # DeepSeek-VL2-Tiny has the attention of DeepSeekMoE v1
        inherited = {name: config[name] for name in INHERITED if name in config}
        tensors = {_renamed(key): tensor for key, tensor in checkpoint.items()}
        tied = not any(key.endswith("lm_head.weight") for key in tensors)
        return {**inherited, **inner, "tie_word_embeddings": tied}, tensors


RELEASE = Nested()


def _is_model(part: Any) -> bool:
    return isinstance(part, dict) and "model_type" in part


def _inner(config: Mapping[str, Any]) -> dict[str, Any] | None:
    parts = (config.get(name) for name in FIELDS)
    return next((part for part in parts if isinstance(part, dict) and part.get("model_type")), None)


def _renamed(key: str) -> str:
    prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
    if prefix is None:
        return key
    return ("model." if prefix.startswith("model.") else "") + key.removeprefix(prefix)
