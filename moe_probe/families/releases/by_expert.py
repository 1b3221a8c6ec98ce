"""Quantized releases with one matrix per expert, of models that publisher and transformers store as stacks.

Quantizers work on linear layers, so they split the stacks of Qwen3-VL-MoE, Llama 4 and gpt-oss. This module knows the
keys that they write; the stacks of all these models are (E, in, out).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from moe_probe.checkpoint import Checkpoint, LazyTensor
from moe_probe.checkpoint.lazy import Concatenated, Stacked
from moe_probe.errors import MissingWeight
from moe_probe.families.releases import Spelled

MATRIX = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down|gate_up)_proj\.(weight|bias)")
LISTED = re.compile(r"(.+\.experts)\.(down|gate_up)_projs\.(\d+)\.(weight|bias)")  # unsloth's gpt-oss
ALTERNATING = {"gpt_oss"}  # rows of gate and up alternate
MODELS = {"qwen3_vl_moe", "qwen3_vl_moe_text", "llama4", "llama4_text", *ALTERNATING}
Parts = dict[str, dict[int, LazyTensor]]


@dataclass(frozen=True)
class ByExpert:
    """The release of checkpoints with one matrix per expert."""

    preference: int = 70
    title: str = "experts as matrices of their own of " + ", ".join(sorted(MODELS))

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the model has stacks, but the files have one matrix per expert."""
        return checkpoint.config.get("model_type") in MODELS and any(map(_place, checkpoint))

    def respelled(self, checkpoint: Checkpoint) -> Spelled:
        """Returns configuration and tensors, with experts stacked as published.

        Raises:
            MissingWeight: the numbers of the experts have a gap, or a matrix is missing or has another shape.
        """
        tensors: dict[str, LazyTensor] = {}
        blocks: dict[tuple[str, str], Parts] = defaultdict(lambda: defaultdict(dict))
        for key, tensor in checkpoint.items():
            place = _place(key)
            if place is None:
                tensors[key] = tensor
            else:
                block, projection, expert, role = place
                blocks[block, role][projection][expert] = tensor
        alternating = checkpoint.config["model_type"] in ALTERNATING
        for (block, role), parts in blocks.items():
            ending = "" if role == "weight" else "_bias"
            for projection, stack in _stacks(block, parts, alternating).items():
                tensors[f"{block}.{projection}_proj{ending}"] = stack.transpose(1, 2) if role == "weight" else stack
        return checkpoint.config, tensors


RELEASE = ByExpert()


def _place(key: str) -> tuple[str, str, int, str] | None:
    """Returns block, projection, expert and role (weight or bias) of a key; None if it is not an expert's."""
    match = MATRIX.fullmatch(key)
    if match is not None:
        return match[1], match[3], int(match[2]), match[4]
    match = LISTED.fullmatch(key)
    return None if match is None else (match[1], match[2], int(match[3]), match[4])


def _stacks(block: str, parts: Mapping[str, Mapping[int, LazyTensor]], alternating: bool) -> dict[str, LazyTensor]:
    """Returns the stacks `gate_up` and `down` of a block: weights (E, out, in), or biases (E, out)."""
    listed = {projection: _in_order(block, projection, experts) for projection, experts in parts.items()}
    lengths = {len(experts) for experts in listed.values()}
    if listed.keys() not in ({"gate_up", "down"}, {"gate", "up", "down"}) or len(lengths) > 1:
        counts = ", ".join(f"{len(experts)} of {projection}" for projection, experts in listed.items())
        raise MissingWeight(
            f"{block!r} has {counts}, expected as many matrices of gate, up and down; the download is incomplete."
        )
    if "gate_up" not in listed:
        pairs = zip(listed.pop("gate"), listed.pop("up"), strict=True)
        listed["gate_up"] = [_taking_turns(*pair) if alternating else Concatenated(pair) for pair in pairs]
    return {projection: Stacked(experts) for projection, experts in listed.items()}


def _in_order(block: str, projection: str, experts: Mapping[int, LazyTensor]) -> list[LazyTensor]:
    missing = next((number for number in range(len(experts)) if number not in experts), None)
    if missing is not None:
        raise MissingWeight(f"{block!r} has no {projection} of expert {missing}; the download is incomplete.")
    shapes = {tuple(tensor.shape) for tensor in experts.values()}
    if len(shapes) > 1:
        raise MissingWeight(f"{block!r} has {projection} of the shapes {sorted(shapes)}; download the files again.")
    return [experts[number] for number in range(len(experts))]


def _taking_turns(gate: LazyTensor, up: LazyTensor) -> LazyTensor:
    return Stacked([gate, up], 1).reshape(2 * gate.shape[0], *gate.shape[1:])
