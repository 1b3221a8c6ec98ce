"""Base classes of expert scores: a formula with its source, and the sign that marks an expert as important."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from moe_probe.model import MoEModel
from moe_probe.routing import LayerBatch, Need
from moe_probe.texts.corpus import Corpus


class Score(ABC):
    """A number per expert by which experts are kept or pruned.

    Attributes:
        keep_high: whether to keep experts with large values; if False, they are pruned first.
        formula: the definition, in the symbols of `moe_probe.pruning.scores`.
        source: the paper, with section or equation if there is one.
        units: of the value.
    """

    keep_high: ClassVar[bool] = True
    formula: ClassVar[str]
    source: ClassVar[str]
    units: ClassVar[str] = "1"


OF_ROWS = ("norms", "turned")  # what `Seen` computes of each row and hands on to a part


class Seen:
    """A batch of a MoE layer, with values that several scores use computed once.

    Attributes:
        batch: n rows of one layer, E experts, k of them chosen per row.
    """

    def __init__(self, batch: LayerBatch):
        self.batch = batch

    @cached_property
    def chosen_outputs(self) -> torch.Tensor:
        """Unweighted outputs of the chosen experts, (n, k, w), float32."""
        batch = self.batch
        if batch.holds("outputs"):
            return batch.outputs[batch.top_k_index, self._rows].float()
        return batch.selected_outputs.float()

    @cached_property
    def norms(self) -> torch.Tensor:
        """Their L2 norms, (n, k), float64."""
        return self.chosen_outputs.norm(dim=-1).double()

    def norms_of(self, index: torch.Tensor) -> torch.Tensor:
        """L2 norms of the unweighted outputs of other experts (n, k) on the rows, (n, k), float64."""
        batch = self.batch
        if batch.holds("outputs"):
            return batch.outputs[index, self._rows].float().norm(dim=-1).double()
        assert batch.experts is not None, "scores run models, not traces"
        norms, others = self.norms.clone(), (index != batch.top_k_index).any(1)
        if bool(others.any()):
            outputs = batch.experts.selected_outputs(batch.expert_input[others], index[others])
            norms[others] = outputs.float().norm(dim=-1).double()
        return norms

    @property
    def _rows(self) -> torch.Tensor:
        index = self.batch.top_k_index
        return torch.arange(len(index), device=index.device)[:, None]

    @cached_property
    def affinities(self) -> torch.Tensor:
        """Affinities of the chosen experts, (n, k), float64."""
        return self.batch.scores.gather(1, self.batch.top_k_index).double()

    @cached_property
    def weights(self) -> torch.Tensor:
        """Applied weights, (n, k), float64."""
        return self.batch.top_k_weights.double()

    @cached_property
    def turned(self) -> torch.Tensor:
        """1 - cosine of the residual stream before and after the routed experts, at least 0, (n,), float64."""
        before = self.batch.residual.double()
        after = before + self.batch.routed_output.double()
        return (1 - torch.cosine_similarity(before, after, dim=-1)).clamp(min=0)

    def part(self, tokens: np.ndarray) -> Seen:
        """The batch of some of its tokens alone, a mask (tokens,), with what was computed of each row."""
        part = Seen(self.batch.part(tokens))
        rows = torch.from_numpy(np.repeat(tokens, self.batch.layer.subtokens))
        vars(part).update({name: value[rows] for name, value in vars(self).items() if name in OF_ROWS})
        return part

    def by_expert(self, values: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        """Sums over the rows of values of chosen experts, (n, k[, w]) to (E[, w]), float64."""
        index = self.batch.top_k_index if index is None else index
        flat = values.double().reshape(index.numel(), *values.shape[2:])
        total = flat.new_zeros(self.batch.layer.num_experts, *flat.shape[1:])
        return total.index_add_(0, index.flatten(), flat)

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Maxima over the rows of values (n, k) of the chosen experts, (E,); -inf for experts that no row chose."""
        total = values.new_full((self.batch.layer.num_experts,), -torch.inf)
        return total.scatter_reduce_(0, self.batch.top_k_index.flatten(), values.flatten(), "amax")


class OnePass(Score):
    """A score that is computed in one pass over texts, from sums over rows.

    Attributes:
        needs: what batches must hold besides the choices.
        maximum: whether batches are joined by their maximum instead of their sum.
        mixed: whether sums of each document label are divided by their total over the layer's experts, and then added.
        before: whether a batch's contribution belongs to the previous MoE layer.

    Examples:
        >>> from moe_probe import pruning
        >>> pruning.names()["frequency"].formula
        '|S_e| / T'
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    maximum: ClassVar[bool] = False
    mixed: ClassVar[bool] = False
    before: ClassVar[bool] = False

    @abstractmethod
    def add(self, seen: Seen) -> torch.Tensor | None:
        """Returns the contribution of a batch, (E, ...); None if the batch does not hold what the score needs."""

    def value(self, total: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
        """Returns the score (E,), float64, from the contributions of all batches.

        Args:
            total: their sum or maximum, (E, ...).
            chosen: number of rows that chose each expert, (E,); nan for missing experts.
            rows: number of rows.
        """
        return total


class OfWeights(Score):
    """A score that needs only the published weights; interventions do not change it.

    Attributes:
        needs_base: whether it compares with another checkpoint.
    """

    needs_base: ClassVar[bool] = False

    @abstractmethod
    def of_layer(self, model: MoEModel, layer: int, base: MoEModel | None = None) -> np.ndarray:
        """Returns the score of each expert, (E,), float64; nan for experts without matrices."""


class Measured(Score):
    """A score that a costly experiment on the texts measures; computed only if named."""

    @abstractmethod
    def measure(self, model: MoEModel, corpus: Corpus, options: Mapping[str, Any]) -> xr.DataArray:
        """Returns the score of each expert, (layer, expert), float64.

        Args:
            model: the model to run.
            corpus: the texts to run it on.
            options: those of `dynamic.run` that are not about reading texts.
        """
