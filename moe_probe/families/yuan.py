"""IEITYuan/Yuan2-M32, static analyses only. Its router attends among experts and is no matrix with a row for each."""

from moe_probe.families.declared import At, Declared

_EXPERT = "model.layers.{layer}.mlp.experts.experts.{expert}"

FAMILY = Declared(
    name="yuan",
    model_types=("yuan",),
    experts={
        "up": At(f"{_EXPERT}.w1.weight", part=(1, 2)),
        "gate": At(f"{_EXPERT}.w1.weight", part=(0, 2)),
        "down": f"{_EXPERT}.w2.weight",
    },
    top_k="moe_config.moe_top_k",
)
