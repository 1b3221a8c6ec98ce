"""xai-org/grok-2, static analyses only: `model_type` is "git"; names as in sglang's `grok.py` and tt-metal's loader.

A dense FFN, `mlp`, runs beside the experts of every layer, and the sum is divided by the root of 2: it is counted, but
is no shared expert here. Each of the publisher's files has one kind of tensor, experts by tensor-parallel rank.
"""

from moe_probe.families.declared import Declared, named

_BLOCK = "model.layers.{layer}.block_sparse_moe"

FAMILY = Declared(
    name="grok2",
    model_types=("git", "grok2", "grok-2"),
    router=f"{_BLOCK}.gate.weight",
    experts=named(f"{_BLOCK}.experts.{{expert}}", "w3 w1 w2"),
)
