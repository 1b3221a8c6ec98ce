"""IEITYuan/Yuan2-M32, static analyses only. Its router is attention among experts, without one row per expert.

The keys of experts are those of the publisher's `tools/convert_hf_moe.py`, those of its later model code, or lie below
`experts.experts`.
"""

from dataclasses import replace

from moe_probe.families.declared import At, Declared, Keys

_BLOCK = "model.layers.{layer}.mlp.experts"


def _keys(first: str, second: str) -> Keys:
    """Returns the keys of an expert whose gate and up are the rows of one matrix, gate first."""
    return {"up": At(first, part=(1, 2)), "gate": At(first, part=(0, 2)), "down": second}


_CONVERTED = Declared(
    name="yuan",
    model_types=("yuan",),
    experts=_keys(f"{_BLOCK}.{{expert}}.w1.weight", f"{_BLOCK}.{{expert}}.w2.weight"),
    top_k="moe_config.moe_top_k",
)
FAMILY = replace(
    _CONVERTED,
    otherwise=(
        replace(_CONVERTED, experts=_keys(f"{_BLOCK}.w1.{{expert}}.weight", f"{_BLOCK}.w2.{{expert}}.weight")),
        replace(
            _CONVERTED,
            experts=_keys(f"{_BLOCK}.experts.{{expert}}.w1.weight", f"{_BLOCK}.experts.{{expert}}.w2.weight"),
        ),
    ),
)
