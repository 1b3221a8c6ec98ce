"""GGUF files of all other architectures, static analyses only; the `gguf` package names their tensors alike."""

from __future__ import annotations

from dataclasses import replace

from moe_probe.checkpoint import Checkpoint
from moe_probe.checkpoint.formats.gguf import NAME as FORMAT
from moe_probe.families.architecture import Architecture
from moe_probe.families.declared import At, Declared, DeclaredArchitecture

_BLOCK = "blk.{layer}"
SEPARATE = {name: f"{_BLOCK}.ffn_{name}_exps.weight" for name in ("up", "gate", "down")}
MERGED = {
    "up": At(f"{_BLOCK}.ffn_gate_up_exps.weight", part=(1, 2)),
    "gate": At(f"{_BLOCK}.ffn_gate_up_exps.weight", part=(0, 2)),
    "down": SEPARATE["down"],
}
BY_EXPERT = {name: f"{_BLOCK}.ffn_{name}.{{expert}}.weight" for name in ("up", "gate", "down")}
DECLARED = Declared(
    name="gguf",
    model_types=(),
    router=f"{_BLOCK}.ffn_gate_inp.weight",
    experts=SEPARATE,
    shared={name: f"{_BLOCK}.ffn_{name}_shexp.weight" for name in ("up", "gate", "down")},
    dense={name: f"{_BLOCK}.ffn_{name}.weight" for name in ("up", "gate", "down")},
    because="llama.cpp's names of its attention are not followed",
)


class Gguf:
    """The family of GGUF files that no release converts to transformers' names."""

    name = "gguf"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint is a GGUF file with GGUF's own names."""
        return checkpoint.config.get("format") == FORMAT and "model_type" not in checkpoint.config

    def open(self, checkpoint: Checkpoint) -> Architecture:
        """Returns the architecture by the declaration that fits the file's experts, with sizes from its metadata."""
        architecture = str(checkpoint.config["general.architecture"])
        fields = {name.removeprefix(architecture + "."): value for name, value in checkpoint.config.items()}
        layers = fields.get("block_count", 0) - fields.get("nextn_predict_layers", 0)
        experts = next((keys for keys in (MERGED, SEPARATE, BY_EXPERT) if _has(keys, checkpoint)), SEPARATE)
        gated = any(".ffn_gate" in key and ".ffn_gate_inp" not in key for key in checkpoint)
        parts = {"experts": experts, "shared": DECLARED.shared, "dense": DECLARED.dense}
        if not gated:
            parts = {name: {k: v for k, v in (keys or {}).items() if k != "gate"} for name, keys in parts.items()}
        family = replace(DECLARED, name=f"gguf ({architecture})", **parts)
        return DeclaredArchitecture(
            family, checkpoint.respelled({**fields, "model_type": architecture, "block_count": layers}, checkpoint)
        )


def _has(keys: dict, checkpoint: Checkpoint) -> bool:
    place = keys["up"] if isinstance(keys["up"], At) else At(keys["up"])
    ending = place.key.partition("{layer}")[2].replace("{expert}", "0")
    return any(key.endswith(ending) for key in checkpoint)


FAMILY = Gguf()
