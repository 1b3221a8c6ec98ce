"""xai-org/grok-2, static analyses only: `model_type` is "git"; names as in sglang's `grok.py` and tt-metal's loader.

A dense FFN, `mlp`, runs parallel to the experts of every layer, which divides their sum by the square root of 2. Its
parameters count, but it is not a shared expert here. Each of the publisher's files has one kind of tensor, with experts
split by tensor-parallel rank.
"""

from moe_probe.families.declared import Declared, named

_BLOCK = "model.layers.{layer}.block_sparse_moe"

FAMILY = Declared(
    name="grok2",
    model_types=("git", "grok2", "grok-2"),
    router=f"{_BLOCK}.gate.weight",
    experts=named(f"{_BLOCK}.experts.{{expert}}", "w3 w1 w2"),
)
