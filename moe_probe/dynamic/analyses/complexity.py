"""Work that zero-computation experts save, in theory and as measured (MoE++, arXiv 2410.07348, table 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis
from moe_probe.errors import NotFitting, OutOfRange
from moe_probe.routing import LayerBatch, Source
from moe_probe.statistics.states import Total

TAUS = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass
class Complexity(Analysis):
    """Work of the FFN experts relative to a MoE without zero-computation experts.

    There are N_FFN experts that compute (FFN) and N_ZC zero-computation experts. Training balances the two kinds by
    tau, so that in theory the share r = tau N_FFN / (tau N_FFN + N_ZC) of a token's k choices are FFN experts: for T
    tokens, O(r T) work instead of O(T). Checkpoints do not store tau (0.75 for the published model).

    The result has `theory` (tau), r; `theory_ffn_per_token` (tau), k r; `measured` (layer), the share of FFN experts
    among the choices, and `measured_ffn_per_token` (layer), k times that; their means over layers, `measured_mean` and
    `measured_ffn_per_token_mean`; and N_FFN, N_ZC and k as `ffn_experts`, `zero_computation_experts`, `top_k`.

    Args:
        taus: values of tau, positive.

    Raises:
        InputError: a tau is not positive, or all experts are FFN experts.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.complexity("ckpt/tiny-moe-plus-plus", ["A short text."], taus=[0.75])
        >>> ds.theory.dims
        ('tau',)
    """

    taus: Sequence[float] = TAUS

    name = "complexity"
    title = "Complexity of zero-computation experts"

    ffn, choices = Total(), Total()

    def __post_init__(self) -> None:
        if not len(self.taus) or min(self.taus) <= 0:
            raise OutOfRange(f"taus is {list(self.taus)}; pass positive numbers.")
        self.taus = [float(tau) for tau in self.taus]

    @classmethod
    def example(cls) -> Self:
        return cls(taus=[0.75])

    def check(self, source: Source) -> None:
        for layer in source.layers.values():
            if set(layer.expert_kinds) == {"ffn"}:
                raise NotFitting(
                    f"Layer {layer.index} has only FFN experts, so there is no work to save; "
                    "pass a model with zero-computation experts, such as MoE++."
                )

    def update(self, batch: LayerBatch) -> None:
        ffn = torch.tensor([kind == "ffn" for kind in batch.layer.expert_kinds], device=batch.top_k_index.device)
        self.ffn.add(batch, ffn[batch.top_k_index].sum())
        self.choices.add(batch, batch.top_k_index.numel())

    def variables(self, source: Source) -> Mapping[str, xr.DataArray]:
        layer, tau = source.first_layer, xr.DataArray(list(self.taus), {"tau": list(self.taus)}, ("tau",))
        ffn = layer.expert_kinds.count("ffn")
        theory, measured = tau * ffn / (tau * ffn + layer.num_experts - ffn), self.ffn.array / self.choices.array
        return {
            "theory": theory,
            "theory_ffn_per_token": theory * layer.top_k,
            "measured": measured,
            "measured_ffn_per_token": measured * layer.top_k,
            "measured_mean": measured.mean(),
            "measured_ffn_per_token_mean": measured.mean() * layer.top_k,
            "ffn_experts": xr.DataArray(ffn),
            "zero_computation_experts": xr.DataArray(layer.num_experts - ffn),
            "top_k": xr.DataArray(layer.top_k),
        }
