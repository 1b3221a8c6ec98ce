"""tencent/Tencent-Hunyuan-Large, static analyses only: names as in mlx-lm's `hunyuan.py`.

Some releases, including the image generator HunyuanImage-3.0, store up and gate in one matrix, up first.
"""

from dataclasses import replace

from moe_probe.families.declared import At, Declared, Keys, named

_BLOCK = "model.layers.{layer}.mlp"


def _fused(block: str) -> Keys:
    rows = f"{block}.gate_and_up_proj.weight"
    return {"up": At(rows, part=(0, 2)), "gate": At(rows, part=(1, 2)), "down": f"{block}.down_proj.weight"}


_SEPARATE = Declared(
    name="hunyuan",
    model_types=("hunyuan", "hunyuan_image_3_moe"),
    router=f"{_BLOCK}.gate.wg.weight",
    experts=named(f"{_BLOCK}.experts.{{expert}}"),
    shared=named(f"{_BLOCK}.shared_mlp"),
    dense=named(_BLOCK),
)
FAMILY = replace(
    _SEPARATE,
    otherwise=(
        replace(
            _SEPARATE,
            experts=_fused(f"{_BLOCK}.experts.{{expert}}"),
            shared=_fused(f"{_BLOCK}.shared_mlp"),
            dense=_fused(_BLOCK),
        ),
    ),
)
