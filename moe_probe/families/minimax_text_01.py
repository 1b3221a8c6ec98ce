"""MiniMaxAI/MiniMax-Text-01 under its own model type, static analyses only (MiniMax-Text-01-hf can run)."""

from moe_probe.families.declared import Declared, named

_BLOCK = "model.layers.{layer}.block_sparse_moe"

FAMILY = Declared(
    name="minimax_text_01",
    model_types=("minimax_text_01",),
    router=f"{_BLOCK}.gate.weight",
    experts=named(f"{_BLOCK}.experts.{{expert}}", "w3 w1 w2"),
    because="transformers has the code of MiniMax-Text-01-hf, which spells its configuration otherwise",
)
