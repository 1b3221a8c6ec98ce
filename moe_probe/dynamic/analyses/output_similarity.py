"""How alike the experts' outputs are on the same input (arXiv 2406.18219, section 4.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

from moe_probe.dynamic.analysis import Analysis, Rows, Sums
from moe_probe.errors import InputError
from moe_probe.families import DENSE, SHARED
from moe_probe.routing import BASELINE, OUTPUTS, LayerBatch
from moe_probe.texts.corpus import Corpus

METRICS = ("cosine", "angular")
EPSILON = 1e-8


class OutputSimilarity(Analysis):
    """Similarity of the unweighted outputs of every two experts, on the input of the ordinary forward pass.

    `cosine` is a.b / (|a| |b|), `angular` is 1 - arccos(cosine) / pi (the paper's long-text experiment; the diagonal
    is 1 by definition). Averaged over all tokens, each of equal weight, or kept token by token.

    Args:
        metric: `cosine` or `angular`.
        per_token: keep every token (the paper's short-text experiment).
        baseline: add the FFN of the dense model in the same layer, which runs on the same token ids, as `"F"`.
        shared: add the shared block as `"S"`.

    The result has `similarity` (layer, expert, other), float64; token by token (layer, token[, subtoken], expert,
    other), float32, and `topk_expert` (layer, token[, subtoken], rank), int64, the chosen experts.
    An expert that returns zero has similarity 0 with every other. With sub-tokens `"S"` and `"F"` cannot be compared.

    Examples:
        >>> from moe_probe import dynamic
        >>> ds = dynamic.output_similarity("ckpt/tiny-mixtral", ["A short text."], metric="angular")
        >>> ds.similarity.dims
        ('layer', 'expert', 'other')
    """

    name = "output_similarity"

    def __init__(self, metric: str = "cosine", per_token: bool = False, baseline: bool = False, shared: bool = False):
        if metric not in METRICS:
            raise InputError(f"There is no metric {metric!r}; there are {' and '.join(METRICS)}.")
        self.metric, self.per_token, self.baseline, self.shared = metric, per_token, baseline, shared
        self._labels: list[str] = []
        self._store: Analysis = _PerToken(self) if per_token else _Mean(self)
        self.needs = frozenset({OUTPUTS, BASELINE} if baseline else {OUTPUTS})

    def similarity(self, batch: LayerBatch) -> torch.Tensor:
        """(rows, R, R) in float32."""
        outputs = list(batch.outputs.float())
        self._labels = [str(expert) for expert in range(batch.layer.num_experts)]
        for label, wanted, extra in (
            (SHARED, self.shared, batch.shared_output),
            (DENSE, self.baseline, batch.baseline_output),
        ):
            if not wanted:
                continue
            if extra is None or extra.shape != outputs[0].shape:
                raise InputError(f"Layer {batch.layer.index} has no output {label!r} of an expert's width to compare.")
            outputs.append(extra.float())
            self._labels.append(label)
        stacked = torch.stack(outputs, dim=1)  # (n, R, w)
        products = stacked @ stacked.transpose(1, 2)
        norms = products.diagonal(dim1=1, dim2=2).sqrt().clamp(min=EPSILON)  # (n, R)
        cosine = products / (norms[:, :, None] * norms[:, None, :])
        if self.metric == "angular":
            cosine = 1 - torch.arccos(cosine.clamp(-1, 1)) / torch.pi
        cosine.diagonal(dim1=1, dim2=2).fill_(1)
        return cosine

    def update(self, batch: LayerBatch) -> None:
        self._store.update(batch)

    def merge(self, other: OutputSimilarity) -> None:
        self._store.merge(other._store)
        self._labels = self._labels or other._labels

    def state(self) -> dict[str, np.ndarray]:
        return {**self._store.state(), "labels": np.asarray(self._labels, dtype=str)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._labels = [str(label) for label in state.pop("labels")]
        self._store.restore(state)

    def result(self, model: Any, corpus: Corpus) -> xr.Dataset:
        dataset = self._store.result(model, corpus)
        return dataset.assign_attrs(self.attrs(model, corpus), metric=self.metric)


class _PerToken(Rows):
    name = "output_similarity"

    def __init__(self, owner: OutputSimilarity):
        super().__init__()
        self._owner = owner

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        return {"similarity": self._owner.similarity(batch), "topk_expert": batch.top_k_index}

    def dims(self, model: Any, layers: list[int]) -> tuple[dict[str, tuple[str, ...]], dict]:
        labels = self._owner._labels
        return {"similarity": ("expert", "other"), "topk_expert": ("rank",)}, {"expert": labels, "other": labels}


class _Mean(Sums):
    name = "output_similarity"

    def __init__(self, owner: OutputSimilarity):
        super().__init__()
        self._owner = owner

    def measure(self, batch: LayerBatch) -> dict[str, torch.Tensor]:
        similarity = self._owner.similarity(batch)
        return {"total": similarity.double().sum(0), "rows": torch.tensor(len(similarity))}

    def dataset(self, layers: list[int], sums: dict[str, np.ndarray]) -> tuple[dict, dict]:
        labels = self._owner._labels
        mean = sums["total"] / sums["rows"][:, None, None]
        return {"similarity": (("layer", "expert", "other"), mean)}, {"expert": labels, "other": labels}
