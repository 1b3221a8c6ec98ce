"""What zero-computation experts save, in theory and as measured (MoE++, arXiv 2410.07348, table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Sums
from moe_probe.errors import InputError
from moe_probe.routing import LayerBatch
from moe_probe.texts.corpus import Corpus

TAUS = (0.1, 0.25, 0.5, 0.75, 1.0)


class Complexity(Sums):
    """Work of the FFN experts relative to a MoE without zero-computation experts.

    With N_FFN and N_ZC experts of either sort, training balances them by tau, so that in theory a token takes the share
    r = tau N_FFN / (tau N_FFN + N_ZC) of its k choices to FFN experts: O(r T) instead of O(T). tau is a setting of the
    training that checkpoints do not hold (0.75 for the published model).

    The result has `theory` (tau), r; `theory_ffn_per_token` (tau), k r; `measured` (layer), the share of choices that
    go to FFN experts, and `measured_ffn_per_token` (layer); the same over all layers as `measured_mean` and
    `measured_ffn_per_token_mean`; and N_FFN, N_ZC and k as `ffn_experts`, `zero_computation_experts`, `top_k`.

    Args:
        taus: values of tau.

    Raises:
        InputError: tau is not positive, or all experts are FFN experts.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.complexity("ckpt/tiny-moe-plus-plus", ["A short text."], taus=[0.75])
        >>> ds.theory.dims
        ('tau',)
    """

    name = "complexity"

    def __init__(self, taus: Sequence[float] = TAUS):
        super().__init__()
        if not len(taus) or min(taus) <= 0:
            raise InputError(f"tau is positive, not {list(taus)}.")
        self.taus = [float(tau) for tau in taus]

    def prepare(self, model: Any, corpus: Corpus, layers: list[int]) -> None:
        for layer in map(model.layer, layers):
            if set(layer.expert_kinds) == {"ffn"}:
                raise InputError(f"Layer {layer.index} has FFN experts only, so there is no work to save.")

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        ffn = torch.tensor([kind == "ffn" for kind in batch.layer.expert_kinds], device=batch.scores.device)
        return {"ffn": ffn[batch.top_k_index].sum(), "choices": torch.tensor(batch.top_k_index.numel())}

    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        return {"measured": (("layer",), sums["ffn"] / sums["choices"])}, {"tau": self.taus}

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        found = super().result(model, corpus)
        layer = model.layer(int(found.layer[0]))
        ffn, top_k = layer.expert_kinds.count("ffn"), layer.top_k
        theory = found.tau * ffn / (found.tau * ffn + layer.num_experts - ffn)
        return found.assign(
            measured_ffn_per_token=found.measured * top_k,
            measured_mean=found.measured.mean(),
            measured_ffn_per_token_mean=found.measured.mean() * top_k,
            theory=theory,
            theory_ffn_per_token=theory * top_k,
            ffn_experts=ffn,
            zero_computation_experts=layer.num_experts - ffn,
            top_k=top_k,
        )
