"""Model types that are another one under a new name: the same fields, the same tensors."""

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
    """The release of every such model type."""

    preference: int = 90
    title: str = ", ".join(f"{alias} ({name})" for alias, name in ALIASES.items())

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the model type is another name."""
        return checkpoint.config.get("model_type") in ALIASES

    def respelled(self, checkpoint: Checkpoint) -> Spelled:
        """The configuration under the known name."""
        known = ALIASES[checkpoint.config["model_type"]]
        return {**checkpoint.config, "model_type": known}, checkpoint


RELEASE = Aliases()
