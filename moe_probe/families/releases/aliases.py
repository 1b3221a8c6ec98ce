"""Model types that are new names of known ones, with the same fields and tensors."""

from __future__ import annotations

from dataclasses import dataclass

from moe_probe.checkpoint import Checkpoint
from moe_probe.families.releases import Spelled

ALIASES = {
    "kimi_k2": "deepseek_v3",  # moonshotai/Kimi-K2-Instruct, -Thinking: architectures is DeepseekV3ForCausalLM
    "aria_moe_lm": "aria_text",  # the language model of rhymes-ai/Aria
}


@dataclass(frozen=True)
class Aliases:
    """The release of model types in `ALIASES`."""

    preference: int = 90
    title: str = ", ".join(f"{alias} ({name})" for alias, name in ALIASES.items())

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the model type is an alias."""
        return checkpoint.config.get("model_type") in ALIASES

    def respelled(self, checkpoint: Checkpoint) -> Spelled:
        """Returns the configuration with the known model type, and the tensors unchanged."""
        known = ALIASES[checkpoint.config["model_type"]]
        return {**checkpoint.config, "model_type": known}, checkpoint


RELEASE = Aliases()
