"""tencent/Tencent-Hunyuan-Large, static analyses only: names as in mlx-lm's `hunyuan.py`."""

from moe_probe.families.declared import Declared, named

_BLOCK = "model.layers.{layer}.mlp"

FAMILY = Declared(
    name="hunyuan",
    model_types=("hunyuan",),
    router=f"{_BLOCK}.gate.wg.weight",
    experts=named(f"{_BLOCK}.experts.{{expert}}"),
    shared=named(f"{_BLOCK}.shared_mlp"),
    dense=named(_BLOCK),
)
